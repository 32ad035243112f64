"""Which inputs have a deadline, the next one first.

An input that is started or done before its deadline stays here until then, or until what is of no use any more would
be more than half of all: so one costs O(log n), amortised, and only those that have a deadline cost anything.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

NEVER = float("inf")
_SWEEP_FROM = 64


class Deadlines(Generic[Item]):
    """Items in groups, each group with the time until which it may be started."""

    __slots__ = ("_groups", "_is_open", "_sequence", "_sweep_at")

    def __init__(self, is_open: Callable[[Item], bool]) -> None:
        """`is_open` says of an item whether it may still have to be dropped."""
        self._is_open = is_open
        self._groups: list[tuple[float, int, Sequence[Item]]] = []
        self._sequence = 0
        self._sweep_at = _SWEEP_FROM

    def add(self, deadline: float, items: Sequence[Item]) -> None:
        self._sequence += 1
        heapq.heappush(self._groups, (deadline, self._sequence, items))
        if len(self._groups) > self._sweep_at:
            self._sweep()

    def _sweep(self) -> None:
        kept: list[tuple[float, int, Sequence[Item]]] = []
        for deadline, sequence, items in self._groups:
            if left := [one for one in items if self._is_open(one)]:
                kept.append((deadline, sequence, left))
        heapq.heapify(kept)
        self._groups = kept
        self._sweep_at = max(_SWEEP_FROM, 2 * len(kept))

    @property
    def next(self) -> float:
        """The earliest deadline; never where there is none."""
        return self._groups[0][0] if self._groups else NEVER

    def due(self, now: float) -> list[Item]:
        """Those whose deadline is over; they are here no more."""
        over: list[Item] = []
        while self._groups and self._groups[0][0] <= now:
            over += [one for one in heapq.heappop(self._groups)[2] if self._is_open(one)]
        return over

    def clear(self) -> None:
        self._groups.clear()
        self._sweep_at = _SWEEP_FROM

    def __len__(self) -> int:
        return sum(len(items) for _, _, items in self._groups)
