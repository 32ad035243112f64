"""Group commit: the thread that writes records to the journal and says how far it is durable.

Everything that comes in while one segment is written goes into the next. The event loop never waits for a disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nomadfn.core import records
from nomadfn.ports import Journal, JournalError

SEGMENT_RECORDS = 20_000
COMPACT_GROWTH = 4


@dataclass(frozen=True, slots=True)
class Pace:
    """How large the steps are that a journal likes."""

    segment_bytes: int = 4 * 1024 * 1024
    compact_from_bytes: int = 64 * 1024 * 1024
    compact_from_segments: int | None = None
    """So many segments are too many, however small they are."""
    room_bytes: int | None = None
    """A journal that may hold no more than this is compacted before it is full."""

    def compact_at(self, size_bytes: int) -> int:
        """The size at which a journal is compacted again that has `size_bytes` after a compaction."""
        grown = max(self.compact_from_bytes, COMPACT_GROWTH * size_bytes)
        return grown if self.room_bytes is None else min(grown, (size_bytes + self.room_bytes) // 2)


@dataclass(slots=True)
class _Batch:
    records: list[records.Record]
    number: int


@dataclass(slots=True)
class _Snapshot:
    bodies: list[bytes]


class DurableWriter:
    """Owns the journal once the service runs. Callbacks are made on the writer's thread."""

    def __init__(
        self,
        journal: Journal,
        on_durable: Callable[[int], None],
        on_failure: Callable[[JournalError], None],
        pace: Pace = Pace(),
    ) -> None:
        self._journal = journal
        self._pace = pace
        self._on_durable = on_durable
        self._on_failure = on_failure
        self._wake = threading.Condition()
        self._queue: list[_Batch | _Snapshot] = []
        self._compacting = False
        self._closing = False
        self._compact_at = pace.compact_at(journal.size_bytes())
        self._last_segment = 0
        self._segments = 0
        """Since the last compaction, or the start."""
        self.size_bytes = journal.size_bytes()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def write(self, batch: list[records.Record], number: int) -> None:
        """Make `batch` durable; `on_durable(number)` follows."""
        self._put(_Batch(batch, number))

    @property
    def wants_snapshot(self) -> bool:
        most = self._pace.compact_from_segments
        due = self.size_bytes >= self._compact_at or (most is not None and self._segments >= most)
        return due and not self._compacting

    def compact(self, snapshot: Iterator[records.Record]) -> None:
        """Replace all that was written so far by `snapshot`: the state after the batches of earlier `write` calls."""
        self._compacting = True
        bodies = []
        part: list[records.Record] = []
        size_bytes = 0
        for record in snapshot:
            part.append(record)
            size_bytes += records.size_of(record)
            if self._is_full(part, size_bytes):
                bodies.append(records.encode_segment(part))
                part, size_bytes = [], 0
        if part:
            bodies.append(records.encode_segment(part))
        self._put(_Snapshot(bodies))

    def close(self) -> None:
        """Write what is there and end. Returns when the journal is closed."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _put(self, one: _Batch | _Snapshot) -> None:
        with self._wake:
            self._queue.append(one)
            self._wake.notify()

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except JournalError as error:
            self._on_failure(error)
        except Exception as error:
            self._on_failure(JournalError(f"the journal's thread failed: {error!r}"))
        finally:
            self._journal.close()

    def _step(self) -> bool:
        with self._wake:
            while not self._queue and not self._closing:
                self._wake.wait()
            queue, self._queue = self._queue, []
        segment: list[records.Record] = []
        number = size_bytes = 0
        for one in queue:
            if isinstance(one, _Batch):
                segment += one.records
                size_bytes += sum(map(records.size_of, one.records))
                number = one.number
            if segment and (isinstance(one, _Snapshot) or self._is_full(segment, size_bytes)):
                self._write(segment, number)
                segment, size_bytes = [], 0
            if isinstance(one, _Snapshot):
                self._replace(one)
        if segment:
            self._write(segment, number)
        return bool(queue)

    def _write(self, segment: list[records.Record], number: int) -> None:
        self._last_segment = self._journal.append(records.encode_segment(segment))
        self._segments += 1
        self.size_bytes = self._journal.size_bytes()
        self._on_durable(number)

    def _replace(self, snapshot: _Snapshot) -> None:
        self._journal.compact(snapshot.bodies, self._last_segment)
        self.size_bytes = self._journal.size_bytes()
        self._compact_at = self._pace.compact_at(self.size_bytes)
        self._segments = 0
        self._compacting = False

    def _is_full(self, segment: list[records.Record], size_bytes: int) -> bool:
        return size_bytes >= self._pace.segment_bytes or len(segment) >= SEGMENT_RECORDS
