"""Reading a journal in Consul, with or without the lease: what its keys mean, and whether they are whole.

    meta                       {"low", "end", "snapshot", …}   replaced by each compaction
    segments/<number>          a header, and a small body right behind it
    parts/<segment>/<n>        a large body in pieces, written before the segment that names them
    snapshots/<name>/<n>       the bodies that stand for everything below `low`

A segment never changes, so a standby may read along. How far it has come is a `Position`. It holds on, over
compactions, for as long as what was read is what the journal says: each snapshot that it passes over must say nothing
which stands in no segment, and the last segment that it has read must still be the same (Consul may have been
restored from a backup).
"""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

import msgspec

from nomadfn.adapters.consul_store import ConsulStore, ConsulUnreachableError, Entry, Shard, insist
from nomadfn.exception import ServiceError
from nomadfn.ports import Blobs, JournalError

PATIENCE_S = 600.0
DELAY_S = 1.0
"""A call that has waited for so long is told of."""
REPLAY_KEYS = 100
"""Segments that are read at once."""
FEW = 4
"""So many are asked for one by one."""
BLOBS_AT_ONCE = 20

P = ParamSpec("P")
T = TypeVar("T")


class Header(msgspec.Struct, omit_defaults=True):
    number: int
    epoch: int
    sha256: str
    size: int
    end: int = 0
    """The bytes of all bodies ever appended, up to this one: what is held now is a difference of two ends."""
    parts: str = ""
    count: int = 0
    blob: str = ""
    after: str = ""
    """The `mark` of the segment before it. Numbers come again where Consul was restored from a backup; marks do not."""

    @property
    def mark(self) -> str:
        return self.sha256[:16]


class Snapshot(msgspec.Struct, omit_defaults=True):
    name: str
    bodies: int
    size: int
    repeats: bool = False
    """All that it says stands in segments, too: who has read those needs it not."""


class Meta(msgspec.Struct):
    low: int = 1
    """The first number that counts."""
    end: int = 0
    """The `end` of the segment before it."""
    mark: str = ""
    """The `mark` of that one."""
    epoch: int = 0
    snapshot: Snapshot | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """What of a journal has been read: everything up to segment `number`, which has this epoch, mark and `end`."""

    number: int = 0
    epoch: int = 0
    mark: str = ""
    end: int = 0
    snapshot: str = ""
    """The newest snapshot that this takes the place of."""


class JournalReader:
    """The journal of one shard. While Consul is away a call waits for `patience_s`, or until `close`."""

    def __init__(
        self,
        store: ConsulStore,
        shard: Shard,
        blobs: Blobs | None,
        patience_s: float = PATIENCE_S,
        on_delay: Callable[[str], None] | None = None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._patience_s = patience_s
        self._on_delay = on_delay
        self._root = f"{shard.prefix}journal/"
        self._closed = threading.Event()

    def close(self) -> None:
        """Let go; whoever waits for Consul gets a `JournalError`."""
        self._closed.set()

    def _find_meta(self) -> tuple[Meta, int] | None:
        """The meta key and its index; None before a leader has begun the journal."""
        entry = self._call(self._store.get, f"{self._root}meta")
        if entry is None:
            return None
        try:
            return msgspec.json.decode(entry.value, type=Meta), entry.index
        except msgspec.DecodeError:
            raise self._damaged("its meta key is gone or cannot be read") from None

    def _carry(self, meta: Meta, position: Position) -> Position | None:
        """The position under this meta; None where the journal says something else than what was read."""
        if position.number < meta.low - 1:
            return None
        if position.number == meta.low - 1 and (position.end, position.mark) != (meta.end, meta.mark):
            return None
        name = meta.snapshot.name if meta.snapshot else ""
        if name != position.snapshot:
            if meta.snapshot is None or not meta.snapshot.repeats:
                return None
            position = replace(position, snapshot=name)
        if position.number >= meta.low:
            entry = self._call(self._store.get, self._segment_key(position.number))
            if entry is None:
                return None
            header = self._header_of(f"segment {position.number}", entry)
            if (header.epoch, header.mark, header.end) != (position.epoch, position.mark, position.end):
                return None
        return position

    def _snapshot_bodies(self, meta: Meta) -> Iterator[bytes]:
        name, bodies = (meta.snapshot.name, meta.snapshot.bodies) if meta.snapshot else ("", 0)
        for position in range(bodies):
            what = f"part {position + 1} of {bodies} of the snapshot"
            yield self._body_of(what, position, self._call(self._store.get, self._snapshot_key(name, position)))[1]

    def _begin_of(self, meta: Meta) -> Position:
        """The position of who has read the snapshot and no segment."""
        return Position(meta.low - 1, 0, meta.mark, meta.end, meta.snapshot.name if meta.snapshot else "")

    def _after(self, position: Position, last: int) -> Iterator[tuple[Position, bytes]]:
        """Each segment up to `last`, with the position after it."""
        for header, body in self._segments(position.number + 1, last):
            if header.epoch < position.epoch:
                raise self._damaged(
                    f"segment {header.number} is of epoch {header.epoch}, which cannot be after {position.epoch}"
                )
            if header.after and position.mark and header.after != position.mark:
                raise self._damaged(f"segment {header.number} does not follow segment {position.number}")
            position = replace(position, number=header.number, epoch=header.epoch, mark=header.mark, end=header.end)
            yield position, body

    def _segments(self, low: int, last: int) -> Iterator[tuple[Header, bytes]]:
        """From `low` to `last`. A blob store takes its time for each body, so several are asked for at once."""
        with ThreadPoolExecutor(BLOBS_AT_ONCE if self._blobs is not None else 1) as pool:
            while low <= last:
                entries = list(enumerate(self._chunk(low, last), low))
                for first in range(0, len(entries), BLOBS_AT_ONCE):
                    some = entries[first : first + BLOBS_AT_ONCE]
                    yield from pool.map(lambda one: self._body_of(f"segment {one[0]}", *one), some)
                low += len(entries)

    def _chunk(self, low: int, last: int) -> list[Entry | None]:
        """Some segments from `low` on, with None for what is missing."""
        first = low - low % REPLAY_KEYS
        if last - low < FEW:
            return [self._call(self._store.get, self._segment_key(number)) for number in range(low, last + 1)]
        found = {entry.key: entry for entry in self._call(self._store.below, self._chunk_of(low))}
        return [found.get(self._segment_key(number)) for number in range(low, min(last + 1, first + REPLAY_KEYS))]

    def _body_of(self, what: str, number: int, entry: Entry | None) -> tuple[Header, bytes]:
        """The body for which a key stands, checked."""
        header = self._header_of(what, entry)
        body = entry.value.partition(b"\n")[2] if entry else b""
        if header.blob:
            body = self._get_blob(what, header.blob)
        elif header.parts:
            prefix = f"{self._root}{header.parts}"
            keys = [f"{prefix}{position:06}" for position in range(header.count)]
            parts = [self._call(self._store.get, key) for key in keys]
            body = b"".join(part.value for part in parts if part is not None)
        if header.number != number:
            raise self._damaged(f"{what} says that it is number {header.number}")
        if len(body) != header.size or hashlib.sha256(body).hexdigest() != header.sha256:
            raise self._damaged(f"{what} does not match its sha256")
        return header, body

    def _header_of(self, what: str, entry: Entry | None) -> Header:
        if entry is None:
            raise self._damaged(f"{what} is missing")
        try:
            return msgspec.json.decode(entry.value.partition(b"\n")[0], type=Header)
        except msgspec.DecodeError:
            raise self._damaged(f"{what} has no header that can be read") from None

    def _get_blob(self, what: str, name: str) -> bytes:
        if self._blobs is None:
            raise JournalError(
                f"{what} lies in a blob store, and none is set. "
                "Set blobs in the profile to the one that this cluster used before."
            )
        try:
            return self._call_blobs(self._blobs.get, name)
        except KeyError:
            raise self._damaged(f"the blob {name} of {what} is missing") from None

    def _chunk_of(self, number: int) -> str:
        """What the keys of `REPLAY_KEYS` segments begin with, this one's among them."""
        return self._segment_key(number)[: -len(str(REPLAY_KEYS - 1))]

    def _segment_key(self, number: int) -> str:
        return f"{self._root}segments/{number:012}"

    def _snapshot_key(self, name: str, position: int) -> str:
        return f"{self._root}snapshots/{name}/{position:06}"

    def _numbers(self, kind: str) -> dict[str, int]:
        """The keys of one kind, each with the number of its segment, in order."""
        prefix = f"{self._root}{kind}"
        return {key: number_of(key, prefix) for key in self._call(self._store.keys, prefix)}

    def _call(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Ask Consul, as often as it takes until it answers."""
        return self._retried((ConsulUnreachableError,), functools.partial(call, *args, **kwargs))

    def _call_blobs(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Ask the blob store, likewise. Which of its errors pass, it does not say: all are taken to."""
        return self._retried((ServiceError, OSError), functools.partial(call, *args, **kwargs))

    def _retried(self, errors: tuple[type[Exception], ...], call: Callable[[], T]) -> T:
        """A call that may be made again, as often as it takes; its errors are the journal's."""
        started = time.monotonic()
        delayed = False

        def tell(error: Exception) -> None:
            nonlocal delayed
            if not delayed and self._on_delay is not None and time.monotonic() - started > DELAY_S:
                delayed = True
                self._on_delay(str(error))

        try:
            return insist(call, self._patience_s, self._closed, errors=errors, on_failure=tell)
        except (ServiceError, OSError) as error:
            raise JournalError(f"the journal cannot be used: {error}") from error
        finally:
            if delayed and self._on_delay is not None:
                self._on_delay("")

    def _damaged(self, what: str) -> JournalError:
        return JournalError(
            f"the journal in Consul below {self._root} is damaged: {what}. Restore the keys from a backup "
            f"(`consul snapshot restore`, `consul kv import`), or delete them to start with an empty journal "
            f"(`consul kv delete -recurse {self._root}`); spawned inputs and their results in it are then lost."
        )


def number_of(key: str, prefix: str) -> int:
    """The number of the segment that a key is of or belongs to; -1 where somebody else has put the key there."""
    digits = key.removeprefix(prefix)[:12]
    return int(digits) if digits.isdecimal() else -1
