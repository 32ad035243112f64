"""What a control service answers over HTTP from its first moment on, whether it leads or stands by."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nomadfn.control.api import METRICS_PATH, agent_bundle_route, bearer_of, error_response
from nomadfn.control.metrics import MEDIA_TYPE, render
from nomadfn.control.tokens import Tokens
from nomadfn.exception import Error


class Front:
    """The ASGI application of a control service of a cluster: the standby's until `lead`, then the leader's."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.leader: dict[str, Any] = {}
        """Who leads, as far as it is known: `http_url`, `data_url`, `epoch`."""
        self._app: ASGIApp = Starlette(
            routes=[
                Route("/healthz", self._health),
                Route(METRICS_PATH, self._metrics),
                Route("/v1/leader", self._tell_leader),
                agent_bundle_route(),
                Route("/{rest:path}", self._refer, methods=["GET", "POST", "PATCH", "PUT", "DELETE"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def lead(self, app: ASGIApp) -> None:
        self._app = app

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "role": "standby"})

    async def _metrics(self, request: Request) -> Response:
        try:
            self._tokens.require_scraper(bearer_of(request))
        except Error as error:
            return error_response(error)
        return Response(await asyncio.to_thread(render, None), media_type=MEDIA_TYPE)

    async def _tell_leader(self, request: Request) -> Response:
        if not self.leader.get("data_url"):
            return _unavailable("no control service leads at the moment; ask again in a second")
        return JSONResponse(self.leader)

    async def _refer(self, request: Request) -> Response:
        where = self.leader.get("http_url")
        what = f"the leader is at {where}; ask there" if where else "none leads at the moment; ask again in a second"
        return _unavailable(f"this control service stands by: {what}")


def _unavailable(message: str) -> Response:
    error = {"kind": "ServiceError", "message": message}
    return JSONResponse({"error": error}, 503, {"Retry-After": "1"})
