"""Group commit: the thread that writes records to the journal and says how far it is durable.

Everything that comes in while one segment is written goes into the next. The event loop never waits for a disk.

Where there is no room left, what is to be written waits for the snapshot that takes the place of what is of no more
use; only a journal that has none even then has failed.
"""

from __future__ import annotations

import asyncio
import bisect
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from nomadfn.core import records
from nomadfn.ports import Journal, JournalError, JournalFullError

SEGMENT_RECORDS = 20_000
SLICE_S = 0.005
"""How long the service does nothing else while a snapshot is taken, at a time."""
STALLED_S = 5.0
"""A write that takes longer than this is told to whoever asks for the service's health."""
APPEND_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CLOSE_S = 3.0
"""How long the end waits for a journal that takes nothing: its store is away, or frozen."""
SNAPSHOTS_WHEN_FULL = 2
"""The first snapshot may have begun long before the journal was full."""
LIVE_PER_SEGMENT_BYTES = 64 * 1024
"""Of what a snapshot costs, one segment that it takes away is worth so much: however much is live, writing goes on."""
COMPACT_GROWTH = 3
"""The journal is compacted when it holds so many times what is still of use."""


class Pace(msgspec.Struct, frozen=True):
    """How large the steps are that a journal likes."""

    segment_bytes: int = 4 * 1024 * 1024
    compact_from_bytes: int = 64 * 1024 * 1024
    compact_from_segments: int | None = None
    """So many segments are too many, however small they are, unless a snapshot would cost far more."""
    room_bytes: int | None = None
    """A journal that may hold no more than this is compacted before it is full."""

    def compact_at(self, size_bytes: int) -> int:
        """The size at which a journal is compacted again that has `size_bytes` after a compaction."""
        grown = max(self.compact_from_bytes, 2 * size_bytes)
        return grown if self.room_bytes is None else min(grown, (size_bytes + self.room_bytes) // 2)

    def too_many(self, segments: int, live_bytes: int) -> bool:
        if self.compact_from_segments is None:
            return False
        return segments >= max(self.compact_from_segments, live_bytes // LIVE_PER_SEGMENT_BYTES)


class _Batch(msgspec.Struct):
    records: list[records.Record]
    number: int


class _SnapshotBegins:
    """From here on in the queue, what is written is not in the snapshot that is being taken."""


class _Snapshot(msgspec.Struct):
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
        self._queue: deque[_Batch | _SnapshotBegins | _Snapshot] = deque()
        self._compacting = False
        self._full = False
        """There is no room for what comes next."""
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
        self.size_bytes = journal.size_bytes()
        self._segments = journal.segment_count()
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
        if self._full or self._pace.too_many(self._segments, live_bytes):
            return True
        if self.size_bytes < self._compact_at:
            return False
        return self._pace.room_bytes is not None or self.size_bytes >= COMPACT_GROWTH * live_bytes

    @property
    def trouble(self) -> str:
        """Why what has to be durable is not, in words; empty while all is well."""
        since = self._writing_since
        waited_s = 0.0 if since is None else time.monotonic() - since
        return f"the journal has been waiting for a write for {waited_s:.0f} s" if waited_s > STALLED_S else ""

    async def compact(self, snapshot: Iterator[records.Record], before_end: Callable[[], None] = lambda: None) -> None:
        """Replace all that was written so far by `snapshot`.

        It is taken slice by slice while the service goes on. What happens meanwhile may be in it or not: that is
        written after the begin, stays, and is replayed on top, where what is known already changes nothing.
        `before_end` shall hand to `write` whatever has happened by then.
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
        before_end()
        self._put(_Snapshot(bodies))

    def close(self) -> bool:
        """Write what is there, and close the journal; False when the journal had to be given up.

        That is when it has taken no segment for `CLOSE_S`. Nobody was told of what is lost with it.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is None:
            return True
        before = -1
        while self._thread.is_alive() and self.last_segment != before:
            before = self.last_segment
            self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            return True
        self._journal.close()
        self._thread.join(CLOSE_S)
        return False

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
        """Write what has come in, as few segments as may be; False at the end."""
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._closing)
        if not self._queue:
            return False
        segment: list[records.Record] = []
        number = size_bytes = 0
        while self._queue:
            one = self._queue.popleft()
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
                self._replace(one, repeats=True)
        if segment:
            self._write(segment, number)
        return True

    def _write(self, segment: list[records.Record], number: int) -> None:
        body = records.encode_segment(segment)
        self._writing_since = start = time.monotonic()
        self.last_segment = self._append(body)
        self._writing_since = None
        took_s = time.monotonic() - start
        self.append_counts[bisect.bisect_left(APPEND_BOUNDS_S, took_s)] += 1
        self.append_s += took_s
        self._segments += 1
        self.size_bytes = self._journal.size_bytes()
        self._on_durable(number)

    def _append(self, body: bytes) -> int:
        for _ in range(SNAPSHOTS_WHEN_FULL):
            try:
                return self._journal.append(body)
            except JournalFullError:
                if not self._make_room():
                    raise
        return self._journal.append(body)

    def _make_room(self) -> bool:
        """Wait for a snapshot and put it in force before its turn; False when the end comes first.

        What stands before it in the queue is in it already; written after it, that changes nothing at replay.
        """
        self._full = True
        with self._wake:
            self._wake.wait_for(lambda: self._closing or any(isinstance(one, _Snapshot) for one in self._queue))
            waiting, self._queue = self._queue, deque()
            self._queue.extend(one for one in waiting if isinstance(one, _Batch))
        made = False
        for one in waiting:
            if isinstance(one, _SnapshotBegins):
                self._snapshot_covers = self.last_segment
            elif isinstance(one, _Snapshot):
                self._replace(one, repeats=False)
                made = True
        return made

    def _replace(self, snapshot: _Snapshot, *, repeats: bool) -> None:
        self._journal.compact(snapshot.bodies, self._snapshot_covers, repeats=repeats)
        self.size_bytes = self._journal.size_bytes()
        self._compact_at = self._pace.compact_at(self.size_bytes)
        self._segments = self._journal.segment_count()
        self._full = False
        self._compacting = False

    def _is_full(self, segment: list[records.Record], size_bytes: int) -> bool:
        return size_bytes >= self._pace.segment_bytes or len(segment) >= SEGMENT_RECORDS
