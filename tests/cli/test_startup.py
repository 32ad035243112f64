"""What the command line must not cost before it knows what to do."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("pydantic", "rich", "starlette", "uvicorn", "asyncio", "msgspec", "cloudpickle", "http.client")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "sys.argv = ['nomadfn', '--help']\n"
        "from nomadfn.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage: nomadfn" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
