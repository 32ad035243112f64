"""Short inputs among a few long ones: how long until every short one is done, against the same without the long ones.

While all containers are in a long input nothing short can run, so that time is taken off; what is left is the fault of
work that waits behind a long input. Says it for nomadfn and for ProcessPoolExecutor, with the GIL held and with sleeps.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial

import nomadfn
from benchmarks import bodies
from benchmarks.programs import tell

CONTAINERS = 4
INPUTS = 10_000
LONG = 10
LONG_S = 1
Times = tuple[float, float]
Mapping = Callable[[list[int]], Iterable[Times]]

app = nomadfn.App("mixed")
FUNCTIONS = {
    body.__name__: app.function(min_containers=CONTAINERS, max_containers=CONTAINERS)(body)
    for body in (bodies.hold_gil, bodies.hold_slot)
}


def main(rounds: int) -> None:
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in FUNCTIONS}
    pool = ProcessPoolExecutor(CONTAINERS)
    list(pool.map(bodies.sleep, [0.2] * CONTAINERS))  # forked while this process has no thread of nomadfn's
    with pool, app.run():
        for name, function in FUNCTIONS.items():
            mappings: dict[str, Mapping] = {
                "nomadfn": partial(function.map, order_outputs=False),
                "ProcessPoolExecutor(4)": partial(by_pool, pool, bodies.BODIES[name]),
            }
            for contender, mapping in mappings.items():
                list(mapping([0] * INPUTS))
                values = figures[name].setdefault(contender, [])
                values += [slowdown(mapping) for _ in range(rounds)]
    tell(figures)


def by_pool(pool: ProcessPoolExecutor, body: Callable[[int], Times], inputs: list[int]) -> Iterable[Times]:
    for future in as_completed([pool.submit(body, value) for value in inputs]):
        yield future.result()


def slowdown(mapping: Mapping) -> float:
    plain = [0] * (INPUTS - LONG)
    mixed = [LONG_S if number % (INPUTS // LONG) == INPUTS // LONG // 2 else 0 for number in range(INPUTS)]
    alone_s = statistics.median(short_ones_s(mapping, plain) for _ in range(3))
    return short_ones_s(mapping, mixed) / alone_s


def short_ones_s(mapping: Mapping, inputs: list[int]) -> float:
    """Seconds until the last short one has arrived, without those in which every container was in a long one."""
    started = last_short = time.monotonic()
    long: list[Times] = []
    for begun, ended in mapping(inputs):
        if ended - begun > LONG_S / 2:
            long.append((begun, ended))
        else:
            last_short = time.monotonic()
    assert len(long) == sum(map(bool, inputs)), (len(long), "long ones")
    return last_short - started - blocked_s(long, last_short)


def blocked_s(long: list[Times], until: float) -> float:
    """How long CONTAINERS of them ran at once, before `until`."""
    changes = sorted([(begun, 1) for begun, _ in long] + [(ended, -1) for _, ended in long])
    total_s, running, since = 0.0, 0, 0.0
    for at, change in changes:
        if running == CONTAINERS:
            total_s += max(0.0, min(at, until) - since)
        running, since = running + change, at
    return total_s


if __name__ == "__main__":
    main(int(sys.argv[1]))
