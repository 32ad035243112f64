"""What a running app tells whoever watches it: log lines, the containers' figures, the progress of maps.

`app.run(observer=...)` takes one `Observer`. Its methods are called from several threads and must be quick;
an error in one of them never reaches the program.
"""

from __future__ import annotations

import sys
import threading
from typing import IO

from nomadfn_agent import wire


class Observer:
    """Override what you want to know; everything else does nothing."""

    def running(self, app: str, app_id: str, target: str) -> None:
        """The app has been started; `target` says where, in words."""

    def web_functions(self, urls: dict[str, str]) -> None:
        """Where the app's web functions are, by name, once it runs."""

    def stopped(self, app: str, cancelled: int) -> None:
        """The app has been stopped; so many unfinished inputs were cancelled."""

    def log(self, line: wire.Log) -> None:
        """A container wrote something, or nomadfn has a notice about one (`stream` 0)."""

    def stats(self, figures: wire.Stats) -> None:
        """A function's figures changed."""

    def notice(self, text: str) -> None:
        """Something that the user should know: a limit was met, the connection was lost, it is back."""

    def map_started(self, key: int, function: str, total: int | None, pool: str) -> None:
        """A `.map` began; `total` inputs, None where that cannot be known. `key` names it in what follows.

        `pool` is the name that figures have for where its inputs run: a method's is its class's, or a variant's.
        """

    def map_advanced(self, key: int, submitted: int, done: int) -> None:
        """So many inputs were handed in and so many results have come, since the map began."""

    def map_finished(self, key: int) -> None:
        """The map is over, by its end or by being left."""


class LogPrinter(Observer):
    """Writes what containers write to this program's own stdout and stderr, each line marked with its origin."""

    def __init__(self, stdout: IO[str] | None = None, stderr: IO[str] | None = None) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self._lock = threading.Lock()

    def log(self, line: wire.Log) -> None:
        stream = (self._stdout or sys.stdout) if line.stream == 1 else (self._stderr or sys.stderr)
        mark = origin(line)
        with self._lock:
            for text in line.text.splitlines() or [""]:
                stream.write(f"{mark}{text}\n")
            stream.flush()

    def notice(self, text: str) -> None:
        stream = self._stderr or sys.stderr
        with self._lock:
            stream.write(f"nomadfn: {text}\n")
            stream.flush()


def origin(line: wire.Log) -> str:
    """The mark in front of a container's line, as `nomadfn run` has it: `square#0 │ `."""
    if not line.function:
        return ""
    return f"{line.function}#{line.index} │ " if line.index >= 0 else f"{line.function} │ "
