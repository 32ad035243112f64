"""The journal in Consul's keys: a key a segment, each written by a fenced transaction.

    meta                       {"low", "end", "snapshot", …}   replaced by each compaction
    segments/<number>          a header, and a small body right behind it
    parts/<segment>/<n>        a large body in pieces, written before the segment that names them
    snapshots/<name>/<n>       the bodies that stand for everything below `low`

**Append.** One transaction checks that the lease is still held, that `meta` is the one this leader knows, and
that the number is free. The first keeps an old leader out; the second a duplicate that was delayed until its
segment had been compacted away. An answer that is lost says nothing about the write: the same bytes go out under
the same number again, and where that is taken by then, the key is read and compared.

**Compaction.** The snapshot is written beside what there is; one fenced transaction on `meta` makes it hold; then
what it replaces is deleted. What a leader left behind that died in between, the next compaction deletes.

With a blob store the larger bodies go there and Consul has only their headers, that is, number and digest.
"""

from __future__ import annotations

import functools
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import msgspec

from nomadfn.adapters.consul_store import (
    TRANSACTION_OPERATIONS,
    VALUE_BYTES,
    ConsulStore,
    ConsulUnreachableError,
    Entry,
    Hold,
    Operation,
    Refusal,
    check_index,
    create,
    delete,
    delete_tree,
    insist,
    replace,
)
from nomadfn.exception import Error, ServiceError
from nomadfn.ports import Blobs, FencedError, JournalError, JournalFullError

MAX_BYTES = 64 * 1024 * 1024
"""Bodies that Consul holds at most: each of its servers needs about three times that in memory."""
INLINE_BYTES = 48 * 1024
"""Beyond this the base64 and JSON of a transaction cost Consul more than a second request with plain bytes does."""
INLINE_BYTES_WITH_BLOBS = 512
"""A body smaller than this is little more to Consul than the header that would stand for it."""
PATIENCE_S = 600.0
DELAY_S = 1.0
"""An append that has waited for so long is told of."""
MAX_MOVES = 8
SWEEPS_AT_ONCE = 16
"""Transactions that delete right after a compaction; the rest goes one by one with the appends that follow."""
REPLAY_KEYS = 100
"""Segments that replay reads at once."""
BLOBS_AT_ONCE = 20

P = ParamSpec("P")
T = TypeVar("T")


class _Header(msgspec.Struct, omit_defaults=True):
    number: int
    epoch: int
    sha256: str
    size: int
    end: int = 0
    """The bytes of all bodies ever appended, up to this one: what is held now is a difference of two ends."""
    parts: str = ""
    count: int = 0
    blob: str = ""


class _Snapshot(msgspec.Struct):
    name: str
    bodies: int
    size: int


class _Meta(msgspec.Struct):
    low: int = 1
    """The first number that counts."""
    end: int = 0
    """The `end` of the segment before it."""
    epoch: int = 0
    snapshot: _Snapshot | None = None


class ConsulJournal:
    """The `Journal` of the shard whose lease is held, in Consul.

    While Consul is away an append waits, `patience_s` at most; then it raises `JournalError`, and so it does at once
    when `close` is called meanwhile. `on_delay` is told why when that takes more than a second, and told "" when it
    is over. `max_bytes` bounds the bodies that are held, 64 MiB by default, or none with `blobs`. These should be the
    journal's own: a compaction deletes from them whatever of this shard the journal does not need.
    """

    def __init__(
        self,
        store: ConsulStore,
        hold: Hold,
        *,
        blobs: Blobs | None = None,
        max_bytes: int | None = None,
        patience_s: float = PATIENCE_S,
        on_delay: Callable[[str], None] | None = None,
    ) -> None:
        self.max_bytes = MAX_BYTES if max_bytes is None and blobs is None else max_bytes
        self._store = store
        self._hold = hold
        self._blobs = blobs
        self._patience_s = patience_s
        self._on_delay = on_delay
        self._inline_bytes = INLINE_BYTES if blobs is None else INLINE_BYTES_WITH_BLOBS
        self._root = f"{hold.shard.prefix}journal/"
        self._blob_prefix = f"{hold.shard.cluster}_{hold.shard.number}_"
        self._closed = threading.Event()
        self._doomed: list[Operation] = []
        self._load()

    def _load(self) -> None:
        self._read_meta()
        segments = self._numbers("segments/")
        for key, number in segments.items():
            if number < 0:
                raise self._damaged(f"{key} is not of nomadfn")
        numbers = [number for number in segments.values() if number >= self._meta.low]
        for expected, number in enumerate(numbers, self._meta.low):
            if number != expected:
                raise self._damaged(f"segment {expected} is missing, and segment {number} is there")
        self._last = self._meta.low - 1 + len(numbers)
        self._end = self._end_of(self._last)

    def _read_meta(self) -> None:
        """The meta key, made by the first leader that ever opens the journal."""
        key = f"{self._root}meta"
        entry = self._call(self._store.get, key)
        if entry is None:
            operation = create(key, msgspec.json.encode(_Meta(epoch=self._hold.epoch)))
            self._judge(self._transact([operation]), "the journal was not begun", moved=(1,))
            entry = self._call(self._store.get, key)
        try:
            self._meta = msgspec.json.decode(entry.value if entry else b"", type=_Meta)
        except msgspec.DecodeError:
            raise self._damaged("its meta key is gone or cannot be read") from None
        self._meta_index = entry.index if entry else 0
        if self._meta.epoch > self._hold.epoch:
            raise FencedError(f"the journal in Consul was compacted by a later leader, of epoch {self._meta.epoch}.")

    def replay(self) -> Iterator[tuple[int, bytes]]:
        snapshot, low, last = self._meta.snapshot, self._meta.low, self._last
        name, bodies = (snapshot.name, snapshot.bodies) if snapshot else ("", 0)
        for position in range(bodies):
            what = f"part {position + 1} of {bodies} of the snapshot"
            entry = self._call(self._store.get, self._snapshot_key(name, position))
            yield low - 1, self._body_of(what, position, entry)[1]
        epoch = 0
        for header, body in self._segments(low, last):
            if not epoch <= header.epoch <= self._hold.epoch:
                raise self._damaged(f"segment {low} is of epoch {header.epoch}, which cannot be after {epoch}")
            epoch = header.epoch
            yield low, body
            low += 1

    def _segments(self, low: int, last: int) -> Iterator[tuple[_Header, bytes]]:
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
        shared = self._segment_key(low)[: -len(str(REPLAY_KEYS - 1))]
        found = {entry.key: entry for entry in self._call(self._store.below, shared)}
        return [found.get(self._segment_key(number)) for number in range(low, min(last + 1, first + REPLAY_KEYS))]

    def append(self, body: bytes) -> int:
        number = self._last + 1
        size_bytes = self.size_bytes() + len(body)
        if self.max_bytes is not None and size_bytes > self.max_bytes:
            raise JournalFullError(
                f"the journal in Consul would hold {size_bytes:,} bytes, over its maximum of {self.max_bytes:,}. "
                "Wait until results have expired, set blobs in the cluster's profile (a folder, or an address such as "
                "s3://bucket/prefix), or raise limits.spawn_bytes: each Consul server needs three times that in memory."
            )
        value = self._placed(number, f"parts/{number:012}-", f"{number}_", body, self._end + len(body))
        self._commit(number, value)
        self._last = number
        self._end += len(body)
        self._sweep(1)
        return number

    def _commit(self, number: int, value: bytes) -> None:
        """Make the segment durable under its number, once, whatever becomes of the answers."""
        key = self._segment_key(number)
        for _ in range(MAX_MOVES):
            moved = check_index(f"{self._root}meta", self._meta_index)
            refusals = self._transact([moved, create(key, value)])
            self._judge(refusals, f"segment {number} was not written", moved=(1, 2))
            if not refusals:
                return
            entry = self._call(self._store.get, key)
            if entry is not None and entry.value == value:
                return  # an earlier try had been applied, and its answer was lost
            if entry is not None:
                raise JournalError(f"segment {number} was not written: another one stands in its place in Consul.")
            self._read_meta()
            if self._meta.low > number:
                raise JournalError(f"segment {number} was not written: the journal was compacted beyond it meanwhile.")
        raise JournalError(
            f"segment {number} was not written: its journal's meta key in Consul is changed all the time."
        )

    def compact(self, snapshot: Iterable[bytes], upto: int) -> None:
        """See `Journal.compact`. Raises `ValueError` for an `upto` before the last compaction or after the end."""
        if not self._meta.low - 1 <= upto <= self._last:
            raise ValueError(f"cannot compact up to {upto}: the journal goes from {self._meta.low - 1} to {self._last}")
        name = f"{upto}-{self._hold.epoch}-{secrets.token_hex(4)}"
        bodies = size = 0
        for body in snapshot:
            key = self._snapshot_key(name, bodies)
            value = self._placed(bodies, f"{key.removeprefix(self._root)}/", f"{name}_{bodies}_", body, 0)
            self._call(self._store.put, key, value)
            bodies += 1
            size += len(body)
        new = _Meta(upto + 1, self._end_of(upto), self._hold.epoch, _Snapshot(name, bodies, size))
        value = msgspec.json.encode(new)
        refusals = self._transact([replace(f"{self._root}meta", value, self._meta_index)])
        self._judge(refusals, "the journal was not compacted", moved=(1,))
        self._read_meta()
        if self._meta != new:
            raise JournalError("the journal was not compacted: its meta key in Consul was changed by somebody else.")
        self._doomed = self._unneeded()
        self._sweep(SWEEPS_AT_ONCE)
        if self._blobs is not None:
            self._sweep_blobs(self._blobs)

    def _unneeded(self) -> list[Operation]:
        """The deletions of all that nothing refers to."""
        doomed = []
        for kind in ("segments/", "parts/"):
            doomed += [delete(key) for key, number in self._numbers(kind).items() if 0 <= number < self._meta.low]
        kind = f"{self._root}snapshots/"
        trees = self._call(self._store.keys, kind, "/")
        return doomed + [delete_tree(tree) for tree in trees if self._is_replaced(tree[len(kind) : -1])]

    def _sweep(self, transactions: int) -> None:
        """Delete some of what is not needed. Fenced: a leader of old must not delete what a new one has written.

        It is tried once: what stays is found by the next compaction.
        """
        most = TRANSACTION_OPERATIONS - 1
        for _ in range(transactions):
            batch, self._doomed = self._doomed[:most], self._doomed[most:]
            if not batch:
                return
            try:
                if not self._store.transact([self._hold.fence, *batch]):
                    continue
            except ServiceError:
                pass
            self._doomed = []

    def _sweep_blobs(self, blobs: Blobs) -> None:
        """No fence holds a blob store back, so this takes only what no later leader can need either."""
        try:
            for name, _age_s in list(blobs.names()):
                if name.startswith(self._blob_prefix):
                    match name.removeprefix(self._blob_prefix).split("_"):
                        case [number, _, _] if 0 <= _number_of(number, "") < self._meta.low:
                            blobs.delete(name)
                        case [snapshot, _, _, _] if self._is_replaced(snapshot):
                            blobs.delete(name)
        except (Error, OSError):
            pass  # the compaction is done; the next one deletes what is left

    def _is_replaced(self, snapshot: str) -> bool:
        """Whether a snapshot's name is that of an older one than the one that holds, or of a try beside it."""
        current = self._meta.snapshot.name if self._meta.snapshot else ""
        return snapshot != current and () < _order_of(snapshot) <= _order_of(current)

    def size_bytes(self) -> int:
        """The bytes of all bodies that `replay` would give, wherever they lie."""
        return self._end - self._meta.end + (self._meta.snapshot.size if self._meta.snapshot else 0)

    def segment_count(self) -> int:
        """Segments since the last compaction: with a blob store, what is in Consul grows with their number."""
        return self._last - self._meta.low + 1

    def close(self) -> None:
        """Let go; an append of another thread that waits for Consul ends with a `JournalError`."""
        self._closed.set()

    # Bodies and where they lie

    def _placed(self, number: int, parts: str, blob: str, body: bytes, end: int) -> bytes:
        """The value of a key that stands for `body`; a large one is first written elsewhere, under its own name."""
        digest = hashlib.sha256(body).hexdigest()
        header = _Header(number, self._hold.epoch, digest, len(body), end)
        if len(body) <= self._inline_bytes:
            return msgspec.json.encode(header) + b"\n" + body
        if self._blobs is not None:
            header.blob = f"{self._blob_prefix}{blob}{self._hold.epoch}_{digest[:16]}"
            self._call_blobs(self._blobs.put, header.blob, body)
        else:
            header.parts = f"{parts}{self._hold.epoch}-{secrets.token_hex(4)}/"
            for first in range(0, len(body), VALUE_BYTES):
                key, part = f"{self._root}{header.parts}{header.count:06}", body[first : first + VALUE_BYTES]
                self._call(self._store.put, key, part)
                header.count += 1
        return msgspec.json.encode(header) + b"\n"

    def _body_of(self, what: str, number: int, entry: Entry | None) -> tuple[_Header, bytes]:
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

    def _header_of(self, what: str, entry: Entry | None) -> _Header:
        if entry is None:
            raise self._damaged(f"{what} is missing")
        try:
            return msgspec.json.decode(entry.value.partition(b"\n")[0], type=_Header)
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

    # Consul

    def _segment_key(self, number: int) -> str:
        return f"{self._root}segments/{number:012}"

    def _snapshot_key(self, name: str, position: int) -> str:
        return f"{self._root}snapshots/{name}/{position:06}"

    def _numbers(self, kind: str) -> dict[str, int]:
        """The keys of one kind, each with the number of its segment, in order."""
        prefix = f"{self._root}{kind}"
        return {key: _number_of(key, prefix) for key in self._call(self._store.keys, prefix)}

    def _end_of(self, number: int) -> int:
        if number < self._meta.low:
            return self._meta.end
        return self._header_of(f"segment {number}", self._call(self._store.get, self._segment_key(number))).end

    def _transact(self, operations: Sequence[Operation]) -> list[Refusal]:
        return self._call(self._store.transact, [self._hold.fence, *operations])

    def _judge(self, refusals: Sequence[Refusal], what: str, moved: Sequence[int]) -> None:
        """Raise for a refusal other than that of the operations `moved`, whose reason the caller looks up."""
        for refusal in refusals:
            if refusal.operation == 0:
                raise FencedError(
                    f"{what}: {self._hold.shard} is not led from here any more; epoch {self._hold.epoch} is over."
                )
            if refusal.operation not in moved:
                raise JournalError(f"{what}: Consul refused it ({refusal.what}).")

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


def _number_of(key: str, prefix: str) -> int:
    """The number of the segment that a key is of or belongs to; -1 where somebody else has put the key there."""
    digits = key.removeprefix(prefix)[:12]
    return int(digits) if digits.isdecimal() else -1


def _order_of(snapshot: str) -> tuple[int, ...]:
    """What a snapshot's name says: up to which segment it goes, and in which epoch it was written."""
    numbers = snapshot.split("-")[:2]
    return tuple(map(int, numbers)) if all(number.isdecimal() for number in numbers) else ()
