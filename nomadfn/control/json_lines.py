"""A generator's values over HTTP: a line of JSON for each, `{"value": …}`, as they come.

What the generator raises after its first value is a last line, `{"error": …}`; the answer's end says that it was whole.
A client that hangs up, or does not read, closes the generator.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from nomadfn_agent import wire
from nomadfn_agent.wire import outcome
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nomadfn.control.blob_api import TAKE_S
from nomadfn.control.blob_desk import BlobDesk
from nomadfn.control.http_server import unless_gone
from nomadfn.control.streams import Stream
from nomadfn.exception import Error

MEDIA_TYPE = "application/x-ndjson"
CHUNK_BYTES = 64 * 1024

Part = tuple[int, bytes]
"""Status and payload."""
Show = Callable[[int, bytes, int], Awaitable[Response]]
"""Makes the answer to an outcome: its status, payload and codec."""


async def json_lines(request: Request, stream: Stream, blobs: BlobDesk, show: Show, wait_s: float) -> Response:
    """The answer, once the first value is there or after `wait_s`; what comes instead of one is shown as usual."""
    parts = stream.parts()
    first = asyncio.ensure_future(_next(parts))
    try:
        await unless_gone(request.receive, asyncio.wait((first,), timeout=wait_s))
        if first.done() and first.result() is None:
            ended = await stream.result()
            return Response(media_type=MEDIA_TYPE) if ended[0] == wire.OK else await show(*ended, stream.codec)
    except BaseException:
        first.cancel()
        stream.cancel()
        raise
    return _Lines(stream, first, parts, blobs, show)


class _Lines(Response):
    def __init__(
        self,
        stream: Stream,
        first: asyncio.Future[Part | None],
        rest: AsyncIterator[Part],
        blobs: BlobDesk,
        show: Show,
    ) -> None:
        super().__init__(media_type=MEDIA_TYPE)
        del self.headers["content-length"]
        self._stream = stream
        self._first = first
        self._rest = rest
        self._blobs = blobs
        self._show = show

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Values that cannot be read to their end leave the answer without one, so that nobody takes it for whole."""

        async def body() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._chunks()) as chunks:
                async for chunk in chunks:
                    await _send(send, chunk, more=True)
            await _send(send, b"", more=False)

        async with self._stream:
            try:
                await unless_gone(receive, body())
            except (Error, TimeoutError, OSError):
                return

    async def _parts(self) -> AsyncIterator[Part]:
        first = await self._first
        if first is not None:
            yield first
        async for one in self._rest:
            yield one

    async def _chunks(self) -> AsyncGenerator[bytes]:
        """Small values that are there are sent together."""
        gathered = bytearray()
        async for status, payload in self._parts():
            if status & wire.REF:
                name = outcome.decode_ref(payload).name
                yield bytes(gathered) + b'{"value":'
                gathered = bytearray(b"}\n")
                async with self._blobs.reading(name) as blob:
                    async for chunk in blob:
                        yield chunk
                await self._blobs.drop(name)
            else:
                gathered += b'{"value":' + payload + b"}\n"
            if len(gathered) >= CHUNK_BYTES or not self._stream.has_more:
                yield bytes(gathered)
                gathered.clear()
        if gathered:
            yield bytes(gathered)
        status, payload = await self._stream.result()
        if status != wire.OK:
            yield bytes((await self._show(status, payload, self._stream.codec)).body) + b"\n"


async def _next(parts: AsyncIterator[Part]) -> Part | None:
    return await anext(parts, None)


async def _send(send: Send, body: bytes, *, more: bool) -> None:
    async with asyncio.timeout(TAKE_S):
        await send({"type": "http.response.body", "body": body, "more_body": more})
