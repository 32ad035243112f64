"""Which containers of a function may end, where a cluster lets go only of the last ones of a group.

Such a cluster (Nomad) is told a count a group, and when it is lowered, the highest positions of the group end.
So the containers are dealt out over several groups, the lanes: container 0 is the first of lane 0, container 1
the first of lane 1, and with 16 lanes container 16 the second of lane 0. A lane's count is lowered only over
its top run of containers that hold nothing. Up to as many containers as there are lanes that is exact; beyond,
a busy container keeps those below it in its lane.
"""

from __future__ import annotations

from collections.abc import Iterable

LANES = 16


def lanes_for(max_containers: int | None) -> int:
    """How many lanes a function gets: no more than it may have containers."""
    return LANES if max_containers is None else max(1, min(LANES, max_containers))


def place(index: int, lanes: int) -> tuple[int, int]:
    """The lane of a container and its position there."""
    return index % lanes, index // lanes


def index_at(lane: int, position: int, lanes: int) -> int:
    return position * lanes + lane


def counts(indexes: Iterable[int], lanes: int) -> tuple[int, ...]:
    """How many positions each lane must have so that all of `indexes` are there."""
    tops = [0] * lanes
    for index in indexes:
        lane, position = place(index, lanes)
        tops[lane] = max(tops[lane], position + 1)
    return tuple(tops)


def may_stop(indexes: frozenset[int], idle: frozenset[int], lanes: int = LANES) -> frozenset[int]:
    """Those of the idle containers that no busy one stands above."""
    kept = counts(indexes - idle, lanes)
    return frozenset(index for index in idle & indexes if index // lanes >= kept[index % lanes])


def holder(index: int, indexes: frozenset[int], idle: frozenset[int], lanes: int = LANES) -> int | None:
    """The busy container that keeps the idle one `index` where it is: the highest of its lane. None if none does."""
    above = [one for one in indexes - idle if one > index and one % lanes == index % lanes]
    return max(above, default=None)
