"""What can be asked of calls by name: their results, their end, and calls with JSON arguments."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from nomadfn_agent import wire

from nomadfn.control.tokens import Identity
from nomadfn.core import calls
from nomadfn.core.model import Call, Function
from nomadfn.exception import InvalidError

if TYPE_CHECKING:
    from nomadfn.control.operations import Operations
    from nomadfn.control.service import Service

WAIT_MAX_S = 30.0
OUTPUTS_MAX = 1000
OUTPUTS_BYTES = 4 * 1024 * 1024

Result = TypeVar("Result")


class CallOperations:
    """A part of `Operations`, with the same form of a method."""

    def __init__(self, service: Service, operations: Operations) -> None:
        self._service = service
        self._operations = operations
        self._core = service.core
        self._state = service.core.state
        operations.add("call.close", self._close_call)
        operations.add("call.info", self._call_info)
        operations.add("call.outputs", self._outputs)
        operations.add("call.cancel", self._cancel_call)
        operations.add("call.json", self._call_json)
        operations.add("call.spawn_json", self._spawn_json)

    async def _close_call(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        call = self._durable_call(str(body["call"]), identity)
        await self._durably(lambda: self._core.close_call(self._service.now(), call.id, int(body["total"])))
        return {}

    async def _durably(self, change: Callable[[], Result]) -> Result:
        """Make a change and wait until the journal has it."""
        result = change()
        self._service.poke()
        await self._service.journal_reached(self._state.record_number)
        return result

    def _durable_call(self, id: str, identity: Identity) -> Call:
        call = calls.find_durable(self._state, self._service.now(), id)
        identity.require_app(call.function.app)
        return call

    async def _call_info(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        call = self._durable_call(str(body["call"]), identity)
        app = self._state.apps.get(call.function.app)
        return {
            "function_id": call.function.id,
            "app": app.name if app is not None else "",
            "function": call.function.spec.name,
            "kind": ("remote", "map", "spawn", "spawn_map")[call.kind],
            "num_inputs": call.total if call.total >= 0 else None,
            "done": call.done,
            "closed": call.total >= 0,
        }

    async def _outputs(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        call = self._durable_call(str(body["call"]), identity)
        first, count = int(body["first"]), min(int(body["count"]), OUTPUTS_MAX)
        deadline = time.monotonic() + min(float(body.get("wait_s", 0.0)), WAIT_MAX_S)
        if first < 0 or count < 1:
            raise InvalidError(f"there are no outputs from {first} on, {count} of them")
        self._core.waits(identity.container, 1)
        try:
            found = calls.visible_prefix(call, first, count, OUTPUTS_BYTES)
            while not found and not 0 <= call.total <= first and (rest_s := deadline - time.monotonic()) > 0:
                await self._service.await_visible(call.id, rest_s)
                found = calls.visible_prefix(call, first, count, OUTPUTS_BYTES)
        finally:
            self._core.waits(identity.container, -1)
        return {
            "indexes": [one.index for one in found],
            "statuses": [one.status for one in found],
            "payloads": [one.payload for one in found],
            "codec": found[0].codec & ~wire.REF if found else wire.PICKLE,
            "num_inputs": call.total if call.total >= 0 else None,
            "closed": call.total >= 0,
        }

    async def _cancel_call(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        id, terminate = str(body["call"]), bool(body.get("terminate_containers", False))
        call = self._state.calls.get(id)
        if call is not None:
            identity.require_app(call.function.app)
        elif session and calls.created_at(id) is not None:
            # A map that has nothing open any more: there is nothing to cancel.
            return {"cancelled": 0}

        def change() -> int:
            return self._core.cancel_call(self._service.now(), id, terminate=terminate)

        cancelled = await self._durably(change) if call is None or call.durable else change()
        self._service.poke()
        return {"cancelled": cancelled}

    async def _find(self, body: dict[str, Any], identity: Identity) -> tuple[Function, str]:
        """The function that is to be called, and which method of it."""
        name = str(body["name"])
        function = self._operations.find_function(str(body["app"]), name, identity)
        method = name.removeprefix(function.spec.name).removeprefix(".")
        if not method and len(function.spec.methods) == 1:
            method = function.spec.methods[0].name
        if any(method == one for one, _ in function.spec.webs):
            url = self._service.web.url(function, method)
            where = f"; send them to {url}" if url else ""
            raise InvalidError(f"{name} is a web function and takes HTTP requests only{where}")
        if parameters := body.get("parameters"):
            function = await self._operations.variants.resolve(function, parameters)
        return function, method

    async def _spawn_json(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        function, method = await self._find(body, identity)
        priority, deadline_s = int(body.get("priority", 0)), body.get("deadline_s")
        call = await self._service.clients.spawn(function, bytes(body["payload"]), priority, deadline_s, method)
        return {"call": call}

    async def _call_json(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        """A durable call and a wait for its result: should the wait end first, the result can still be asked for.

        Of a generator the stream that has its values, which only those get who are in this process.
        """
        function, method = await self._find(body, identity)
        if function.spec.gives_parts(method) and not session:
            priority, deadline_s = int(body.get("priority", 0)), body.get("deadline_s")
            data = bytes(body["payload"])
            return {"stream": await self._service.streams.call(function, data, priority, deadline_s, method)}
        deadline = time.monotonic() + float(body["wait_s"])
        id = (await self._spawn_json(body, identity, session))["call"]
        while True:
            rest_s = max(0.0, deadline - time.monotonic())
            found = await self._outputs({"call": id, "first": 0, "count": 1, "wait_s": rest_s}, identity, session)
            if found["indexes"]:
                return {
                    "call": id,
                    "status": found["statuses"][0],
                    "payload": found["payloads"][0],
                    "codec": found["codec"],
                }
            if time.monotonic() >= deadline:
                return {"call": id, "pending": True}
