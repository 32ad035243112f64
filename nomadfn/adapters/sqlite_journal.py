"""The journal in one SQLite file: a row a segment, each with the sha256 of its body.

A segment's number is its row's key. A snapshot stands in a table of its own with the number up to which it
replaces segments, so that one transaction swaps it in and drops what it replaces. Space freed by that is used
again by later segments; when it is far more than what is still held, the file is rewritten without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from nomadfn.adapters.sqlite import Database, FileKind
from nomadfn.ports import JournalError, JournalFullError

GIVE_BACK_BYTES = 32 * 1024 * 1024
"""Less free space than this is kept for later segments."""

_KIND = FileKind(
    name="journal",
    application_id=0x6E66_6E6A,
    version=1,
    schema=(
        "CREATE TABLE segments (number INTEGER PRIMARY KEY, sha256 BLOB NOT NULL, body BLOB NOT NULL)",
        "CREATE TABLE snapshot (position INTEGER PRIMARY KEY, sha256 BLOB NOT NULL, body BLOB NOT NULL)",
        "CREATE TABLE compaction (upto INTEGER NOT NULL, bodies INTEGER NOT NULL)",
        "INSERT INTO compaction VALUES (0, 0)",
    ),
    remedy=(
        "Restore the data folder from a backup, or move this file and its -wal file away to start with an empty "
        "journal; spawned inputs and their results in it are then lost."
    ),
    error=JournalError,
    full_error=JournalFullError,
)


class SqliteJournal:
    """A `Journal` in the file `path`, made when it is not there. Raises `JournalError` when it cannot be used.

    With `max_bytes`, an append that would make the bodies larger than that together raises `JournalFullError`.
    After a `JournalFullError` the journal may be used on; after an input/output error or damage it stays refused.
    """

    def __init__(self, path: str, *, max_bytes: int | None = None) -> None:
        self._database = Database(path, _KIND)
        self._max_bytes = max_bytes
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        rows = self._database.execute("SELECT upto, bodies FROM compaction")
        if len(rows) != 1:
            raise self._damaged("it does not say which snapshot holds")
        self._upto, self._bodies = rows[0]
        first, last = self._database.execute("SELECT min(number), max(number) FROM segments")[0]
        if first is not None and first <= self._upto:
            raise self._damaged(f"segment {first} should have gone with the compaction up to {self._upto}")
        self._last: int = self._upto if last is None else last
        self._size_bytes: int = self._database.execute(
            "SELECT (SELECT coalesce(sum(length(body)), 0) FROM segments)"
            " + (SELECT coalesce(sum(length(body)), 0) FROM snapshot)"
        )[0][0]

    def replay(self) -> Iterator[tuple[int, bytes]]:
        """The snapshot's bodies, each with the number up to which the snapshot goes, then every later segment.

        No statement stays open between two of them, so that a slow reader holds nothing up.
        """
        for position in range(self._bodies):
            rows = self._database.execute("SELECT sha256, body FROM snapshot WHERE position = ?", position)
            yield self._upto, self._checked(f"part {position + 1} of {self._bodies} of the snapshot", rows)
        for number in range(self._upto + 1, self._last + 1):
            rows = self._database.execute("SELECT sha256, body FROM segments WHERE number = ?", number)
            yield number, self._checked(f"segment {number}", rows)

    def append(self, body: bytes) -> int:
        size_bytes = self._size_bytes + len(body)
        if self._max_bytes is not None and size_bytes > self._max_bytes:
            raise JournalFullError(
                f"the journal {self._database.path} would hold {size_bytes:,} bytes, over its maximum of "
                f"{self._max_bytes:,}. Wait until spawned inputs are done and results expire, or raise the maximum."
            )
        number = self._last + 1
        digest = hashlib.sha256(body).digest()
        self._database.execute("INSERT INTO segments VALUES (?, ?, ?)", number, digest, body)
        self._last = number
        self._size_bytes = size_bytes
        return number

    def compact(self, snapshot: Iterable[bytes], upto: int, *, repeats: bool = False) -> None:
        """See `Journal.compact`. Raises `ValueError` for an `upto` before the last compaction or after the end."""
        if not self._upto <= upto <= self._last:
            raise ValueError(f"cannot compact up to {upto}: the journal goes from {self._upto} to {self._last}")
        execute = self._database.execute
        bodies = added = 0
        with self._database.transaction():
            dropped = execute("SELECT coalesce(sum(length(body)), 0) FROM segments WHERE number <= ?", upto)[0][0]
            dropped += execute("SELECT coalesce(sum(length(body)), 0) FROM snapshot")[0][0]
            execute("DELETE FROM snapshot")
            execute("DELETE FROM segments WHERE number <= ?", upto)
            for body in snapshot:
                digest = hashlib.sha256(body).digest()
                execute("INSERT INTO snapshot VALUES (?, ?, ?)", bodies, digest, body)
                bodies += 1
                added += len(body)
            execute("UPDATE compaction SET upto = ?, bodies = ?", upto, bodies)
        self._upto, self._bodies = upto, bodies
        self._size_bytes += added - dropped
        self._give_back()

    def size_bytes(self) -> int:
        """The bytes of all bodies that `replay` would give; the file may be larger."""
        return self._size_bytes

    def segment_count(self) -> int:
        count: int = self._last - self._upto
        return count

    def close(self) -> None:
        self._database.close()

    def _give_back(self) -> None:
        """Return space to the file system where much of the file is free.

        A rewrite costs what is held, so it is made only when twice that and more is free. It needs room of its
        own; where there is none, the free space stays in the file and serves later segments.
        """
        execute = self._database.execute
        page_bytes = execute("PRAGMA page_size")[0][0]
        free_bytes = execute("PRAGMA freelist_count")[0][0] * page_bytes
        held_bytes = execute("PRAGMA page_count")[0][0] * page_bytes - free_bytes
        if free_bytes > GIVE_BACK_BYTES + 2 * held_bytes:
            self._database.attempt("VACUUM")
        self._database.attempt("PRAGMA wal_checkpoint(TRUNCATE)")

    def _checked(self, what: str, rows: list[tuple[bytes, bytes]]) -> bytes:
        if not rows:
            raise self._damaged(f"{what} is missing")
        digest, body = rows[0]
        if hashlib.sha256(body).digest() != digest:
            raise self._damaged(f"{what} does not match its sha256")
        return body

    def _damaged(self, what: str) -> JournalError:
        return JournalError(f"the journal {self._database.path} is damaged: {what}. {_KIND.remedy}")
