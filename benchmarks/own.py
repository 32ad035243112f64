"""What is measured of nomadfn alone: containers and commands from cold, a mixed map, and a million that wait."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from . import programs
from .goals import EMPTY, HELP, RUN
from .programs import ProgramFailed
from .report import Report

HELLO = """
import nomadfn
app = nomadfn.App("hello")
@app.function()
def square(x):
    return x * x
@app.local_entrypoint()
def main():
    print(square.remote(7))
"""
COMMANDS = {
    RUN: ["nomadfn", "run", "hello.py"],
    HELP: ["nomadfn", "--help"],
    "python -c ''": [sys.executable, "-c", ""],
}


MIXED_ROUNDS = 5
"""A map of 50 ms beside which ten others of a second run is more scattered than all else here. The quick part has its
own number."""


def measure(report: Report, pending: int, rounds: int, say: Callable[[str], None], *, quick: bool) -> None:
    parts: dict[str, Callable[[], None]] = {
        "cold starts": lambda: cold_starts(report),
        "commands": lambda: commands(report, rounds * 3),
        "mixed maps": lambda: mixed(report, rounds if quick else max(rounds, MIXED_ROUNDS)),
        "sleeps with nothing between": lambda: bare_sleeps(report, rounds),
        f"{pending:,} pending": lambda: pending_spawns(report, pending),
    }
    for name, part in parts.items():
        say(f"nomadfn alone: {name}")
        try:
            part()
        except (ProgramFailed, OSError, subprocess.SubprocessError) as error:
            report.failures.append(f"{name}: {error}")


def cold_starts(report: Report) -> None:
    for contender, values in programs.run("cold", timeout_s=120, NOMADFN_CAPACITY="32").items():
        for value in values:
            report.add("cold-start", contender, value)


def mixed(report: Report, rounds: int) -> None:
    figures = programs.run("mixed", rounds, timeout_s=400, NOMADFN_CAPACITY="8")
    for measure_name, body in (("mixed-gil", "hold_gil"), ("mixed-sleep", "hold_slot")):
        for contender, values in figures[body].items():
            for value in values:
                report.add(measure_name, contender, value)


def bare_sleeps(report: Report, rounds: int) -> None:
    """What stands beside those of the contenders: sleeps overrun by themselves."""
    for measure_name, values in programs.run("bare", rounds, timeout_s=120).items():
        for value in values:
            report.add(measure_name, "sleeps with nothing between", value)


def commands(report: Report, rounds: int) -> None:
    """Milliseconds of whole commands, with no service running."""
    with tempfile.TemporaryDirectory(prefix="nf-bench-") as folder:
        (Path(folder) / "hello.py").write_text(HELLO)
        path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {"NOMADFN_DATA_DIR": str(Path(folder) / "data"), "PATH": path}
        for _ in range(rounds):
            for name, words in COMMANDS.items():
                started_s = time.perf_counter()
                subprocess.run(words, cwd=folder, env=env, capture_output=True, check=True, timeout=60)
                report.add("commands", name, (time.perf_counter() - started_s) * 1000)


def pending_spawns(report: Report, total: int) -> None:
    figures = programs.run("pending", 1, total, timeout_s=900, NOMADFN_CAPACITY="4")
    full = f"{total:,} pending"
    for contender, row in zip((EMPTY, full), figures["depths"], strict=True):
        for measure_name, key in (("pending-submit", "submit"), ("pending-map", "map")):
            for value, cpu_us in zip(row[key], row[f"{key}_cpu_us"], strict=True):
                report.add(measure_name, contender, value, cpu_us)
    for contender, key in ((EMPTY, "dispatch_empty"), (full, "dispatch_full")):
        for value, cpu_us in figures[key]:
            report.add("pending-dispatch", contender, value, cpu_us)
    report.add("pending-bytes", full, figures["depths"][-1]["bytes"])
    report.add("pending-restart", full, figures["restart_s"])
