"""The registry as readable JSON below `nomadfn/<cluster>/` in Consul.

People and Terraform may write there, too (`consul kv put nomadfn/prod/overrides/…`): `watch` tells what has
changed, whoever changed it. What the leader writes is fenced by its lease.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from nomadfn.adapters.consul_store import (
    VALUE_BYTES,
    ConsulStore,
    Entry,
    Hold,
    Operation,
    Shard,
    delete,
    get_tree,
    insist,
    put,
)
from nomadfn.exception import ConflictError, ServiceError

PATIENCE_S = 10.0
"""How long Consul may be away while a value is read or written."""
WATCH_S = 2.0
"""A watch asks again after so long; what changes meanwhile is told at once."""
JOIN_S = 10.0
LEAST_S = 0.1
"""A watch asks no more often than this: below a prefix without keys Consul reports every write there is."""


class ConsulRegistry:
    """A `Registry` of the shard's cluster. With `hold`, what is written is refused once that lease is lost.

    Raises `ServiceError` where Consul refuses or cannot be reached, and for a value over 350 KiB or one that is no
    JSON, and `ConflictError` when another control service leads.
    """

    def __init__(self, store: ConsulStore, shard: Shard, hold: Hold | None = None) -> None:
        self._store = store
        self._root = shard.registry
        self._hold = hold
        self._closed = threading.Event()
        self._watches: list[threading.Thread] = []

    def get(self, key: str) -> Any | None:
        # A tree, since Consul takes it for no error when that is empty.
        for entry in self._read(key):
            if entry.key == self._root + key:
                return self._parse(entry)
        return None

    def put(self, key: str, value: Any) -> None:
        """Durable when it returns. Raises `TypeError` or `ValueError` for what is not JSON."""
        text = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        if len(text) > VALUE_BYTES:
            raise ServiceError(
                f"{self._root}{key} would have {len(text):,} bytes; Consul takes {VALUE_BYTES:,} at once. "
                "Make the app's functions or their options smaller."
            )
        self._write(put(self._root + key, text))

    def delete(self, key: str) -> None:
        self._write(delete(self._root + key))

    def list(self, prefix: str, on_fault: Callable[[str], None] | None = None) -> dict[str, Any]:
        """Every key that starts with `prefix`, with its value, sorted by key."""
        found, faults = self._parsed(self._read(prefix))
        for error in faults.values():
            if on_fault is None:
                raise error
            on_fault(str(error))
        return found

    def watch(
        self,
        prefix: str,
        on_change: Callable[[dict[str, Any]], None],
        on_fault: Callable[[str], None] | None = None,
        *,
        wait_s: float = WATCH_S,
    ) -> None:
        """Call `on_change` with all that `list(prefix)` would give, now and after every change, until `close`.

        The calls come from a thread of the registry. A key whose value is no JSON any more keeps the one that it had;
        that is told to `on_fault`, as is that Consul cannot be asked, once for each time. `prefix` ends with a slash;
        `close` may take up to `wait_s`.
        """
        thread = threading.Thread(
            target=self._watch, args=(prefix, on_change, on_fault, wait_s), name="consul-watch", daemon=True
        )
        self._watches.append(thread)
        thread.start()

    def close(self) -> None:
        """End the watches. The store stays open: others use it, too."""
        self._closed.set()
        for thread in self._watches:
            if thread is not threading.current_thread():
                thread.join(JOIN_S)
        self._watches.clear()

    def _watch(
        self,
        prefix: str,
        on_change: Callable[[dict[str, Any]], None],
        on_fault: Callable[[str], None] | None,
        wait_s: float,
    ) -> None:
        index = 0
        known: dict[str, Any] | None = None
        faults: tuple[str, ...] = ()
        while not self._closed.is_set():
            asked_at = time.monotonic()
            before = faults
            try:
                index, entries = self._store.wait_below(self._root + prefix, index, wait_s)
                found, broken = self._parsed(entries)
                found |= {key: known[key] for key in broken if known and key in known}
                faults = tuple(map(str, broken.values()))
                if found != known and not self._closed.is_set():
                    known = found
                    on_change(dict(found))
            except ServiceError as error:
                index, faults = 0, (str(error),)
            for fault in faults:
                if fault not in before and on_fault is not None:
                    on_fault(fault)
            self._closed.wait(max(0.0, asked_at + LEAST_S - time.monotonic()))

    def _parsed(self, entries: Sequence[Entry]) -> tuple[dict[str, Any], dict[str, ServiceError]]:
        """The values by key, and what is wrong with those that are none."""
        found: dict[str, Any] = {}
        broken: dict[str, ServiceError] = {}
        for entry in entries:
            key = entry.key.removeprefix(self._root)
            try:
                found[key] = self._parse(entry)
            except ServiceError as error:
                broken[key] = error
        return found, broken

    def _read(self, prefix: str) -> Sequence[Entry]:
        return insist(lambda: self._store.read(get_tree(self._root + prefix)), PATIENCE_S, self._closed)

    def _write(self, operation: Operation) -> None:
        operations = [self._hold.fence, operation] if self._hold else [operation]
        refusals = insist(lambda: self._store.transact(operations), PATIENCE_S, self._closed)
        if refusals and self._hold:
            raise ConflictError(
                f"{self._hold.shard} is not led from here any more: the change was not made. "
                "Try again: the new leader will make it."
            )
        if refusals:
            raise ServiceError(f"Consul refused to change {operation['KV']['Key']}: {refusals[0].what}.")

    def _parse(self, entry: Entry) -> Any:
        try:
            return json.loads(entry.value)
        except ValueError as error:
            raise ServiceError(
                f"{entry.key} in Consul is not JSON ({error}). Correct it with `consul kv put`, or delete it."
            ) from None
