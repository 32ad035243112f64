"""What can be asked of a `Dict` by name. What is told of one is durable: nobody has read what a crash takes back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from nomadfn_agent import wire

from nomadfn.control.tokens import Identity
from nomadfn.core import dicts
from nomadfn.core.shared import Entry, SharedDict
from nomadfn.exception import InvalidError

if TYPE_CHECKING:
    from nomadfn.control.operations import Operations
    from nomadfn.control.service import Service

ID = re.compile(r"di-[A-Za-z0-9]{22}")
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
CODECS = (wire.PICKLE, wire.PICKLE | wire.REF)


class DictOperations:
    """A part of `Operations`, with the same form of a method. Whoever has a token may use every Dict."""

    def __init__(self, service: Service, operations: Operations) -> None:
        self._service = service
        self._state = service.core.state
        for name, operation in {
            "dict.open": self._open,
            "dict.list": self._list,
            "dict.drop": self._drop,
            "dict.put": self._put,
            "dict.get": self._get,
            "dict.pop": self._pop,
            "dict.len": self._len,
            "dict.clear": self._clear,
            "dict.page": self._page,
        }.items():
            operations.add(name, operation)

    async def _durably(self, number: int) -> None:
        self._service.poke()
        await self._service.journal_reached(number)

    def _find(self, body: dict[str, Any]) -> SharedDict:
        return dicts.find(self._state, str(body["dict"]))

    async def _open(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        """One by its `name`, or a new one without; `create` it under `id` where it is missing."""
        name, create = str(body.get("name", "")), bool(body.get("create"))
        if "id" not in body and not name:
            return _described(self._find(body))
        if name and not NAME.fullmatch(name):
            raise InvalidError(f"{name!r} cannot name a Dict: use 1 to 64 letters, digits, '-', '_' and '.'")
        if not create and name:
            found = dicts.find_named(self._state, name)
        else:
            id = str(body["id"])
            if not ID.fullmatch(id):
                raise InvalidError(f"{id[:64]!r} is not the id of a Dict")
            if not name and not session:
                raise InvalidError("a Dict without a name belongs to a session; give it a name")
            fresh = {"allow_existing": bool(body.get("allow_existing", True))}
            found = dicts.make(self._state, self._service.now(), id, name, "" if name else session, **fresh)
        await self._durably(found.number)
        return _described(found)

    async def _list(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        named = [one for one in self._state.dicts.values() if one.name]
        return {"found": [_described(one) for one in sorted(named, key=lambda one: one.created, reverse=True)]}

    async def _drop(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        dicts.drop(self._state, self._find(body))
        await self._durably(self._state.record_number)
        return {}

    async def _put(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        found, codecs = self._find(body), [int(one) for one in body["codecs"]]
        if set(codecs) - set(CODECS):
            raise InvalidError("the values of a Dict are pickles, or references to them")
        keys, values = [bytes(one) for one in body["keys"]], [bytes(one) for one in body["values"]]
        if sum(map(len, values)) > 2 * wire.MAX_FRAME_BYTES:
            raise InvalidError("these values are too many bytes at once: put large ones into the blob store")
        now, absent = self._service.now(), bool(body.get("absent"))
        written = dicts.put(self._state, now, found, keys, values, codecs, str(body["token"]), absent=absent)
        await self._durably(found.number)
        return {"written": written}

    async def _get(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        found = self._find(body)
        entries = dicts.get(self._state, self._service.now(), found, [bytes(body["key"])])
        await self._durably(found.number)
        return {"found": entries[0] is not None, **_columns([] if body.get("bare") else entries)}

    async def _pop(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        found = self._find(body)
        taken = dicts.remove(self._state, self._service.now(), found, bytes(body["key"]), str(body["token"]))
        await self._durably(found.number)
        entry = None if taken is None else Entry(*taken, 0.0)
        return {"found": taken is not None, **_columns([entry])}

    async def _len(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        found = self._find(body)
        length = len(found.entries)
        await self._durably(found.number)
        return {"len": length}

    async def _clear(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        found = self._find(body)
        dicts.clear(self._state, self._service.now(), found)
        await self._durably(found.number)
        return {}

    async def _page(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        """The entries whose keys come after `after`; their values only if `values`."""
        found, after = self._find(body), body.get("after")
        keys = dicts.page(found, None if after is None else bytes(after), wire.MAX_INPUTS_PER_FRAME)
        entries = dicts.get(self._state, self._service.now(), found, keys) if body.get("values") else []
        await self._durably(found.number)
        return {"keys": keys, **_columns(entries)}


def _columns(entries: list[Entry | None]) -> dict[str, Any]:
    there = [one for one in entries if one is not None]
    return {"values": [one.value for one in there], "codecs": [one.codec for one in there]}


def _described(found: SharedDict) -> dict[str, Any]:
    return {"id": found.id, "name": found.name, "created": found.created}
