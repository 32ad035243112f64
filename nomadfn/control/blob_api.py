"""`/v1/blobs/{name}`: large bytes in and out over HTTP, with an end to every wait for a client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from nomadfn.control.blob_desk import BlobDesk
from nomadfn.exception import Error, InvalidError, NotFoundError

TAKE_S = 60.0
"""How long a client may take to read a part."""


class BlobApi:
    """GET, PUT and DELETE of blobs; a body comes with its length and its `?sha256=`."""

    def __init__(self, desk: BlobDesk, pause_s: float) -> None:
        self._desk = desk
        self._pause_s = pause_s
        """How long a client may send nothing."""

    def route(self) -> Route:
        return Route("/v1/blobs/{name}", self._handle, methods=["GET", "PUT", "DELETE"])

    async def _handle(self, request: Request) -> Response:
        name, identity = request.path_params["name"], request.state.identity
        if request.method == "PUT":
            length = request.headers.get("content-length", "")
            if not length.isdigit():
                raise InvalidError("a blob is sent with its length, in the header Content-Length")
            digest = request.query_params.get("sha256", "")
            await self._desk.write(name, digest, int(length), self._body(request), identity)
            return Response(status_code=201)
        if request.method == "DELETE":
            await self._desk.delete(name, identity)
            return Response(status_code=204)
        return Download(self._desk.read(name, identity))

    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        stream = request.stream()
        while True:
            try:
                async with asyncio.timeout(self._pause_s):
                    chunk = await anext(stream, None)
            except TimeoutError:
                raise HTTPException(408, f"nothing of the body has arrived for {self._pause_s:g} s") from None
            if chunk is None:
                return
            yield chunk


class Download(Response):
    """The parts of a blob as they are read, between `before` and `after`; `missing` is raised where it is not there."""

    def __init__(
        self,
        reading: AbstractAsyncContextManager[AsyncIterator[bytes]],
        missing: Error | None = None,
        before: bytes = b"",
        after: bytes = b"",
        media_type: str = "application/octet-stream",
    ) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self._reading = reading
        self._missing = missing
        self._before = before
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A blob that cannot be read to its end leaves the answer without one, so that nobody takes it for whole."""
        begun = False
        try:
            async with self._reading as parts:
                begun = True
                start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
                await send(start)
                await self._send(send, self._before)
                async for part in parts:
                    await self._send(send, part)
            await self._send(send, self._after, more=False)
        except (Error, TimeoutError) as error:
            if begun:
                return
            if self._missing is not None and isinstance(error, NotFoundError):
                raise self._missing from None
            raise

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        if body or not more:
            async with asyncio.timeout(TAKE_S):
                await send({"type": "http.response.body", "body": body, "more_body": more})
