"""Group commit: the thread that writes records to the journal and says how far it is durable.

Everything that comes in while one segment is written goes into the next. The event loop never waits for a disk.
"""

from __future__ import annotations

import asyncio
import bisect
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nomadfn.core import records
from nomadfn.ports import Journal, JournalError

SEGMENT_RECORDS = 20_000
SLICE_S = 0.005
"""How long the service does nothing else while a snapshot is taken, at a time."""
STALLED_S = 5.0
"""A write that takes longer than this is told to whoever asks for the service's health."""
APPEND_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
COMPACT_GROWTH = 3
"""The journal is compacted when it holds so many times what is still of use."""


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
        grown = max(self.compact_from_bytes, 2 * size_bytes)
        return grown if self.room_bytes is None else min(grown, (size_bytes + self.room_bytes) // 2)


@dataclass(slots=True)
class _Batch:
    records: list[records.Record]
    number: int


class _SnapshotBegins:
    """From here on in the queue, what is written is not in the snapshot that is being taken."""


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
        self._queue: list[_Batch | _SnapshotBegins | _Snapshot] = []
        self._compacting = False
        self._closing = False
        self._snapshot_covers = 0
        """The last segment that the snapshot which is being taken stands for."""
        self._compact_at = pace.compact_at(0)
        self.last_segment = 0
        """The number of the last segment written by this process."""
        self.append_counts = [0] * (len(APPEND_BOUNDS_S) + 1)
        """Appends that took up to each of `APPEND_BOUNDS_S`, and those that took longer."""
        self.append_s = 0.0
        """All of them together."""
        self._writing_since: float | None = None
        self._segments = 0
        """Since the last compaction, or the start."""
        self.size_bytes = journal.size_bytes()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def write(self, batch: list[records.Record], number: int) -> None:
        """Make `batch` durable; `on_durable(number)` follows."""
        self._put(_Batch(batch, number))

    def wants_snapshot(self, live_bytes: int) -> bool:
        """Whether enough of the journal is of no more use, given what still is; or it is too long, or nearly full."""
        if self._compacting:
            return False
        pace = self._pace
        if pace.compact_from_segments is not None and self._segments >= pace.compact_from_segments:
            return True
        if self.size_bytes < self._compact_at:
            return False
        return pace.room_bytes is not None or self.size_bytes >= COMPACT_GROWTH * live_bytes

    @property
    def trouble(self) -> str:
        """Why what has to be durable is not, in words; empty while all is well."""
        since = self._writing_since
        waited_s = 0.0 if since is None else time.monotonic() - since
        return f"the journal has been waiting for a write for {waited_s:.0f} s" if waited_s > STALLED_S else ""

    async def compact(self, snapshot: Iterator[records.Record]) -> None:
        """Replace all that was written so far by `snapshot`.

        It is taken slice by slice while the service goes on. What happens meanwhile may be in it or not: that is
        written after the begin, stays, and is replayed on top, where what is known already changes nothing.
        """
        self._compacting = True
        self._put(_SnapshotBegins())
        bodies: list[bytes] = []
        part: list[records.Record] = []
        size_bytes = 0
        slice_ends = time.monotonic() + SLICE_S
        for record in snapshot:
            part.append(record)
            size_bytes += records.size_of(record)
            if self._is_full(part, size_bytes):
                bodies.append(records.encode_segment(part))
                part, size_bytes = [], 0
            if time.monotonic() >= slice_ends:
                await asyncio.sleep(0)
                slice_ends = time.monotonic() + SLICE_S
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

    def _put(self, one: _Batch | _SnapshotBegins | _Snapshot) -> None:
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
            if segment and (not isinstance(one, _Batch) or self._is_full(segment, size_bytes)):
                self._write(segment, number)
                segment, size_bytes = [], 0
            if isinstance(one, _SnapshotBegins):
                self._snapshot_covers = self.last_segment
            elif isinstance(one, _Snapshot):
                self._replace(one)
        if segment:
            self._write(segment, number)
        return bool(queue)

    def _write(self, segment: list[records.Record], number: int) -> None:
        body = records.encode_segment(segment)
        self._writing_since = start = time.monotonic()
        self.last_segment = self._journal.append(body)
        self._writing_since = None
        took_s = time.monotonic() - start
        self.append_counts[bisect.bisect_left(APPEND_BOUNDS_S, took_s)] += 1
        self.append_s += took_s
        self._segments += 1
        self.size_bytes = self._journal.size_bytes()
        self._on_durable(number)

    def _replace(self, snapshot: _Snapshot) -> None:
        self._journal.compact(snapshot.bodies, self._snapshot_covers)
        self.size_bytes = self._journal.size_bytes()
        self._compact_at = self._pace.compact_at(self.size_bytes)
        self._segments = 0
        self._compacting = False

    def _is_full(self, segment: list[records.Record], size_bytes: int) -> bool:
        return size_bytes >= self._pace.segment_bytes or len(segment) >= SEGMENT_RECORDS
