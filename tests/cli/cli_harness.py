"""Real `nomadfn` processes, each test with a data folder of its own and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TIMEOUT_S = 60.0


class Cli:
    """Runs `nomadfn` in a folder, as a user would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        (folder / "tmp").mkdir()
        self.environ = {
            **{
                name: value
                for name, value in os.environ.items()
                # Unbuffered, one print of two values is several writes, and a container's line may come in between.
                if not name.startswith("NOMADFN_") and name != "PYTHONUNBUFFERED"
            },
            "NOMADFN_DATA_DIR": str(self.data),
            "TMPDIR": str(folder / "tmp"),
            "NO_COLOR": "1",
        }

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nomadfn", *words],
            cwd=self.folder,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def out(self, *words: str) -> str:
        """What a command that must do well prints."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.out(*words))

    def start(self, *words: str, **streams: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "nomadfn", *words],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            **streams,
        )

    def leftovers(self) -> list[str]:
        """Folders of private services, and processes that work in one of them or in the data folder."""
        found = [str(path) for path in (self.folder / "tmp").glob("nomadfn-*")]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(self.folder) in line and "pytest" not in line:
                found.append(line)
        return found
