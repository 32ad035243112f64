"""`bare ROUNDS`: how much of the ideal sleeps reach with nothing between: two processes, and one event loop with 100
at once. A sleep overruns by itself; no queue can do better.
"""

from __future__ import annotations

import asyncio
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from benchmarks import cases
from benchmarks.contenders import AT_ONCE, WORKERS
from benchmarks.programs import tell


def sleep_often(count: int) -> float:
    started_s = time.perf_counter()
    for _ in range(count):
        time.sleep(cases.SLEEP_S)
    return time.perf_counter() - started_s


async def sleep_at_once(count: int) -> float:
    """Each of AT_ONCE places takes a new task as soon as its last one has ended, as a runner does."""
    left = count

    async def place() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await asyncio.create_task(asyncio.sleep(cases.SLEEP_S))

    started_s = time.perf_counter()
    await asyncio.gather(*(place() for _ in range(AT_ONCE)))
    return time.perf_counter() - started_s


def main(rounds: int) -> None:
    each = cases.SLEEPS // WORKERS
    figures: dict[str, list[float]] = {"sleeps": [], "at-once": []}
    with ProcessPoolExecutor(WORKERS) as pool:
        for _ in range(rounds):
            taken_s = max(pool.map(sleep_often, [each] * WORKERS))
            figures["sleeps"].append(100 * each * cases.SLEEP_S / taken_s)
            ideal_s = cases.AT_ONCE_INPUTS / AT_ONCE * cases.SLEEP_S
            figures["at-once"].append(100 * ideal_s / asyncio.run(sleep_at_once(cases.AT_ONCE_INPUTS)))
    tell(figures)


if __name__ == "__main__":
    main(int(sys.argv[1]))
