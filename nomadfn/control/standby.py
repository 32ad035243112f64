"""What a control service answers over HTTP from its first moment on, whether it leads or stands by."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
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

HOLD_S = 1.0
"""How long the question for another leader is held; who asks it again hears of a takeover as soon as it is done."""


class Front:
    """The ASGI application of a control service of a cluster: the standby's until `lead`, then the leader's."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._leader: dict[str, Any] = {}
        self._changed = asyncio.Event()
        self.segment: Callable[[], int | None] = lambda: None
        """The last segment of the journal that this standby has read."""
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

    @property
    def leader(self) -> dict[str, Any]:
        """Who leads, as far as it is known: `http_url`, `data_url`, `epoch`."""
        return self._leader

    def know(self, leader: dict[str, Any]) -> None:
        """Who leads now; those who wait for another one hear of it."""
        self._leader = leader
        self._changed.set()
        self._changed = asyncio.Event()

    def lead(self, app: ASGIApp, leader: dict[str, Any]) -> None:
        """This one leads, and `app` answers from now on."""
        self._app = app
        self.know(leader)

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "role": "standby", "segment": self.segment()})

    async def _metrics(self, request: Request) -> Response:
        try:
            self._tokens.require_scraper(bearer_of(request))
        except Error as error:
            return error_response(error)
        return Response(await asyncio.to_thread(render, None), media_type=MEDIA_TYPE)

    async def _tell_leader(self, request: Request) -> Response:
        """`?unlike=` names the data address of a leader that was lost: the answer waits a moment for another one."""
        lost = request.query_params.get("unlike")
        end = asyncio.get_running_loop().time() + HOLD_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                while lost is not None and self.leader.get("data_url", "") in ("", lost):
                    await self._changed.wait()
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
