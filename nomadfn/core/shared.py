"""What a `Dict` and a `Queue` are made of, and the answers to the last changes.

What happens to them is in `dicts` and `shared_queues`.
"""

from __future__ import annotations

from collections import OrderedDict, deque

import msgspec

ANSWER_S = 120.0
"""How long the answer to a change is kept, for a client that comes back without it."""
ANSWERS_MAX = 4096
ANSWERS_BYTES = 16 * 1024 * 1024
MADE, TAKEN = True, False
"""The answers of a put: whether an entry was written, or was there already."""

WROTE, LIST = -1, -2
"""In place of a codec: the answer is that of a put; several values with their codecs, in msgpack."""
ENTRY_BYTES = 128
"""What an entry takes beside its key and value."""

Answer = bool | tuple[bytes, int]
"""Of a put, or the value that was removed, with its codec."""


class Entry(msgspec.Struct, gc=False):
    value: bytes
    codec: int
    at: float
    """When it was last written, or noted to be read."""


class SharedDict:
    """One Dict. `name` is empty for one that ends with its `session`."""

    __slots__ = ("created", "entries", "id", "in_order", "name", "number", "session")

    def __init__(self, id: str, name: str, session: str, created: float) -> None:
        self.id = id
        self.name = name
        self.session = session
        self.created = created
        self.entries: dict[bytes, Entry] = {}
        self.in_order: list[bytes] | None = None
        """Its keys, sorted, while no key has come or gone."""
        self.number = 0
        """The number of the last record that changed it: what is read is told once that is durable."""

    def __str__(self) -> str:
        return f"Dict {self.name!r}" if self.name else f"Dict {self.id}"


class Value(msgspec.Struct, gc=False):
    """One in a queue."""

    number: int
    value: bytes
    codec: int


class Partition:
    """A line of its own in a `Queue`; it is there while it is not empty."""

    __slots__ = ("ends_at", "ttl_s", "values")

    def __init__(self) -> None:
        self.values: deque[Value] = deque()
        self.ttl_s = 0.0
        self.ends_at = 0.0


class SharedQueue:
    """One Queue. `name` is empty for one that ends with its `session`."""

    __slots__ = ("created", "id", "name", "next", "number", "partitions", "session")

    def __init__(self, id: str, name: str, session: str, created: float) -> None:
        self.id = id
        self.name = name
        self.session = session
        self.created = created
        self.partitions: dict[bytes, Partition] = {}
        self.next = 0
        """The number of the next value."""
        self.number = 0
        """As of a `SharedDict`."""

    def __str__(self) -> str:
        return f"Queue {self.name!r}" if self.name else f"Queue {self.id}"


class Answers:
    """What the last changes gave, by their tokens; a bounded number of them."""

    def __init__(self) -> None:
        self.kept: OrderedDict[str, tuple[float, Answer]] = OrderedDict()
        self._bytes = 0

    def get(self, token: str) -> Answer | None:
        found = self.kept.get(token)
        return None if found is None else found[1]

    def add(self, token: str, now: float, answer: Answer) -> None:
        if not token or token in self.kept:
            return
        self.kept[token] = now, answer
        self._bytes += _answer_bytes(answer)
        while self.kept and (len(self.kept) > ANSWERS_MAX or self._bytes > ANSWERS_BYTES or self._is_old(now)):
            self._bytes -= _answer_bytes(self.kept.popitem(last=False)[1][1])

    def _is_old(self, now: float) -> bool:
        return next(iter(self.kept.values()))[0] + ANSWER_S < now


def _answer_bytes(answer: Answer) -> int:
    return len(answer[0]) if isinstance(answer, tuple) else 0
