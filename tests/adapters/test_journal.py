"""Every journal keeps the contract; the SQLite one also says clearly what is wrong with its file."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from contract_journal import JournalContract, JournalWorld

from nomadfn.adapters import sqlite_journal
from nomadfn.adapters.memory import MemoryJournal
from nomadfn.adapters.sqlite import CHECKPOINT_BYTES
from nomadfn.adapters.sqlite_journal import SqliteJournal
from nomadfn.ports import Journal, JournalError, JournalFullError


class MemoryWorld:
    def __init__(self, folder: Path) -> None: ...

    def open(self, max_bytes: int | None = None) -> Journal:
        return MemoryJournal(max_bytes=max_bytes)

    def reopen(self, journal: Journal) -> Journal:
        journal.close()
        return journal

    crash = reopen


class SqliteWorld:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = itertools.count()
        self.paths: dict[int, Path] = {}

    def open(self, max_bytes: int | None = None) -> Journal:
        return self._open(self.folder / f"{next(self.count)}.db", max_bytes)

    def reopen(self, journal: Journal) -> Journal:
        journal.close()
        return self._open(self.paths.pop(id(journal)))

    def crash(self, journal: Journal) -> Journal:
        """A copy of the files as they are is what a killed process leaves behind."""
        path, copy = self.paths.pop(id(journal)), self.folder / f"{next(self.count)}.db"
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        journal.close()
        return self._open(copy)

    def _open(self, path: Path, max_bytes: int | None = None) -> Journal:
        journal = SqliteJournal(str(path), max_bytes=max_bytes)
        self.paths[id(journal)] = path
        return journal


WORLDS: dict[str, Callable[[Path], JournalWorld]] = {"memory": MemoryWorld, "sqlite": SqliteWorld}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> JournalWorld:
    return WORLDS[request.param](tmp_path)


class TestJournal(JournalContract):
    pass


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "journal.db")


def filled(path: str, count: int = 3) -> None:
    journal = SqliteJournal(path)
    for number in range(1, count + 1):
        journal.append(f"body {number} ".encode() * 100)
    journal.compact([b"the snapshot " * 100], 1)
    journal.close()


def replayed(path: str) -> list[tuple[int, bytes]]:
    with contextlib.closing(SqliteJournal(path)) as journal:
        return list(journal.replay())


def changed(path: str, sql: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(sql)
    connection.close()


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("UPDATE segments SET body = zeroblob(7) WHERE number = 3", "segment 3 does not match its sha256"),
        ("DELETE FROM segments WHERE number = 2", "segment 2 is missing"),
        ("UPDATE snapshot SET body = zeroblob(7)", "part 1 of 1 of the snapshot does not match its sha256"),
        ("DELETE FROM snapshot", "part 1 of 1 of the snapshot is missing"),
        ("DELETE FROM compaction", "which snapshot holds"),
        ("UPDATE compaction SET upto = 2", "segment 2 should have gone"),
    ],
)
def test_damage_is_named_with_the_file_the_segment_and_what_to_do(path: str, sql: str, what: str) -> None:
    filled(path)
    changed(path, sql)
    with pytest.raises(JournalError, match=what) as caught:
        replayed(path)
    assert path in str(caught.value)
    assert "backup" in str(caught.value)


def test_a_flipped_bit_of_a_body_is_found_at_replay(path: str) -> None:
    filled(path)
    content = bytearray(Path(path).read_bytes())
    content[content.index(b"body 3 body 3") + 5] ^= 1
    Path(path).write_bytes(content)
    with pytest.raises(JournalError, match="segment 3 does not match"):
        replayed(path)


def test_a_file_whose_pages_are_overwritten_is_damage_and_not_a_crash(path: str) -> None:
    filled(path)
    content = bytearray(Path(path).read_bytes())
    content[16384:] = os.urandom(len(content) - 16384)
    Path(path).write_bytes(content)
    with pytest.raises(JournalError, match="damaged"):
        replayed(path)


def test_a_journal_of_a_newer_format_is_refused_and_left_alone(path: str) -> None:
    filled(path)
    changed(path, "PRAGMA user_version = 2")
    before = Path(path).read_bytes()
    with pytest.raises(JournalError, match=r"newer nomadfn \(format 2; this one knows up to 1\)"):
        SqliteJournal(path)
    assert Path(path).read_bytes() == before


def test_a_database_of_something_else_is_refused_and_left_alone(path: str) -> None:
    changed(path, "CREATE TABLE recipes (name TEXT)")
    before = Path(path).read_bytes()
    with pytest.raises(JournalError, match="is a database, but not a nomadfn journal"):
        SqliteJournal(path)
    assert Path(path).read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: str) -> None:
    Path(path).write_text("dear diary, " * 1000)
    with pytest.raises(JournalError, match="not a database"):
        SqliteJournal(path)
    assert Path(path).read_text() == "dear diary, " * 1000


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"missing/journal.db cannot be opened: No such file or directory"):
        SqliteJournal(str(tmp_path / "missing/journal.db"))


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be written"):
        SqliteJournal(str(tmp_path))


def test_a_second_opening_is_refused_while_the_first_lasts(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nomadfn.adapters.sqlite.BUSY_TIMEOUT_S", 0.05)
    journal = SqliteJournal(path)
    with pytest.raises(JournalError, match="in use by another process"):
        SqliteJournal(path)
    program = "import sys; from nomadfn.adapters.sqlite_journal import SqliteJournal; SqliteJournal(sys.argv[1])"
    elsewhere = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=60)
    assert "in use by another process" in elsewhere.stderr
    journal.append(b"the first goes on")
    journal.close()
    SqliteJournal(path).close()


def test_a_closed_journal_says_so(path: str) -> None:
    journal = SqliteJournal(path)
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="is closed"):
        journal.append(b"late")


def test_only_its_user_can_read_the_file(path: str) -> None:
    journal = SqliteJournal(path)
    journal.append(b"secret")
    modes = {name: os.stat(name).st_mode & 0o777 for name in (path, f"{path}-wal")}
    journal.close()
    assert set(modes.values()) == {0o600}


def test_another_thread_than_the_one_that_opened_it_may_use_it(path: str) -> None:
    journal = SqliteJournal(path)
    numbers: list[int] = []
    thread = Thread(target=lambda: numbers.append(journal.append(b"from a thread")))
    thread.start()
    thread.join()
    journal.close()
    assert numbers == [1]


@pytest.fixture
def limited(path: str) -> Iterator[SqliteJournal]:
    """A journal whose file may not grow beyond 40 pages, as on a full disk."""
    journal = SqliteJournal(path)
    journal._database.execute("PRAGMA max_page_count = 40")
    yield journal
    journal.close()


def test_on_a_full_disk_an_append_is_absent_and_later_ones_succeed_once_there_is_room(
    limited: SqliteJournal, path: str
) -> None:
    limited.append(b"first")
    with pytest.raises(JournalFullError, match=f"{path} cannot grow: the disk is full. Free some space"):
        limited.append(bytes(2_000_000))
    assert list(limited.replay()) == [(1, b"first")]
    assert limited.append(b"second") == 2
    limited.close()
    assert replayed(path) == [(1, b"first"), (2, b"second")]


def test_on_a_full_disk_a_compaction_leaves_everything_as_it_was(limited: SqliteJournal) -> None:
    limited.append(b"first")
    with pytest.raises(JournalFullError):
        limited.compact(itertools.repeat(bytes(100_000), 20), 1)
    assert list(limited.replay()) == [(1, b"first")]
    limited.compact([b"small"], 1)
    assert list(limited.replay()) == [(1, b"small")]


def test_space_is_given_back_once_far_more_is_free_than_held(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_journal, "GIVE_BACK_BYTES", 1_000_000)
    journal = SqliteJournal(path)
    for _ in range(100):
        journal.append(bytes(100_000))
    journal.compact([b"nothing much"], 99)
    used = sum(os.path.getsize(name) for name in (path, f"{path}-wal"))
    assert journal.size_bytes() == 100_000 + len(b"nothing much")
    assert used < 500_000
    assert [number for number, _ in journal.replay()] == [99, 100]
    journal.close()


def test_the_files_stay_in_proportion_to_what_is_held_over_many_compactions(path: str) -> None:
    journal = SqliteJournal(path)
    sizes = []
    for _ in range(60):
        for _ in range(10):
            number = journal.append(bytes(100_000))
        journal.compact([bytes(1_000_000)], number)
        sizes.append(sum(os.path.getsize(name) for name in (path, f"{path}-wal")))
    journal.close()
    assert max(sizes) < 8 * 1_000_000


def test_the_write_ahead_file_stays_bounded_however_much_is_appended(path: str) -> None:
    journal = SqliteJournal(path)
    sizes = []
    for _ in range(60):
        journal.append(bytes(1_000_000))
        sizes.append(os.path.getsize(f"{path}-wal"))
    journal.close()
    assert max(sizes) < 2 * CHECKPOINT_BYTES
