"""The order in which a function's pending inputs run.

Higher priority first; within one priority callers take turns, so that one caller's long map does not stand
before another's single input. Who comes new goes first, once: from then on its turn is behind the others, and it is
new again only after that turn has come with nothing of it in line. So a single input waits for no round of those who
have long lines, and many who come with one input each time get no more than turns. (That is how fair queueing in
networks treats sparse flows.) An input that was cancelled stays where it is and is passed over when its turn comes:
every operation is O(1), amortised, whatever the backlog.

Low priorities age: each input that is given out before them counts, and after `AGING - 1` of those one of a lower
priority is next. The lower priorities take turns in that. So the highest has all but one in `AGING`, and nobody
starves. Age is counted in inputs and not in seconds, because a backlog that is hours old would make every
priority meaningless if its mere time counted.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

AGING = 8
"""Of so many inputs in a row, one is of a lower priority than the highest that waits."""


FEW = 4
"""Who comes with so many inputs waits for them; more are a part of a map."""


class _Level(Generic[Item]):
    """The lines of one priority."""

    __slots__ = ("fresh", "turns")

    def __init__(self) -> None:
        self.fresh: OrderedDict[str, deque[Item]] = OrderedDict()
        """Callers that have come since their last turn, in the order in which they came."""
        self.turns: OrderedDict[str, deque[Item]] = OrderedDict()
        """Those that have been served, the next one first. The line of one may be empty until its turn comes."""

    def lines(self) -> Iterator[tuple[str, deque[Item]]]:
        yield from self.fresh.items()
        yield from self.turns.items()


class FunctionQueue(Generic[Item]):
    """Pending items by priority and caller; beside them those that must run alone, and those that wait for a time."""

    __slots__ = (
        "_delayed",
        "_last_caller",
        "_levels",
        "_order",
        "_passes",
        "_sequence",
        "_served",
        "_turns",
        "alone",
        "parts",
        "visited",
    )

    def __init__(self) -> None:
        self._levels: dict[int, _Level[Item]] = {}
        self._order: list[int] = []
        """The priorities in which something is in line, the highest first."""
        self._delayed: list[tuple[float, int, Item]] = []
        self._sequence = 0
        self._passes = 0
        """Inputs of the highest priority that were given out since one of a lower one was."""
        self._turns = 0
        self._served: dict[int, int] = {}
        """Priority → which turn of a lower priority was its last one."""
        self._last_caller = ""
        self.visited = False
        """Somebody else than the last caller has come, with a few inputs. Who has seen it sets it back."""
        self.alone: deque[list[Item]] = deque()
        """Items that run with nothing beside them, before all others: one by one, of a batched function parts of what
        was one batch."""
        self.parts: deque[list[Item]] = deque()
        """Parts of batches that raised; each is a batch of its own, before those that form."""

    def add(self, caller: str, priority: int, items: Sequence[Item]) -> None:
        self._line(caller, priority).extend(items)
        if caller != self._last_caller:
            if self._last_caller and len(items) <= FEW:
                self.visited = True
            self._last_caller = caller

    def put_back(self, caller: str, priority: int, items: list[Item]) -> None:
        """Items that were taken and did not run: they come first again, in their order."""
        self._line(caller, priority).extendleft(reversed(items))

    def _line(self, caller: str, priority: int) -> deque[Item]:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = _Level()
        fresh, turns = level.fresh, level.turns
        if not fresh and not turns:
            self._open(priority)
        line = turns.get(caller)
        if line is None:
            line = fresh.get(caller)
        if line is None:
            line = fresh[caller] = deque()
        return line

    def _open(self, priority: int) -> None:
        """Something waits in it now."""
        if not self._order:
            self._order = [priority]
        else:
            self._order = sorted([*self._order, priority], reverse=True)
        self._served[priority] = self._turns

    def take(self, count: int, is_live: Callable[[Item], bool]) -> list[Item]:
        """Up to `count` live items. Callers share them evenly and the one served goes to the end of the line."""
        taken: list[Item] = []
        left = count
        while left and (order := self._order):
            priority, most = order[0], left
            if several := order[1:]:
                priority, most = self._turn()
                most = min(most, left)
            level = self._levels[priority]
            served = self._take_from(level, most, is_live, taken)
            left -= served
            if several:
                self._age(priority, served)
            if not level.fresh and not level.turns:
                self._close(priority)
        return taken

    def _take_from(self, level: _Level[Item], count: int, is_live: Callable[[Item], bool], taken: list[Item]) -> int:
        """Move up to `count` live items of a level to `taken`; returns how many."""
        fresh, turns = level.fresh, level.turns
        left = count
        while left and (lines := fresh or turns):
            caller, line = lines.popitem(last=False)
            share = rest = max(1, left // (1 + len(fresh) + len(turns))) if fresh or turns else left
            while line and rest:
                item = line.popleft()
                if is_live(item):
                    taken.append(item)
                    rest -= 1
            left -= share - rest
            if line or (turns and rest < share):
                turns[caller] = line
        while turns and not turns[caller := next(iter(turns))]:
            del turns[caller]
        return count - left

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

    def _close(self, priority: int) -> None:
        """Nothing waits in it any more."""
        self._order.remove(priority)
        if len(self._order) < 2:
            self._passes = 0

    def prune(self, is_live: Callable[[Item], bool]) -> None:
        """Drop what is dead and in line."""
        for priority in list(self._order):
            level = self._levels[priority]
            for lines in (level.fresh, level.turns):
                for caller, line in list(lines.items()):
                    lines[caller] = line = deque(filter(is_live, line))
                    if not line:
                        del lines[caller]
            if not level.fresh and not level.turns:
                self._close(priority)

    def delay(self, item: Item, until: float) -> None:
        self._sequence += 1
        heapq.heappush(self._delayed, (until, self._sequence, item))

    def forget_delayed(self, item: Item) -> None:
        """It does not wait for a time any more. Looks at all that do."""
        self._delayed = [one for one in self._delayed if one[2] is not item]
        heapq.heapify(self._delayed)

    def due(self, now: float) -> list[Item]:
        """Delayed items whose time has come; they are no longer delayed."""
        woken = []
        while self._delayed and self._delayed[0][0] <= now:
            woken.append(heapq.heappop(self._delayed)[2])
        return woken

    @property
    def has_lines(self) -> bool:
        """Whether anything is in line, dead or alive."""
        return any(line for level in self._levels.values() for _, line in level.lines())

    @property
    def next_due(self) -> float | None:
        return self._delayed[0][0] if self._delayed else None

    def callers(self) -> Iterator[str]:
        for level in self._levels.values():
            for caller, line in level.lines():
                if line:
                    yield caller

    def __iter__(self) -> Iterator[Item]:
        """Everything it holds, dead items too; for invariant checks and cancellation of all."""
        for part in (*self.alone, *self.parts):
            yield from part
        for level in self._levels.values():
            for _, line in level.lines():
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
