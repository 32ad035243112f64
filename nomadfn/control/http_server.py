"""uvicorn inside the control service's own event loop, with an end to every wait for a client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import uvicorn
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from nomadfn import exception

HEADER_TIMEOUT_S = 10.0
"""How long a client may take from connecting, or from the first byte of a request, to the end of its headers."""
KEEP_ALIVE_S = 75
CONNECTIONS_MAX = 1024
HEADER_BYTES_MAX = 32 * 1024
CLOSE_GRACE_S = 2

T = TypeVar("T")


class ApiServer:
    """uvicorn on a bound socket, as a task of the running event loop; signals stay with whoever owns the loop."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket) -> None:
        self._listener = listener
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once connections are accepted."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]), name="http api")
        started = asyncio.ensure_future(self._server.accepting.wait())
        try:
            await asyncio.wait((self._task, started), return_when=asyncio.FIRST_COMPLETED)
            if self._task.done():
                await self._task
                raise exception.ServiceError("the HTTP server ended while it was starting")
        finally:
            started.cancel()

    async def close(self) -> None:
        """Take no more connections, and let the open requests end for the config's `timeout_graceful_shutdown`."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task


def config_of(app: Any, **settings: Any) -> uvicorn.Config:
    """What every server of the control service has in common: it says nothing of itself, and logs no requests."""
    return uvicorn.Config(
        app,
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        **settings,
    )


async def serve_api(app: ASGIApp, listener: socket.socket) -> ApiServer:
    """Serve `app` on a bound socket, within the running event loop. Close what this returns."""
    config = config_of(
        app,
        http=_HeaderDeadline,
        ws="none",
        limit_concurrency=CONNECTIONS_MAX,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_GRACE_S,
        h11_max_incomplete_event_size=HEADER_BYTES_MAX,
    )
    server = ApiServer(config, listener)
    await server.start()
    return server


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()


class _HeaderDeadline(H11Protocol):
    """Closes connections that are slow to send a whole request head, which uvicorn itself would wait for for ever."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """What `work` gives, cancelled when the client hangs up before: then ClientDisconnect."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        working.cancel()
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
