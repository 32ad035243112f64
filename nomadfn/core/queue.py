"""The order in which a function's pending inputs run.

Higher priority first; within one priority callers take turns, so that one caller's long map does not stand
before another's single input. An input that was cancelled stays where it is and is passed over when its
turn comes: every operation is O(1), amortised, whatever the backlog.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FunctionQueue(Generic[Item]):
    """Pending items by priority and caller; beside them those that must run alone, and those that wait for a time."""

    __slots__ = ("_delayed", "_levels", "_order", "_sequence", "alone")

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[str, deque[Item]]] = {}
        self._order: list[int] = []
        self._delayed: list[tuple[float, int, Item]] = []
        self._sequence = 0
        self.alone: deque[list[Item]] = deque()
        """Items that run with nothing beside them, before all others: one by one, of a batched function parts of what
        was one batch."""

    def add(self, caller: str, priority: int, items: Iterable[Item]) -> None:
        self._line(caller, priority).extend(items)

    def put_back(self, caller: str, priority: int, items: list[Item]) -> None:
        """Items that were taken and did not run: they come first again, in their order."""
        self._line(caller, priority).extendleft(reversed(items))

    def _line(self, caller: str, priority: int) -> deque[Item]:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = OrderedDict()
            self._order = sorted(self._levels, reverse=True)
        line = level.get(caller)
        if line is None:
            line = level[caller] = deque()
        return line

    def take(self, count: int, is_live: Callable[[Item], bool]) -> list[Item]:
        """Up to `count` live items. Callers share them evenly and the one served goes to the end of the line."""
        taken: list[Item] = []
        while self._order and len(taken) < count:
            level = self._levels[self._order[0]]
            if not level:
                del self._levels[self._order.pop(0)]
                continue
            caller, line = next(iter(level.items()))
            share = max(1, (count - len(taken)) // len(level))
            while line and share:
                item = line.popleft()
                if is_live(item):
                    taken.append(item)
                    share -= 1
            if line:
                level.move_to_end(caller)
            else:
                del level[caller]
        return taken

    def delay(self, item: Item, until: float) -> None:
        self._sequence += 1
        heapq.heappush(self._delayed, (until, self._sequence, item))

    def due(self, now: float) -> list[Item]:
        """Delayed items whose time has come; they are no longer delayed."""
        woken = []
        while self._delayed and self._delayed[0][0] <= now:
            woken.append(heapq.heappop(self._delayed)[2])
        return woken

    @property
    def has_lines(self) -> bool:
        """Whether anything is in line, dead or alive."""
        return any(self._levels.values())

    @property
    def next_due(self) -> float | None:
        return self._delayed[0][0] if self._delayed else None

    def callers(self) -> Iterator[str]:
        for level in self._levels.values():
            yield from level

    def __iter__(self) -> Iterator[Item]:
        """Everything it holds, dead items too; for invariant checks and cancellation of all."""
        for part in self.alone:
            yield from part
        for level in self._levels.values():
            for line in level.values():
                yield from line
        for _, _, item in self._delayed:
            yield item

    def clear(self) -> None:
        self._levels.clear()
        self._order.clear()
        self._delayed.clear()
        self.alone.clear()
