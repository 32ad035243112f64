"""What the command line, a program and a container must not cost before they know what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("pydantic", "rich", "starlette", "uvicorn", "asyncio", "msgspec", "cloudpickle", "http.client")
HELP = """
import sys
sys.argv = ["nomadfn", "--help"]
from nomadfn.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code
"""
SERVICE = """
import nomadfn.control.main, nomadfn.control.embedded, nomadfn.control.service, nomadfn.control.connections, uvloop
from nomadfn.adapters import directory_blobs, lockfile, sqlite_journal, sqlite_registry
"""
WARM = "from nomadfn_agent.supervisor import warm_up\nwarm_up(['nomadfn.sdk.app', 'nomadfn.exception'])"
SERVERS = ("starlette", "uvicorn", "typer", "rich", "pydantic", "prometheus_client", "requests", "multiprocessing")


def modules_after(program: str) -> set[str]:
    """What is imported once the program has run, beyond what a bare Python imports."""
    names = "import sys\nprint('modules:', *sys.modules)\n"
    found = []
    for text in (names, program + "\n" + names):
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        found.append(set(done.stdout.splitlines()[-1].split()[1:]))
    return found[1] - found[0]


@pytest.mark.parametrize(
    ("program", "heavy", "most"),
    [
        pytest.param(HELP, HEAVY, 170, id="nomadfn --help"),
        pytest.param(
            "import nomadfn.sdk.app", (*SERVERS, "asyncio", "cloudpickle", "http.client"), 200, id="a program"
        ),
        pytest.param(
            "import nomadfn.sdk.private_service",
            (*SERVERS, "asyncio", "msgspec", "websockets", "nomadfn_agent"),
            125,
            id="the begin of a private service",
        ),
        pytest.param(
            "import nomadfn.control.main, nomadfn.adapters.warm_parent",
            (*SERVERS, "asyncio", "msgspec", "dataclasses"),
            90,
            id="what stands before the warm parent",
        ),
        pytest.param(
            WARM, (*SERVERS, "picows", "uvloop", "sqlite3", "asyncio", "cloudpickle"), 260, id="the warm parent"
        ),
        pytest.param(SERVICE, (*SERVERS, "cloudpickle", "websockets"), 340, id="a private control service"),
    ],
)
def test_a_start_imports_nothing_heavy_and_not_much(program: str, heavy: tuple[str, ...], most: int) -> None:
    """`most` has some room for other versions of Python and of the libraries; a new heavy import does not fit."""
    imported = modules_after(program)
    assert not imported & set(heavy)
    assert len(imported) <= most, sorted(imported)
