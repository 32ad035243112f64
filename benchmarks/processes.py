"""All processes of one contender: what they have computed, what memory they hold, and their end.

They are found by a variable in their environment, which children inherit: whatever daemons a contender starts are
counted with it. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

MARK = "NOMADFN_BENCH_MARK"
END_S = 20.0


def new_mark(name: str) -> str:
    return f"{name}-{os.getpid()}-{time.monotonic_ns()}"


def marked(mark: str) -> list[int]:
    """Every process that carries the mark."""
    wanted = f"{MARK}={mark}".encode()
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and wanted in _environment(entry)]


def cpu_s(mark: str) -> float:
    """Seconds of CPU that the threads of all marked processes have used since they began, user and system."""
    return sum(map(process_cpu_s, marked(mark)))


def process_cpu_s(pid: int) -> float:
    """One process's seconds of CPU, of all its threads, in the scheduler's nanoseconds: the ticks of `/proc/PID/stat`
    are as long as what is measured."""
    times = [_read(str(path)).split() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(time[0]) for time in times if time) / 1e9


def memory_bytes(mark: str) -> int:
    """What the marked processes hold in memory; what several share is counted once (PSS)."""
    return sum(pss_bytes(pid) for pid in marked(mark))


def pss_bytes(pid: int) -> int:
    found = re.search(rb"^Pss:\s+(\d+) kB", _read(f"/proc/{pid}/smaps_rollup"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def end(mark: str) -> list[str]:
    """Kill what is left; returns the command lines of those that had to be killed."""
    killed: list[str] = []
    deadline = time.monotonic() + END_S
    while left := marked(mark):
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {left} of {mark} do not end, not even by SIGKILL")
        for pid in left:
            killed.append(_read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip())
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return killed


def _environment(pid: str) -> list[bytes]:
    return _read(f"/proc/{pid}/environ").split(b"\0")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
