"""What a `Dict` is made of, and the answers to its last changes; what happens to them is in `dicts`."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

ANSWER_S = 120.0
"""How long the answer to a change is kept, for a client that comes back without it."""
ANSWERS_MAX = 4096
ANSWERS_BYTES = 16 * 1024 * 1024
MADE, TAKEN = True, False
"""The answers of a put: whether an entry was written, or was there already."""

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
