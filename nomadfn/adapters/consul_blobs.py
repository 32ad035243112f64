"""Blobs in Consul's keys: what a cluster without a blob store has. Room for programs' code, and for nothing large.

blobs/heads/<name>         {"size", "parts", "at"}; a blob is there once this is
blobs/parts/<name>/<n>     its bytes, written before
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
from nomadfn_agent.wire.payload import blob_path, is_blob_name

from nomadfn.adapters.consul_store import VALUE_BYTES, ConsulStore, Hold, Operation, delete, delete_tree, put
from nomadfn.exception import ResourceExhaustedError, ServiceError

MAX_BYTES = 16 * 1024 * 1024
"""Of all blobs together: each Consul server needs about three times that in memory."""


class _Head(msgspec.Struct):
    size: int
    parts: int
    at: float
    """Unix time of the last `put`."""


class ConsulBlobs:
    """`Blobs` of the shard whose lease is held. Raises `ResourceExhaustedError` when they are full."""

    folder = ""
    mark = ""

    def __init__(self, store: ConsulStore, hold: Hold, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._hold = hold
        self._clock = clock
        self._heads = f"{hold.shard.prefix}blobs/heads/"
        self._parts = f"{hold.shard.prefix}blobs/parts/"

    def put(self, name: str, data: bytes) -> None:
        blob_path("", name)  # refuses what is no name
        held = sum(head.size for other, head in self._all().items() if other != name)
        if held + len(data) > MAX_BYTES:
            raise ResourceExhaustedError(
                f"without a blob store code lies in Consul, which would hold {held + len(data):,} bytes of it, over "
                f"the limit of {MAX_BYTES:,}: set blobs in the profile of the cluster to a folder or an address such "
                "as s3://bucket/prefix, or stop apps that are not needed",
                limit="blobs",
                value=held + len(data),
                maximum=MAX_BYTES,
                retry_after_s=60.0,
            )
        count = 0
        for first in range(0, len(data), VALUE_BYTES):
            self._write(put(f"{self._parts}{name}/{count:06}", data[first : first + VALUE_BYTES]))
            count += 1
        self._write(put(self._heads + name, msgspec.json.encode(_Head(len(data), count, self._clock()))))

    @contextmanager
    def writing(self, name: str) -> Iterator[io.BytesIO]:
        """In memory: there is no room for much."""
        buffer = io.BytesIO()
        yield buffer
        self.put(name, buffer.getvalue())

    def get(self, name: str) -> bytes:
        entry = self._store.get(self._heads + name) if is_blob_name(name) else None
        if entry is None:
            raise KeyError(name)
        count = msgspec.json.decode(entry.value, type=_Head).parts
        parts = [self._store.get(f"{self._parts}{name}/{number:06}") for number in range(count)]
        return b"".join(part.value for part in parts if part is not None)

    def parts(self, name: str) -> Iterator[bytes]:
        yield self.get(name)

    def has(self, name: str) -> bool:
        return is_blob_name(name) and self._store.get(self._heads + name) is not None

    def delete(self, name: str) -> None:
        if is_blob_name(name):
            self._write(delete(self._heads + name), delete_tree(f"{self._parts}{name}/"))

    def names(self) -> Iterator[tuple[str, float]]:
        now = self._clock()
        yield from [(name, max(0.0, now - head.at)) for name, head in self._all().items()]

    def _all(self) -> dict[str, _Head]:
        return {
            entry.key.removeprefix(self._heads): msgspec.json.decode(entry.value, type=_Head)
            for entry in self._store.below(self._heads)
        }

    def _write(self, *operations: Operation) -> None:
        """Only while the lease is held: a leader of old shall not take away what a new one needs."""
        if refusals := self._store.transact([self._hold.fence, *operations]):
            raise ServiceError(f"Consul refused to change the blobs of {self._hold.shard}: {refusals[0].what}")
