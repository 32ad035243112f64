"""What a function's containers do, as sums: kept by looking only at those that changed since the last look.

Whoever changes a container puts it into `function.changed`; `tally` then takes off what it counted for before and
adds what it counts for now. So a decision about a thousand containers costs what changed, and not a thousand looks.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import add, sub

from .model import NO_TALLY, READY, STARTING, Container, Function, Tally


def tally(function: Function) -> Tally:
    """The sums as they are now."""
    changed = function.changed
    if not changed:
        return function.tally
    sums: Iterable[int] = function.tally
    containers = function.containers
    for container in changed.values():
        part = part_of(container) if containers.get(container.id) is container else NO_TALLY
        if part != container.part:
            sums = map(sub, map(add, sums, part), container.part)
            container.part = part
            sums = tuple(sums)
    changed.clear()
    function.tally = Tally(*sums)
    return function.tally


def part_of(container: Container) -> Tally:
    """What one container counts for."""
    blocked = int(container.waiting > 0)
    if container.state == STARTING:
        return Tally(starting=1, blocked=blocked)
    if container.state != READY:
        return Tally(draining=1, blocked=blocked)
    used, slots = container.used, container.slots
    if not used:
        return Tally(holding=int(container.busy), blocked=blocked)
    busy = slots if container.alone else min(used, slots)
    slow = container.waiting > 0 or container.late
    return Tally(
        holding=int(container.busy),
        busy=busy,
        all_slots=slots,
        ahead=max(0, used - slots),
        slow=busy if slow else 0,
        slow_slots=slots if slow else 0,
        blocked=blocked,
    )


def recount(function: Function) -> Tally:
    """The same sums by looking at every container; for invariant checks."""
    return Tally(*map(sum, zip(NO_TALLY, *map(part_of, function.containers.values()), strict=True)))
