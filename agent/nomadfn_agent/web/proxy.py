"""The application of a `@web_server`: every request goes on to the server that the function has started.

The server sees the path without the part that names the function, and headers that say what was there before. Each
request has a connection of its own, so that none meets one that the server is about to close.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import h11

READ_BYTES = 64 * 1024
EXIT_S = 0.2
"""After so long a container ends whose server is gone: what it says of that goes out first."""
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
OF_HANDSHAKE = frozenset(
    (
        b"host",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
        b"content-length",
    )
)

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Proxy:
    """An ASGI application; `host` and `port` are where the server listens."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._ending = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port)
        except OSError as error:
            await _answer(send, 502, f"the server on port {self._port} does not answer: {error.strerror or error}")
            self._end()
            return
        connection = h11.Connection(h11.CLIENT)
        writer.write(connection.send(_request(scope)) or b"")
        upload = asyncio.ensure_future(_upload(connection, receive, writer))
        begun = False
        try:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await reader.read(READ_BYTES))
                elif isinstance(event, h11.Response):
                    begun = True
                    await send({"type": "http.response.start", "status": event.status_code, "headers": _kept(event)})
                elif isinstance(event, h11.Data):
                    await send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
                elif isinstance(event, h11.EndOfMessage):
                    await send({"type": "http.response.body", "body": b""})
                    return
                elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                    raise ConnectionError("it closed the connection")
        except (h11.RemoteProtocolError, OSError) as error:
            if begun:
                raise
            await _answer(send, 502, f"the server on port {self._port} gave no response: {error}")
        finally:
            upload.cancel()
            writer.transport.abort() if upload.done() is False else writer.close()

    async def _websocket(self, scope: Message, receive: Receive, send: Send) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidHandshake, InvalidStatus

        await receive()
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in _forwarded(scope)
            if name not in OF_HANDSHAKE
        ]
        host = dict(scope["headers"]).get(b"host", f"{self._host}:{self._port}".encode()).decode("latin-1")
        try:
            server = await connect(
                f"ws://{host}{_target(scope)}",
                host=self._host,
                port=self._port,
                additional_headers=headers,
                subprotocols=scope["subprotocols"] or None,
                compression=None,
                user_agent_header=None,
                max_size=None,
                ping_interval=None,
                proxy=None,
            )
        except InvalidStatus as error:
            response = error.response
            kept = [(name.lower().encode(), value.encode()) for name, value in response.headers.raw_items()]
            kept = [one for one in kept if one[0] not in HOP_BY_HOP and one[0] != b"content-length"]
            await send(
                {"type": "websocket.http.response.start", "status": response.status_code, "headers": kept},
            )
            await send({"type": "websocket.http.response.body", "body": response.body or b""})
            return
        except (InvalidHandshake, OSError) as error:
            print(f"nomadfn: the server on port {self._port} opened no websocket: {error}", file=sys.stderr, flush=True)
            await send({"type": "websocket.close", "code": 1011, "reason": "the server does not answer"})
            return
        await send({"type": "websocket.accept", "subprotocol": server.subprotocol})
        await _pass_both_ways(server, receive, send)

    def _end(self) -> None:
        """Without its server the container is of no use: another one takes its place."""
        if not self._ending:
            self._ending = True
            print(f"nomadfn: nothing listens on port {self._port} any more; this container ends", file=sys.stderr)
            asyncio.get_running_loop().call_later(EXIT_S, os._exit, 1)


async def _answer(send: Send, status: int, text: str) -> None:
    body = f"{text}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _target(scope: Message) -> str:
    """What the server is asked for: the path below the function's own, with the query."""
    path = scope["raw_path"].decode("ascii")[len(scope["root_path"]) :] or "/"
    query = scope["query_string"].decode("ascii")
    return f"{path}?{query}" if query else path


def _request(scope: Message) -> h11.Request:
    headers = _forwarded(scope)
    lengths = [name for name, _ in headers if name == b"content-length"]
    if not lengths and any(name == b"transfer-encoding" for name, _ in scope["headers"]):
        headers.append((b"transfer-encoding", b"chunked"))
    headers.append((b"connection", b"close"))
    return h11.Request(method=scope["method"], target=_target(scope), headers=headers)


def _forwarded(scope: Message) -> list[tuple[bytes, bytes]]:
    """The headers of the request, with those that say where it came from."""
    kept, before = [], b""
    for name, value in scope["headers"]:
        if name == b"x-forwarded-for":
            before = value + b", "
        elif name not in HOP_BY_HOP and name not in (b"x-forwarded-proto", b"x-forwarded-prefix"):
            kept.append((name, value))
    if scope["client"] is not None:
        kept.append((b"x-forwarded-for", before + str(scope["client"][0]).encode()))
    scheme = str(scope["scheme"])
    kept.append((b"x-forwarded-proto", {"ws": "http", "wss": "https"}.get(scheme, scheme).encode()))
    if scope["root_path"]:
        kept.append((b"x-forwarded-prefix", str(scope["root_path"]).encode()))
    return kept


def _kept(response: h11.Response) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in response.headers if name not in HOP_BY_HOP]


async def _upload(connection: h11.Connection, receive: Receive, writer: asyncio.StreamWriter) -> None:
    """Pass the body on, and end the connection when the client is gone."""
    more = True
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            writer.transport.abort()
            return
        if not more:
            continue
        more = message.get("more_body", False)
        try:
            if message.get("body"):
                writer.write(connection.send(h11.Data(data=message["body"])) or b"")
            if not more:
                writer.write(connection.send(h11.EndOfMessage()) or b"")
            await writer.drain()
        except (OSError, h11.LocalProtocolError):
            more = False  # The server has answered without reading on, or is gone; who reads its answer sees which.


async def _pass_both_ways(server: Any, receive: Receive, send: Send) -> None:
    from websockets.exceptions import ConnectionClosed

    async def from_client() -> None:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code") or 1005
                await server.close(code if code not in (1005, 1006, 1015) else 1000, message.get("reason") or "")
                return
            data = message.get("bytes")
            await server.send(message["text"] if data is None else data)

    async def from_server() -> None:
        async for data in server:
            await send({"type": "websocket.send", **({"text": data} if isinstance(data, str) else {"bytes": data})})

    tasks = [asyncio.ensure_future(from_client()), asyncio.ensure_future(from_server())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[1] in done or tasks[0].exception() is not None:
            code, reason = server.close_code or 1000, server.close_reason or ""
            await send({"type": "websocket.close", "code": 1000 if code in (1005, 1006) else code, "reason": reason})
        for one in done:
            if (error := one.exception()) is not None and not isinstance(error, ConnectionClosed):
                raise error
    finally:
        for one in tasks:
            one.cancel()
        await server.close()
