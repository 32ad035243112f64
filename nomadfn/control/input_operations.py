"""What can be asked of single inputs, and of the graph of a call's inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nomadfn.control.tokens import Identity
from nomadfn.core import calls, family, inputs
from nomadfn.exception import InvalidError

if TYPE_CHECKING:
    from nomadfn.control.operations import Operations
    from nomadfn.control.service import Service

LIST_DEFAULT = 100
LIST_MAX = 10_000


class InputOperations:
    """A part of `Operations`, with the same form of a method."""

    def __init__(self, service: Service, operations: Operations) -> None:
        self._service = service
        self._operations = operations
        self._core = service.core
        self._state = service.core.state
        operations.add("input.list", self._list)
        operations.add("input.get", self._get)
        operations.add("input.cancel", self._cancel)
        operations.add("input.retry", self._retry)
        operations.add("call.graph", self._graph)

    async def _list(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        identity.require_owner()
        app, name, call = body.get("app"), body.get("function"), str(body.get("call") or "")
        states = [str(one) for one in body.get("states") or []]
        for state in states:
            if state not in inputs.STATES:
                raise InvalidError(f"there is no state {state!r}; there are {', '.join(inputs.STATES)}")
        limit = int(body.get("limit") or LIST_DEFAULT)
        if not 1 <= limit <= LIST_MAX:
            raise InvalidError(f"limit={limit} is out of range: it is from 1 to {LIST_MAX:,}")
        if call and call not in self._state.calls:
            calls.find_durable(self._state, self._service.now(), call)
        if name and not app:
            raise InvalidError("the name of a function needs that of its app, too")
        if app and name:
            functions = [self._operations.find_function(str(app), str(name), identity)]
        elif app:
            functions = list(self._operations.find_app(str(app)).functions.values())
        else:
            functions = list(self._state.functions.values())
        found, more = inputs.listed(self._state, functions, call, states, limit)
        return {"inputs": list(inputs.describe_all(found)), "more": more}

    async def _get(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        one = self._find(body, identity)
        [said] = inputs.describe_all([one])
        app = self._state.apps.get(one.call.function.app)
        return {**said, "app": app.name if app is not None else "", "now": self._service.now()}

    async def _cancel(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        self._find(body, identity)
        terminate = bool(body.get("terminate_containers", False))
        cancelled = self._core.cancel_input(self._service.now(), str(body["input"]), terminate=terminate)
        self._service.poke()
        await self._service.journal_reached(self._state.record_number)
        return {"cancelled": int(cancelled)}

    async def _retry(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        self._find(body, identity)
        self._core.retry_input(self._service.now(), str(body["input"]))
        self._service.poke()
        return {}

    async def _graph(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        call = calls.find_durable(self._state, self._service.now(), str(body["call"]))
        identity.require_app(call.function.app)
        nodes, truncated = family.graph(self._state, call)
        return {"nodes": nodes, "truncated": truncated}

    def _find(self, body: dict[str, Any], identity: Identity) -> Any:
        one = inputs.find(self._state, self._service.now(), str(body["input"]))
        identity.require_app(one.call.function.app)
        return one
