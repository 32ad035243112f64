"""Single inputs over HTTP; a part of `api`."""

from __future__ import annotations

import json
from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nomadfn.exception import InvalidError


class Asker(Protocol):
    async def perform(self, operation: str, body: dict[str, Any], identity: Any) -> Any: ...


class InputApi:
    """Each handler performs one operation."""

    def __init__(self, service: Asker) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        one = "/v1/inputs/{id}"
        return [
            Route("/v1/inputs", self._list),
            Route(one, self._get),
            Route(f"{one}/cancel", self._cancel, methods=["POST"]),
            Route(f"{one}/retry", self._retry, methods=["POST"]),
            Route("/v1/calls/{id}/graph", self._graph),
        ]

    async def _list(self, request: Request) -> Response:
        """`?app=`, `?function=`, `?call=`, `?state=` (several times), `?limit=`."""
        query = request.query_params
        try:
            limit = int(query.get("limit", "100"))
        except ValueError:
            raise InvalidError(f"?limit= must be a whole number, not {query['limit'][:80]!r}") from None
        body = {name: query.get(name) for name in ("app", "function", "call")}
        return await self._answer(request, "input.list", {**body, "states": query.getlist("state"), "limit": limit})

    async def _get(self, request: Request) -> Response:
        return await self._answer(request, "input.get", self._named(request))

    async def _cancel(self, request: Request) -> Response:
        text = await request.body()
        try:
            said = json.loads(text) if text.strip() else {}
        except ValueError:
            said = None
        terminate = said.pop("terminate_containers", False) if isinstance(said, dict) else None
        if said or not isinstance(terminate, bool):
            raise InvalidError('the body is empty or {"terminate_containers": true}')
        return await self._answer(request, "input.cancel", {**self._named(request), "terminate_containers": terminate})

    async def _retry(self, request: Request) -> Response:
        return await self._answer(request, "input.retry", self._named(request))

    async def _graph(self, request: Request) -> Response:
        return await self._answer(request, "call.graph", {"call": request.path_params["id"]})

    def _named(self, request: Request) -> dict[str, Any]:
        return {"input": request.path_params["id"]}

    async def _answer(self, request: Request, operation: str, body: dict[str, Any]) -> Response:
        content = await self._service.perform(operation, body, request.state.identity)
        return Response(msgspec.json.encode(content), media_type="application/json")
