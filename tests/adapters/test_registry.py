"""Every registry keeps the contract; the SQLite one also says clearly what is wrong with its file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contract_registry import RegistryContract

from nomadfn.adapters.memory import MemoryRegistry
from nomadfn.adapters.sqlite_journal import SqliteJournal
from nomadfn.adapters.sqlite_registry import SqliteRegistry
from nomadfn.exception import ServiceError
from nomadfn.ports import Registry


def open_memory(folder: Path, before: Registry | None) -> Registry:
    return before or MemoryRegistry()


def open_sqlite(folder: Path, before: Registry | None) -> Registry:
    return SqliteRegistry(str(folder / "registry.db"))


ADAPTERS: dict[str, Callable[[Path, Registry | None], Registry]] = {"memory": open_memory, "sqlite": open_sqlite}


@pytest.fixture(params=ADAPTERS)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Registry | None], Registry]:
    return lambda before: ADAPTERS[request.param](tmp_path, before)


@pytest.fixture
def registry(opener: Callable[[Registry | None], Registry]) -> Iterator[Registry]:
    registry = opener(None)
    yield registry
    registry.close()


@pytest.fixture
def reopen(opener: Callable[[Registry | None], Registry]) -> Callable[[Registry], Registry]:
    def again(registry: Registry) -> Registry:
        registry.close()
        return opener(registry)

    return again


class TestRegistry(RegistryContract):
    pass


def test_a_journal_in_the_place_of_the_registry_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "registry.db")
    SqliteJournal(path).close()
    with pytest.raises(ServiceError, match="is a database, but not a nomadfn registry"):
        SqliteRegistry(path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"missing/registry.db cannot be opened: No such file or directory. Make"):
        SqliteRegistry(str(tmp_path / "missing/registry.db"))


def test_values_stand_in_the_file_as_readable_json(tmp_path: Path) -> None:
    path = str(tmp_path / "registry.db")
    registry = SqliteRegistry(path)
    registry.put("apps/größe", {"name": "größe"})
    registry.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT * FROM entries").fetchall() == [("apps/größe", '{"name": "größe"}')]
    connection.close()


def test_a_damaged_value_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "registry.db")
    registry = SqliteRegistry(path)
    registry.put("apps/thumbs", 1)
    registry._database.execute("UPDATE entries SET value = '{'")
    with pytest.raises(ServiceError, match=r"registry.db is damaged: apps/thumbs is not JSON .* deploy the apps again"):
        registry.get("apps/thumbs")
    registry.close()


def test_on_a_full_disk_a_value_stays_as_it_was(tmp_path: Path) -> None:
    registry = SqliteRegistry(str(tmp_path / "registry.db"))
    registry.put("key", "small")
    registry._database.execute("PRAGMA max_page_count = 4")
    with pytest.raises(ServiceError, match="the disk is full"):
        registry.put("key", "large" * 50_000)
    assert registry.get("key") == "small"
    registry.close()
