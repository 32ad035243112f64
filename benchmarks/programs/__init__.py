"""Programs that measure nomadfn alone. Each is a process of its own and prints its figures as one line of JSON.

`run` starts one and reads it; `tell` is what the program says in the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import processes

ROOT = Path(__file__).resolve().parents[2]


class ProgramFailed(Exception):
    """A program ended without its figures; the message has its last line."""


def run(name: str, *arguments: object, timeout_s: float, **env: str) -> Any:
    """The figures of `benchmarks.programs.NAME`. All that it has started is gone afterwards."""
    mark = processes.new_mark(name)
    command = [sys.executable, "-m", f"{__name__}.{name}", *map(str, arguments)]
    with tempfile.TemporaryDirectory(prefix="nf-bench-") as folder:
        given = {processes.MARK: mark, "PYTHONPATH": str(ROOT), "NOMADFN_DATA_DIR": f"{folder}/data", **env}
        try:
            done = subprocess.run(
                command, cwd=folder, env=os.environ | given, capture_output=True, text=True, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            raise ProgramFailed(f"{name} was not done within {timeout_s:.0f} s") from None
        finally:
            processes.end(mark)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode != 0 or not lines:
        raise ProgramFailed(f"{name} failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return json.loads(lines[-1])


def tell(figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def own_mark() -> str:
    """The mark of this program and of all that it starts."""
    return os.environ[processes.MARK]


def costed(work: Callable[[], Any], count: int) -> tuple[float, float]:
    """Inputs a second, and microseconds of CPU an input in all processes."""
    before_s, started_s = processes.cpu_s(own_mark()), time.perf_counter()
    work()
    taken_s = time.perf_counter() - started_s
    return count / taken_s, (processes.cpu_s(own_mark()) - before_s) / count * 1e6
