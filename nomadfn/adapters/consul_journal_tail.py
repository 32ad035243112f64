"""Reading a journal in Consul along while another control service writes it."""

from __future__ import annotations

from collections.abc import Callable

from nomadfn.adapters.consul_journal_reader import JournalReader, Position, number_of
from nomadfn.adapters.consul_store import ConsulStore, Shard
from nomadfn.ports import Blobs, JournalError

PATIENCE_S = 1.0
"""Who reads along asks again soon anyway."""


class ConsulJournalTail(JournalReader):
    """Gives each segment once, as soon as it is there. For one thread; any other may `close` it."""

    def __init__(self, store: ConsulStore, shard: Shard, blobs: Blobs | None = None) -> None:
        super().__init__(store, shard, blobs, PATIENCE_S)
        self.position: Position | None = None
        """What `take` has been given since `begin`; None where that is nothing whole."""

    def advance(self, begin: Callable[[], None], take: Callable[[bytes], None]) -> bool:
        """Read on; says whether anything came. `begin()` voids whatever was taken before it.

        Raises `JournalError` where it cannot; it may be called again.
        """
        position = self.position
        if position is None:
            return self._begin(begin, take)
        last = self._last_from(position.number + 1)
        if last > position.number:
            return self._take_until(position, last, take)
        found = self._find_meta()
        self.position = self._carry(found[0], position) if found is not None else None
        return self.position is None and self._begin(begin, take)

    def _begin(self, begin: Callable[[], None], take: Callable[[bytes], None]) -> bool:
        self.position = None
        found = self._find_meta()
        if found is None:
            return False
        begin()
        for body in self._snapshot_bodies(found[0]):
            take(body)
            if self._closed.is_set():
                return False
        self.position = self._begin_of(found[0])
        return True

    def _last_from(self, number: int) -> int:
        """The last of the segments that are there from `number` on without a gap, as far as one look goes."""
        prefix = f"{self._root}segments/"
        there = {number_of(key, prefix) for key in self._call(self._store.keys, self._chunk_of(number))}
        while number in there:
            number += 1
        return number - 1

    def _take_until(self, position: Position, last: int, take: Callable[[bytes], None]) -> bool:
        try:
            for after, body in self._after(position, last):
                self.position = None  # Should it fail within, nobody knows how much of it was taken.
                take(body)
                self.position = position = after
                if self._closed.is_set():
                    break
        except JournalError:
            # Compacted away meanwhile, or Consul was restored from a backup: the next call begins anew.
            found = self._find_meta()
            self.position = self._carry(found[0], position) if found is not None else None
            raise
        return True
