"""The order in which a function's pending inputs run.

Higher priority first; within one priority callers take turns, so that one caller's long map does not stand
before another's single input. An input that was cancelled stays where it is and is passed over when its
turn comes: every operation is O(1), amortised, whatever the backlog.

Low priorities age: each input that is given out before them counts, and after `AGING - 1` of those one of a lower
priority is next. The lower priorities take turns in that. So the highest has all but one in `AGING`, and nobody
starves. Age is counted in inputs and not in seconds, because a backlog that is hours old would make every
priority meaningless if its mere time counted.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

AGING = 8
"""Of so many inputs in a row, one is of a lower priority than the highest that waits."""


class FunctionQueue(Generic[Item]):
    """Pending items by priority and caller; beside them those that must run alone, and those that wait for a time."""

    __slots__ = ("_delayed", "_levels", "_order", "_passes", "_sequence", "_served", "_turns", "alone", "parts")

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[str, deque[Item]]] = {}
        self._order: list[int] = []
        self._delayed: list[tuple[float, int, Item]] = []
        self._sequence = 0
        self._passes = 0
        """Inputs of the highest priority that were given out since one of a lower one was."""
        self._turns = 0
        self._served: dict[int, int] = {}
        """Priority → which turn of a lower priority was its last one."""
        self.alone: deque[list[Item]] = deque()
        """Items that run with nothing beside them, before all others: one by one, of a batched function parts of what
        was one batch."""
        self.parts: deque[list[Item]] = deque()
        """Parts of batches that raised; each is a batch of its own, before those that form."""

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
            self._served[priority] = self._turns
        line = level.get(caller)
        if line is None:
            line = level[caller] = deque()
        return line

    def take(self, count: int, is_live: Callable[[Item], bool]) -> list[Item]:
        """Up to `count` live items. Callers share them evenly and the one served goes to the end of the line."""
        taken: list[Item] = []
        order = self._order
        while order and len(taken) < count:
            priority, most = order[0], count
            several = len(order) > 1
            before = len(taken)
            if several:
                priority, room = self._turn()
                most = min(count, before + room)
            level = self._levels[priority]
            while level and len(taken) < most:
                caller, line = next(iter(level.items()))
                share = max(1, (most - len(taken)) // len(level))
                while line and share:
                    item = line.popleft()
                    if is_live(item):
                        taken.append(item)
                        share -= 1
                if line:
                    level.move_to_end(caller)
                else:
                    del level[caller]
            if several:
                self._age(priority, len(taken) - before)
            if not level:
                self._drop(priority)
        return taken

    def _turn(self) -> tuple[int, int]:
        """The priority that is next, and how many it may give before another one is."""
        room = AGING - 1 - self._passes
        if room > 0:
            return self._order[0], room
        return min(self._order[1:], key=self._served.__getitem__), 1

    def _age(self, priority: int, count: int) -> None:
        """`count` inputs of a priority were given out while others waited."""
        if priority == self._order[0]:
            self._passes += count
        elif count:
            self._passes = 0
            self._turns += 1
            self._served[priority] = self._turns

    def _drop(self, priority: int) -> None:
        """Nothing waits in it any more."""
        del self._levels[priority], self._served[priority]
        self._order.remove(priority)
        if len(self._order) < 2:
            self._passes = 0

    def prune(self, is_live: Callable[[Item], bool]) -> None:
        """Drop what is dead and in line."""
        for level in self._levels.values():
            for caller, line in list(level.items()):
                level[caller] = line = deque(filter(is_live, line))
                if not line:
                    del level[caller]

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
        for part in (*self.alone, *self.parts):
            yield from part
        for level in self._levels.values():
            for line in level.values():
                yield from line
        for _, _, item in self._delayed:
            yield item

    def clear(self) -> None:
        self._levels.clear()
        self._order.clear()
        self._served.clear()
        self._passes = 0
        self._delayed.clear()
        self.alone.clear()
        self.parts.clear()
