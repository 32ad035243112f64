"""Five of the ports in memory, for tests and for simulations of the control service.

They keep to the same contracts as the others, and survive a "restart" by being handed to the next service.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from nomadfn.ports import (
    ClusterEvent,
    ContainerEnded,
    ContainerStarted,
    JournalError,
    JournalFullError,
    LeaseHeldError,
    Needs,
    Placement,
)


class MemoryJournal:
    """A `Journal` whose `failure`, when it is set, is raised by every append and compaction."""

    def __init__(self, *, max_bytes: int | None = None) -> None:
        self.failure: JournalError | None = None
        self._max_bytes = max_bytes
        self._upto = 0
        self._snapshot: list[bytes] = []
        self._segments: list[bytes] = []

    def replay(self) -> Iterator[tuple[int, bytes]]:
        for body in list(self._snapshot):
            yield self._upto, body
        yield from enumerate(list(self._segments), self._upto + 1)

    def append(self, body: bytes) -> int:
        self._fail()
        if self._max_bytes is not None and self.size_bytes() + len(body) > self._max_bytes:
            raise JournalFullError(f"the journal would hold more than its maximum of {self._max_bytes:,} bytes")
        self._segments.append(body)
        return self._upto + len(self._segments)

    def compact(self, snapshot: Iterable[bytes], upto: int, *, repeats: bool = False) -> None:
        self._fail()
        last = self._upto + len(self._segments)
        if not self._upto <= upto <= last:
            raise ValueError(f"cannot compact up to {upto}: the journal goes from {self._upto} to {last}")
        self._snapshot = list(snapshot)
        self._segments = self._segments[upto - self._upto :]
        self._upto = upto

    def size_bytes(self) -> int:
        return sum(map(len, self._snapshot)) + sum(map(len, self._segments))

    def segment_count(self) -> int:
        return len(self._segments)

    def close(self) -> None:
        pass

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


class MemoryBlobs:
    """`Blobs` that no other process sees: the folder is empty."""

    folder = ""
    mark = ""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def put(self, name: str, data: bytes) -> None:
        self._blobs[name] = bytes(data)

    def get(self, name: str) -> bytes:
        return self._blobs[name]

    def parts(self, name: str) -> Iterator[bytes]:
        yield self.get(name)

    @contextmanager
    def writing(self, name: str) -> Iterator[io.BytesIO]:
        buffer = io.BytesIO()
        yield buffer
        self.put(name, buffer.getvalue())

    def has(self, name: str) -> bool:
        return name in self._blobs

    def delete(self, name: str) -> None:
        self._blobs.pop(name, None)

    def names(self) -> Iterator[tuple[str, float]]:
        """Every blob is of age 0: there is no clock here."""
        yield from [(name, 0.0) for name in sorted(self._blobs)]


class MemoryRegistry:
    """A `Registry` that keeps its values as JSON, so that nobody changes one from outside."""

    def __init__(self) -> None:
        self._entries: dict[str, str] = {}

    def get(self, key: str) -> Any | None:
        return json.loads(self._entries[key]) if key in self._entries else None

    def put(self, key: str, value: Any) -> None:
        self._entries[key] = json.dumps(value, allow_nan=False)

    def delete(self, key: str) -> None:
        self._entries.pop(key, None)

    def list(self, prefix: str, on_fault: Callable[[str], None] | None = None) -> dict[str, Any]:
        return {key: json.loads(self._entries[key]) for key in sorted(self._entries) if key.startswith(prefix)}

    def close(self) -> None:
        pass


class MemoryLock:
    """What several `MemoryLease`s contend for."""

    def __init__(self) -> None:
        self.epoch = 0
        self.holder: MemoryLease | None = None


class MemoryLease:
    """A `Lease` on a `MemoryLock`; its holder "dies" by `release`."""

    def __init__(self, lock: MemoryLock) -> None:
        self._lock = lock
        self._note = ""

    def acquire(self) -> int:
        holder = self._lock.holder
        if holder is not None:
            raise LeaseHeldError(f"the lease is held since epoch {self._lock.epoch} ({holder._note or 'no note'})")
        self._lock.holder = self
        self._lock.epoch += 1
        self._note = ""
        return self._lock.epoch

    def describe(self, note: str) -> None:
        self._note = note

    def release(self) -> None:
        if self._lock.holder is self:
            self._lock.holder = None


class MemoryCluster:
    """A `Cluster` without containers: it writes down what it is asked for, and says what it is told to `emit`.

    With `answers` it starts and ends containers at once, as a cluster of unlimited speed would.
    """

    def __init__(self, *, capacity: int | None = None, answers: bool = True) -> None:
        self.running: dict[str, Placement] = {}
        """By container, what was started and has not ended."""
        self.starts: list[Placement] = []
        self.stops: list[tuple[str, float]] = []
        """Container and grace of each stop, in order."""
        self.recalls: list[tuple[str, int]] = []
        """Container and last delivery of each recall, in order; `emit` answers them."""
        self._capacity = capacity
        self._answers = answers
        self._listener: Callable[[ClusterEvent], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def capacity(self) -> int | None:
        return self._capacity

    @property
    def capacity_reason(self) -> str:
        return f"room for {self._capacity} containers in memory" if self._capacity is not None else "no limit"

    async def open(self, listener: Callable[[ClusterEvent], None]) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()

    def check(self, needs: Needs) -> None:
        """It takes everything."""

    def start(self, placement: Placement) -> None:
        self.starts.append(placement)
        self.running[placement.container] = placement
        if self._answers:
            self.emit(ContainerStarted(placement.container, len(self.starts)))

    def stop(self, container: str, grace_s: float) -> None:
        self.stops.append((container, grace_s))
        if self._answers and container in self.running:
            self.emit(ContainerEnded(container, "stopped", ""))

    def recall(self, container: str, up_to: int) -> None:
        self.recalls.append((container, up_to))

    def note(self, function: str, reason: str) -> None:
        """Nobody looks at it from outside."""

    def retire(self, app: str, function: str = "") -> None:
        """Nothing is kept of an app."""

    def may_stop(self, indexes: frozenset[int], idle: frozenset[int]) -> frozenset[int]:
        return idle

    def emit(self, event: ClusterEvent) -> None:
        """Tell the listener on its event loop, after what runs now, as every cluster does."""
        if isinstance(event, ContainerEnded):
            self.running.pop(event.container, None)
        if self._loop is not None and self._listener is not None:
            self._loop.call_soon(self._listener, event)

    async def close(self) -> None:
        for container in list(self.running):
            self.emit(ContainerEnded(container, "stopped", ""))
        await asyncio.sleep(0)
        self._listener = None
