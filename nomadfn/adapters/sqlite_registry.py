"""The registry in one SQLite file: a row a key, its value as readable JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from nomadfn.adapters.sqlite import Database, FileKind
from nomadfn.exception import ServiceError

_KIND = FileKind(
    name="registry",
    application_id=0x6E66_6E72,
    version=1,
    schema=("CREATE TABLE entries (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",),
    remedy=(
        "Restore the data folder from a backup, or move this file and its -wal file away and deploy the apps again."
    ),
    error=ServiceError,
    full_error=ServiceError,
)


class SqliteRegistry:
    """A `Registry` in the file `path`, made when it is not there. Raises `ServiceError` when it cannot be used."""

    def __init__(self, path: str) -> None:
        self._database = Database(path, _KIND)

    def get(self, key: str) -> Any | None:
        rows = self._database.execute("SELECT value FROM entries WHERE key = ?", key)
        return self._parse(key, rows[0][0]) if rows else None

    def put(self, key: str, value: Any) -> None:
        """Durable when it returns. Raises `TypeError` or `ValueError` for what is not JSON."""
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        self._database.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", key, text)

    def delete(self, key: str) -> None:
        self._database.execute("DELETE FROM entries WHERE key = ?", key)

    def list(self, prefix: str, on_fault: Callable[[str], None] | None = None) -> dict[str, Any]:
        """Every key that starts with `prefix`, with its value, sorted by key."""
        found: dict[str, Any] = {}
        rows = self._database.execute("SELECT key, value FROM entries WHERE key >= ? ORDER BY key", prefix)
        for key, text in rows:
            if not key.startswith(prefix):
                break
            try:
                found[key] = self._parse(key, text)
            except ServiceError as error:
                if on_fault is None:
                    raise
                on_fault(str(error))
        return found

    def close(self) -> None:
        self._database.close()

    def _parse(self, key: str, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise ServiceError(
                f"the registry {self._database.path} is damaged: {key} is not JSON ({error}). {_KIND.remedy}"
            ) from error
