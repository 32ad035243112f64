"""`functions N`: an app with N functions, one of which has work: its start, a map, single calls, memory and CPU."""

from __future__ import annotations

import statistics
import sys
import time

import nomadfn
from benchmarks import bodies, processes
from benchmarks.programs import costed, own_mark, tell

CALLS = 200


def main(count: int) -> None:
    app = nomadfn.App("functions")
    # Half of them before the one that works, in case their order matters.
    functions = [app.function(name=f"f{number}", max_containers=2)(bodies.noop) for number in range(count)]
    working = functions[count // 2]
    started_s = time.perf_counter()
    with app.run():
        working.remote()
        first_ms = (time.perf_counter() - started_s) * 1000
        list(working.map(range(2000)))
        maps = [costed(lambda: list(working.map(range(10_000))), 10_000) for _ in range(3)]
        times_ms: list[float] = []
        _, call_cpu_us = costed(lambda: times_ms.extend(timed_ms(working) for _ in range(CALLS)), CALLS)
        tell(
            {
                "first_ms": first_ms,
                "map": statistics.median(rate for rate, _ in maps),
                "map_cpu_us": statistics.median(cpu_us for _, cpu_us in maps),
                "call_p50_ms": statistics.median(times_ms),
                "call_cpu_us": call_cpu_us,
                "memory_mib": processes.memory_bytes(own_mark()) / 2**20,
            }
        )


def timed_ms(function: nomadfn.Function[..., None]) -> float:
    started_s = time.perf_counter()
    function.remote()
    return (time.perf_counter() - started_s) * 1000


if __name__ == "__main__":
    main(int(sys.argv[1]))
