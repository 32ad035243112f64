"""What a runner has sent and its leader may still lose: the next leader is given it again.

A leader says up to which frame it has everything (`wire.Ack`) only once it has looked whether it still led after it
came: what one has read that was frozen, and is none by now, is never acknowledged. What is acknowledged stays for
KEEP_S more, until clients have read it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

from .wire import Part

KEEP_S = 5.0
"""What was acknowledged is kept for so long since it was sent."""
KEEP_BYTES = 16 * 1024 * 1024
"""The most that is kept, and what it takes beside the payloads counts."""
ENTRY_BYTES = 300

Item = tuple[int, str, int, bytes, int, str]
"""Delivery, call, index, payload, codec, method."""
Done = tuple[Item, int, bytes, int]
"""An input with its status, its payload and the nanoseconds that it took."""


class Kept:
    """`add` and `start_again` are for one thread at a time; any thread may `acknowledge`."""

    def __init__(self) -> None:
        self._sent: deque[tuple[int, float, int, list[Done]]] = deque()
        """The frame's number on its link, when it was sent, its size, and what was in it."""
        self._bytes = 0
        self._frames = 0
        self._acknowledged = 0
        self._parts: dict[int, deque[tuple[Part, int]]] = {}
        """By delivery: frames of its stream that nobody has taken, with what they count for in its window."""

    def add_part(self, part: Part, size: int) -> None:
        """It goes out now, after all parts of its delivery before it."""
        self._parts.setdefault(part.delivery, deque()).append((part, size))

    def take_parts(self, delivery: int, number: int) -> int:
        """The parts up to `number` are taken: returns what the frames count for that are not kept any more."""
        frames = self._parts.get(delivery)
        size = 0
        while frames and frames[0][0].number <= number:
            size += frames.popleft()[1]
        return size

    def parts(self) -> list[Part]:
        """What the next leader has to be given of streams, before what they ended with."""
        return [part for frames in list(self._parts.values()) for part, _ in list(frames)]

    def forget_parts(self, batch: list[Done]) -> None:
        """These have ended, and what they gave is not needed for another leader."""
        for item, _, _, _ in batch if self._parts else ():
            self._parts.pop(item[0], None)

    def add(self, batch: list[Done]) -> None:
        """It goes out now, as one frame."""
        now = time.monotonic()
        self._frames += 1
        size = sum([len(one[2]) for one in batch]) + ENTRY_BYTES * len(batch) + self._bytes_of_parts(batch)
        sent = self._sent
        sent.append((self._frames, now, size, batch))
        self._bytes += size
        while self._is_done(sent[0], now) or (self._bytes > KEEP_BYTES and len(sent) > 1):
            _, _, size, dropped = sent.popleft()
            self._bytes -= size
            self.forget_parts(dropped)

    def _bytes_of_parts(self, batch: list[Done]) -> int:
        if not self._parts:
            return 0
        ended = [part for item, _, _, _ in batch for part, _ in self._parts.get(item[0], ())]
        return sum(len(payload) for part in ended for payload in part.payloads)

    def acknowledge(self, frames: int) -> None:
        """The leader has all frames of this link up to this number, and led when it had them."""
        self._acknowledged = frames

    def start_again(self) -> list[Done]:
        """What the next leader has to be given, as the first frame of its link; empty if there is none."""
        now = time.monotonic()
        for entry in list(self._sent):
            if self._is_done(entry, now):
                self.forget_parts(entry[3])
        rest = [(1, at, size, batch) for _, at, size, batch in self._unknown(now)]
        self._sent = deque(rest)
        self._bytes = sum(size for _, _, size, _ in rest)
        self._frames, self._acknowledged = int(bool(rest)), 0
        return [one for _, _, _, batch in rest for one in batch]

    def _unknown(self, now: float) -> Iterator[tuple[int, float, int, list[Done]]]:
        return (entry for entry in self._sent if not self._is_done(entry, now))

    def _is_done(self, entry: tuple[int, float, int, list[Done]], now: float) -> bool:
        return entry[0] <= self._acknowledged and entry[1] < now - KEEP_S
