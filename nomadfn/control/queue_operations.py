"""What can be asked of a `Queue` by name. As with a `Dict`, what is told of one is durable."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from nomadfn_agent import wire

from nomadfn.control.dict_operations import CODECS, NAME
from nomadfn.control.tokens import Identity
from nomadfn.core import shared_queues as queues
from nomadfn.core.shared import SharedQueue, Value
from nomadfn.exception import InvalidError

if TYPE_CHECKING:
    from nomadfn.control.operations import Operations
    from nomadfn.control.service import Service

WAIT_MAX_S = 30.0
AT_ONCE = 1_000
ANSWER_BYTES = 2 * wire.MAX_FRAME_BYTES


class QueueOperations:
    """A part of `Operations`, with the same form of a method. Whoever has a token may use every Queue."""

    def __init__(self, service: Service, operations: Operations) -> None:
        self._service = service
        self._core = service.core
        self._state = service.core.state
        self._waiting: dict[tuple[str, bytes], dict[str, asyncio.Future[None]]] = {}
        """By queue and partition, then by token: who waits for a value, the longest first."""
        for name, operation in {
            "queue.open": self._open,
            "queue.list": self._list,
            "queue.drop": self._drop,
            "queue.put": self._put,
            "queue.get": self._get,
            "queue.leave": self._leave,
            "queue.peek": self._peek,
            "queue.len": self._len,
            "queue.clear": self._clear,
        }.items():
            operations.add(name, operation)

    async def _durably(self, number: int) -> None:
        self._service.poke()
        await self._service.journal_reached(number)

    def _find(self, body: dict[str, Any]) -> SharedQueue:
        return queues.find(self._state, str(body["queue"]))

    async def _open(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        name = str(body.get("name", ""))
        if "id" not in body and not name:
            return _described(self._find(body))
        if name and not NAME.fullmatch(name):
            raise InvalidError(f"{name!r} cannot name a Queue: use 1 to 64 letters, digits, '-', '_' and '.'")
        if name and not body.get("create"):
            found = queues.find_named(self._state, name)
        else:
            id = str(body["id"])
            if not id.startswith("qu-") or not NAME.fullmatch(id):
                raise InvalidError(f"{id[:64]!r} is not the id of a Queue")
            if not name and not session:
                raise InvalidError("a Queue without a name belongs to a session; give it a name")
            fresh = {"allow_existing": bool(body.get("allow_existing", True))}
            found = queues.make(self._state, self._service.now(), id, name, "" if name else session, **fresh)
        await self._durably(found.number)
        return _described(found)

    async def _list(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        named = [one for one in self._state.queues.values() if one.name]
        return {"found": [_described(one) for one in sorted(named, key=lambda one: one.created, reverse=True)]}

    async def _drop(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        queues.drop(self._state, self._find(body))
        await self._durably(self._state.record_number)
        return {}

    async def _put(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        found, key = self._find(body), bytes(body["partition"])
        values, codecs = [bytes(one) for one in body["values"]], [int(one) for one in body["codecs"]]
        if set(codecs) - set(CODECS) or sum(map(len, values)) > ANSWER_BYTES:
            raise InvalidError("the values of a Queue are pickles of a bounded size, or references to them")
        ttl_s, token = float(body["ttl_s"]), str(body["token"])
        queues.put(self._state, self._service.now(), found, key, values, codecs, ttl_s, token)
        for waiter in list(self._waiting.get((found.id, key), {}).values())[: len(values)]:
            if not waiter.done():
                waiter.set_result(None)
        await self._durably(found.number)
        return {}

    async def _get(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        """Take up to `count` values; where there are none, wait for one, `wait_s` at the most."""
        found, key, token = self._find(body), bytes(body["partition"]), str(body["token"])
        count = max(1, min(int(body["count"]), AT_ONCE))
        end = time.monotonic() + min(float(body.get("wait_s", 0.0)), WAIT_MAX_S)
        self._core.waits(identity.container, 1)
        try:
            while not (taken := self._take(found, key, count, token, session)):
                rest_s = end - time.monotonic()
                if rest_s <= 0 or not await self._await_value(found, key, token, rest_s):
                    break
                found = self._find(body)
        finally:
            self._core.waits(identity.container, -1)
        await self._durably(found.number)
        return {"values": [value for value, _ in taken], "codecs": [codec for _, codec in taken]}

    def _take(self, found: SharedQueue, key: bytes, count: int, token: str, session: str) -> list[tuple[bytes, int]]:
        """Nothing for a client that is away: nobody would read it. What it asks again, it asks with the same token."""
        known = self._state.sessions.get(session)
        if known is not None and not known.attached:
            return []
        size, fitting = 0, 0
        partition = queues.live(self._state, self._service.now(), found, key)
        for one in list(partition.values)[:count] if partition is not None else ():
            size += len(one.value)
            if fitting and size > ANSWER_BYTES:
                break
            fitting += 1
        return queues.take(self._state, self._service.now(), found, key, max(1, fitting), token)

    async def _await_value(self, found: SharedQueue, key: bytes, token: str, timeout_s: float) -> bool:
        """False where nobody waits any more, or after the time."""
        waiter: asyncio.Future[None] = self._service.loop.create_future()
        self._waiting.setdefault((found.id, key), {})[token] = waiter
        try:
            await asyncio.wait((waiter,), timeout=timeout_s)
        finally:
            waiting = self._waiting.get((found.id, key), {})
            if waiting.get(token) is waiter:
                del waiting[token]
            if not waiting:
                self._waiting.pop((found.id, key), None)
        return waiter.done() and not waiter.cancelled()

    async def _leave(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        """Who waited with this token has given up."""
        waiter = self._waiting.get((str(body["queue"]), bytes(body["partition"])), {}).get(str(body["token"]))
        if waiter is not None:
            waiter.cancel()
        return {}

    async def _peek(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        """The values after the number `after`, which stay; where there are none, wait for one."""
        found, key, after = self._find(body), bytes(body["partition"]), int(body["after"])
        end = time.monotonic() + min(float(body.get("wait_s", 0.0)), WAIT_MAX_S)
        while True:
            partition = queues.live(self._state, self._service.now(), found, key)
            there = [one for one in partition.values if one.number > after] if partition is not None else []
            rest_s = end - time.monotonic()
            if there or rest_s <= 0:
                break
            await self._await_value(found, key, f"peek {id(body)}", rest_s)
            found = self._find(body)
        shown: list[Value] = []
        size = 0
        for one in there[:AT_ONCE]:
            size += len(one.value)
            if shown and size > ANSWER_BYTES:
                break
            shown.append(one)
        await self._durably(found.number)
        columns = {"values": [one.value for one in shown], "codecs": [one.codec for one in shown]}
        return {**columns, "last": shown[-1].number if shown else after}

    async def _len(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        found, now = self._find(body), self._service.now()
        keys = list(found.partitions) if body.get("total") else [bytes(body["partition"])]
        there = [queues.live(self._state, now, found, key) for key in keys]
        await self._durably(found.number)
        return {"len": sum(len(one.values) for one in there if one is not None)}

    async def _clear(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        found = self._find(body)
        queues.clear(self._state, found, None if body.get("all") else bytes(body["partition"]))
        await self._durably(found.number)
        return {}


def _described(found: SharedQueue) -> dict[str, Any]:
    return {"id": found.id, "name": found.name, "created": found.created}
