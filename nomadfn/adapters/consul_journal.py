"""The journal in Consul: a key a segment, each written by a fenced transaction. `consul_journal_reader` has the keys.

**Append.** One transaction checks that the lease is still held, that `meta` is the one this leader knows, and
that the number is free. The first keeps an old leader out; the second a duplicate that was delayed until its
segment had been compacted away. An answer that is lost says nothing about the write: the same bytes go out under
the same number again, and where that is taken by then, the key is read and compared.

**Compaction.** The snapshot is written beside what there is; one fenced transaction on `meta` makes it hold; then
what it replaces is deleted. What a leader left behind that died in between, the next compaction deletes.

With a blob store the larger bodies go there and Consul has only their headers, that is, number and digest.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from nomadfn.adapters.consul_journal_reader import (
    PATIENCE_S,
    Header,
    JournalReader,
    Meta,
    Position,
    Snapshot,
    number_of,
)
from nomadfn.adapters.consul_store import (
    TRANSACTION_OPERATIONS,
    VALUE_BYTES,
    ConsulStore,
    Hold,
    Operation,
    Refusal,
    check_index,
    create,
    delete,
    delete_tree,
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
MAX_MOVES = 8
SWEEPS_AT_ONCE = 16
"""Transactions that delete right after a compaction; the rest goes one by one with the appends that follow."""


class ConsulJournal(JournalReader):
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
        super().__init__(store, hold.shard, blobs, patience_s, on_delay)
        self._hold = hold
        self._inline_bytes = INLINE_BYTES if blobs is None else INLINE_BYTES_WITH_BLOBS
        self._blob_prefix = f"{hold.shard.cluster}_{hold.shard.number}_"
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
        self._end, self._mark = self._end_of(self._last)

    def _read_meta(self) -> None:
        """The meta key, made by the first leader that ever opens the journal."""
        found = self._find_meta()
        if found is None:
            operation = create(f"{self._root}meta", msgspec.json.encode(Meta(epoch=self._hold.epoch)))
            self._judge(self._transact([operation]), "the journal was not begun", moved=(1,))
            found = self._find_meta()
        if found is None:
            raise self._damaged("its meta key is gone or cannot be read")
        self._meta, self._meta_index = found
        if self._meta.epoch > self._hold.epoch:
            raise FencedError(f"the journal in Consul was compacted by a later leader, of epoch {self._meta.epoch}.")

    def replay(self, since: Position | None = None) -> Iterator[tuple[int, bytes]]:
        """See `Journal.replay`; `since` a position that `carry` gave, only what was appended after it."""
        if since is None:
            since = self._begin_of(self._meta)
            for body in self._snapshot_bodies(self._meta):
                yield since.number, body
        for position, body in self._after(since, self._last):
            if position.epoch > self._hold.epoch:
                raise self._damaged(f"segment {position.number} is of epoch {position.epoch}, which is yet to come")
            yield position.number, body

    def carry(self, position: Position) -> Position | None:
        """What a standby has read is as good as what is here, up to this position; None where it has to read anew."""
        return self._carry(self._meta, position) if position.number <= self._last else None

    def append(self, body: bytes) -> int:
        number = self._last + 1
        size_bytes = self.size_bytes() + len(body)
        if self.max_bytes is not None and size_bytes > self.max_bytes:
            raise JournalFullError(
                f"the journal in Consul would hold {size_bytes:,} bytes, over its maximum of {self.max_bytes:,}. "
                "Wait until results have expired, set blobs in the cluster's profile (a folder, or an address such as "
                "s3://bucket/prefix), or raise limits.spawn_bytes: each Consul server needs three times that in memory."
            )
        value, mark = self._placed(number, f"parts/{number:012}-", f"{number}_", body, self._end + len(body))
        self._commit(number, value)
        self._last, self._mark = number, mark
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

    def compact(self, snapshot: Iterable[bytes], upto: int, *, repeats: bool = False) -> None:
        """See `Journal.compact`. Raises `ValueError` for an `upto` before the last compaction or after the end."""
        if not self._meta.low - 1 <= upto <= self._last:
            raise ValueError(f"cannot compact up to {upto}: the journal goes from {self._meta.low - 1} to {self._last}")
        name = f"{upto}-{self._hold.epoch}-{secrets.token_hex(4)}"
        bodies = size = 0
        for body in snapshot:
            key = self._snapshot_key(name, bodies)
            value, _ = self._placed(bodies, f"{key.removeprefix(self._root)}/", f"{name}_{bodies}_", body, 0)
            self._call(self._store.put, key, value)
            bodies += 1
            size += len(body)
        end, mark = self._end_of(upto)
        new = Meta(upto + 1, end, mark, self._hold.epoch, Snapshot(name, bodies, size, repeats))
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
                        case [number, _, _] if 0 <= number_of(number, "") < self._meta.low:
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

    # Bodies and where they lie

    def _placed(self, number: int, parts: str, blob: str, body: bytes, end: int) -> tuple[bytes, str]:
        """The value of a key that stands for `body`, and its mark; a large body is first written elsewhere."""
        digest = hashlib.sha256(body).hexdigest()
        header = Header(number, self._hold.epoch, digest, len(body), end, after=self._mark if end else "")
        if len(body) <= self._inline_bytes:
            return msgspec.json.encode(header) + b"\n" + body, header.mark
        if self._blobs is not None:
            header.blob = f"{self._blob_prefix}{blob}{self._hold.epoch}_{digest[:16]}"
            self._call_blobs(self._blobs.put, header.blob, body)
        else:
            header.parts = f"{parts}{self._hold.epoch}-{secrets.token_hex(4)}/"
            for first in range(0, len(body), VALUE_BYTES):
                key, part = f"{self._root}{header.parts}{header.count:06}", body[first : first + VALUE_BYTES]
                self._call(self._store.put, key, part)
                header.count += 1
        return msgspec.json.encode(header) + b"\n", header.mark

    # Consul

    def _end_of(self, number: int) -> tuple[int, str]:
        """The end and the mark of a segment."""
        if number < self._meta.low:
            return self._meta.end, self._meta.mark
        header = self._header_of(f"segment {number}", self._call(self._store.get, self._segment_key(number)))
        return header.end, header.mark

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


def _order_of(snapshot: str) -> tuple[int, ...]:
    """What a snapshot's name says: up to which segment it goes, and in which epoch it was written."""
    numbers = snapshot.split("-")[:2]
    return tuple(map(int, numbers)) if all(number.isdecimal() for number in numbers) else ()
