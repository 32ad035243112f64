"""One SQLite file of nomadfn: opened for one process alone, every commit synced, every error in words.

The journal and the registry stand on it. WAL with `synchronous=FULL` makes a commit one fsync;
`locking_mode=EXCLUSIVE` keeps a second process out even where the lease was lost.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any

import msgspec

PAGE_BYTES = 16 * 1024
"""Large bodies are written twice as fast as with SQLite's 4 KiB, and small ones cost one page either way."""
CHECKPOINT_BYTES = 16 * 1024 * 1024
"""The write-ahead file is folded into the main file at this size."""
BUSY_TIMEOUT_S = 2.0


class FileKind(msgspec.Struct, frozen=True):
    """What a database file is: its name in messages, its marks in the file's head, its tables, and its errors."""

    name: str
    application_id: int
    version: int
    schema: tuple[str, ...]
    remedy: str
    """What to do when the file is damaged."""
    error: type[Exception]
    full_error: type[Exception]


class Database:
    """An open file. Any thread may use it; they take turns."""

    def __init__(self, path: str, kind: FileKind) -> None:
        self.path = os.path.abspath(path)
        self.kind = kind
        self._broken = ""
        self._turn = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass  # not opened here: closing it again would drop the locks that this process may have on it
        except OSError as error:
            raise kind.error(
                f"the {kind.name} {self.path} cannot be opened: {error.strerror}. "
                "Make its folder and let this user write to it, or choose another data folder."
            ) from error
        try:
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._prepare()
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.Error):
                raise self._explain(error) from error
            raise

    def _prepare(self) -> None:
        connection = self._open_connection()
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        self._check_marks(connection)
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise self.kind.error(
                f"the {self.kind.name} {self.path} cannot have a write-ahead log here (SQLite says {mode!r}). "
                "Choose a data folder on a local disk."
            )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_BYTES // PAGE_BYTES}")
        connection.execute(f"PRAGMA journal_size_limit={2 * CHECKPOINT_BYTES}")
        connection.execute("BEGIN IMMEDIATE")  # takes the exclusive lock now, not at the first write
        if not connection.execute("PRAGMA user_version").fetchone()[0]:
            for statement in self.kind.schema:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={self.kind.application_id}")
            connection.execute(f"PRAGMA user_version={self.kind.version}")
        connection.execute("COMMIT")

    def _check_marks(self, connection: sqlite3.Connection) -> None:
        application_id = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if (application_id, version, tables) == (0, 0, 0):
            return
        if application_id != self.kind.application_id:
            raise self.kind.error(
                f"{self.path} is a database, but not a nomadfn {self.kind.name}. Choose another data folder."
            )
        if version > self.kind.version:
            raise self.kind.error(
                f"the {self.kind.name} {self.path} was written by a newer nomadfn (format {version}; this one knows "
                f"up to {self.kind.version}). Install that version again, or choose another data folder."
            )

    def execute(self, sql: str, *values: Any) -> list[Any]:
        """Run one statement and return its rows; outside `transaction` it is durable when this returns."""
        with self._turn:
            connection = self._open_connection()
            try:
                return connection.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise self._explain(error) from error

    def attempt(self, sql: str) -> None:
        """Run a statement that is only of use, such as one that tidies up: where it fails nothing has changed."""
        with self._turn, contextlib.suppress(sqlite3.Error):
            self._open_connection().execute(sql).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is executed inside is durable at the end, or, when anything is raised, was never there."""
        with self._turn:
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                if self._connection is not None and self._connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Fold the write-ahead file into the main file and let go of both. Closing twice is no error."""
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open_connection(self) -> sqlite3.Connection:
        if self._broken:
            raise self.kind.error(self._broken)
        if self._connection is None:
            raise self.kind.error(f"the {self.kind.name} {self.path} is closed.")
        return self._connection

    def _explain(self, error: sqlite3.Error) -> Exception:
        """The error in words; after one that leaves the file's state unknown, every later call gets it again."""
        subject = f"the {self.kind.name} {self.path}"
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        match code:
            case sqlite3.SQLITE_FULL:
                return self.kind.full_error(
                    f"{subject} cannot grow: the disk is full. Free some space on it, then try again."
                )
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return self.kind.error(
                    f"{subject} is in use by another process. End that one first, or choose another data folder."
                )
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                return self.kind.error(
                    f"{subject} cannot be written ({error}). Let this user write to it and to its folder, "
                    "or choose another data folder."
                )
            case sqlite3.SQLITE_NOTADB:
                text = f"{subject} is damaged or no such file at all: {error}. {self.kind.remedy}"
            case sqlite3.SQLITE_CORRUPT:
                text = f"{subject} is damaged: {error}. {self.kind.remedy}"
            case sqlite3.SQLITE_IOERR:
                text = f"{subject} had an input/output error ({error}). Check the disk, then start again."
            case _:
                return self.kind.error(f"{subject}: {error}.")
        self._broken = text
        return self.kind.error(text)
