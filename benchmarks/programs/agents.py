"""`agents N`: a control service with N simulated agents, which speak the protocol and run no user code.

Three processes: the control service over a cluster in memory, all agents and their containers in one event loop
(`benchmarks.simulated_agents`), and this client. What counts is the CPU of the control service alone: the simulation
shares the machine with it, so that rates say less.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nomadfn
from benchmarks import bodies, processes
from benchmarks.programs import tell

START_S = 120.0
IDLE_S = 2.0
LOOK_S = 0.25
"""Each look at what is there costs the control service something, too."""
INPUTS, CALLS = 10_000, 200
HELD = b"h" * 200
"""Inputs of more than 100 bytes are answered after 50 ms, so that all containers have something."""


def main(count: int) -> None:
    folder = Path(os.environ["NOMADFN_DATA_DIR"])
    folder.mkdir()
    simulated = [
        subprocess.Popen([sys.executable, "-m", "benchmarks.simulated_agents", role, str(folder), str(count)])
        for role in ("control", "agents")
    ]
    try:
        wait_until(lambda: (folder / "service.json").exists(), "the control service is there")
        tell(measure(int(json.loads((folder / "service.json").read_text())["pid"]), count))
    finally:
        for process in simulated:
            process.kill()
            process.wait()


def measure(control: int, count: int) -> dict[str, Any]:
    app = nomadfn.App("agents")
    function = app.function(min_containers=count, max_containers=count)(bodies.noop)
    with app.run():
        started_s, started_cpu_s = time.perf_counter(), processes.process_cpu_s(control)
        wait_until(lambda: function.get_current_stats().num_total_runners >= count, f"all {count} containers are ready")
        ready_s, ready_cpu_s = time.perf_counter() - started_s, processes.process_cpu_s(control) - started_cpu_s
        list(function.map([b""] * 2000))
        before_s = processes.process_cpu_s(control)
        time.sleep(IDLE_S)
        idle_cpu = (processes.process_cpu_s(control) - before_s) / IDLE_S
        short = [costed(control, lambda: list(function.map([b""] * INPUTS)), INPUTS) for _ in range(3)]
        held_inputs = min(INPUTS, count * 40)
        list(function.map([HELD] * held_inputs))  # Until it is known that they take long.
        held = costed(control, lambda: list(function.map([HELD] * held_inputs)), held_inputs)
        times_ms: list[float] = []
        _, call_cpu_us = costed(control, lambda: times_ms.extend(timed_ms(function) for _ in range(CALLS)), CALLS)
        return {
            "ready_s": ready_s,
            "join_cpu_us": ready_cpu_s / count * 1e6,
            "idle_cpu_us_s": idle_cpu * 1e6,
            "map": statistics.median(rate for rate, _ in short),
            "map_cpu_us": statistics.median(cpu_us for _, cpu_us in short),
            "held": held[0],
            "held_cpu_us": held[1],
            "call_p50_ms": statistics.median(times_ms),
            "call_cpu_us": call_cpu_us,
            "memory_mib": processes.pss_bytes(control) / 2**20,
        }


def timed_ms(function: nomadfn.Function[..., None]) -> float:
    started_s = time.perf_counter()
    function.remote(b"")
    return (time.perf_counter() - started_s) * 1000


def costed(control: int, work: Callable[[], Any], count: int) -> tuple[float, float]:
    """Inputs a second, and microseconds of the control service's CPU an input."""
    before_s, started_s = processes.process_cpu_s(control), time.perf_counter()
    work()
    taken_s = time.perf_counter() - started_s
    return count / taken_s, (processes.process_cpu_s(control) - before_s) / count * 1e6


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {START_S:.0f} s in vain until {what}")
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main(int(sys.argv[1]))
