"""The short way of a response writes what uvicorn would, and takes nothing that uvicorn would refuse."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from nomadfn_agent.wire import web
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from nomadfn.control import web_server, whole_responses

QUIET = logging.getLogger("test")
DATE = (b"date", b"Fri, 27 Nov 2026 01:20:00 GMT")
JSON = (b"Content-Type", b"application/json")


class Transport:
    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.written += b"<closed>"

    def is_closing(self) -> bool:
        return False


def cycle(transport: Any, method: str = "GET", keep_alive: bool = True) -> tuple[RequestResponseCycle, list[str]]:
    ended: list[str] = []
    scope: Any = {"type": "http", "method": method}
    made = RequestResponseCycle(
        scope=scope,
        transport=transport,
        flow=FlowControl(transport),
        logger=QUIET,
        access_logger=QUIET,
        access_log=False,
        default_headers=[DATE],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: ended.append("response"),
    )
    return made, ended


def by_uvicorn(start: web.Start) -> bytes:
    transport = Transport()
    made, _ = cycle(transport)

    async def send() -> None:
        await made.send({"type": "http.response.start", "status": start.status, "headers": start.headers})
        await made.send({"type": "http.response.body", "body": start.data, "more_body": False})

    asyncio.run(send())
    return transport.written


@pytest.mark.parametrize("status", [200, 404, 503])
@pytest.mark.parametrize("body", [b"", b"{}", b"x" * 70_000])
def test_a_whole_response_is_written_as_uvicorn_writes_it(status: int, body: bytes) -> None:
    headers = [JSON, (b"content-length", b"%d" % len(body)), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    start = web.Start(status, headers, body, False)
    for _ in range(2):  # the second time from what was kept
        transport = Transport()
        made, ended = cycle(transport)
        assert whole_responses.write(start, made, transport)
        assert transport.written == by_uvicorn(start)
        assert (made.response_started, made.response_complete, ended) == (True, True, ["response"])


TWO = [(b"content-length", b"2")]


@pytest.mark.parametrize(
    "start",
    [
        web.Start(200, [JSON], b"{}", False),
        web.Start(200, [(b"content-length", b"3")], b"{}", False),
        web.Start(200, [(b"content-length", b"1")], b"{}", False),
        web.Start(200, [(b"content-length", b"-2")], b"{}", False),
        web.Start(200, TWO * 2, b"{}", False),
        web.Start(200, [*TWO, (b"Transfer-Encoding", b"chunked")], b"{}", False),
        web.Start(200, [*TWO, (b"Connection", b"close")], b"{}", False),
        web.Start(200, [*TWO, (b"a b", b"c")], b"{}", False),
        web.Start(200, [*TWO, (b"a", b"b\r\nc: d")], b"{}", False),
        web.Start(204, [(b"content-length", b"0")], b"", False),
        web.Start(101, [(b"content-length", b"0")], b"", False),
        web.Start(999, [(b"content-length", b"0")], b"", False),
    ],
    ids=str,
)
def test_what_is_not_plain_is_left_to_uvicorn(start: web.Start) -> None:
    for _ in range(2):
        transport = Transport()
        made, ended = cycle(transport)
        assert not whole_responses.write(start, made, transport)
        assert (transport.written, made.response_started, ended) == (b"", False, [])


@pytest.mark.parametrize(("method", "keep_alive"), [("HEAD", True), ("GET", False)])
def test_so_is_what_ends_its_connection_or_has_no_body(method: str, keep_alive: bool) -> None:
    transport = Transport()
    made, _ = cycle(transport, method, keep_alive)
    assert not whole_responses.write(web.Start(200, TWO, b"{}", False), made, transport)
    assert transport.written == b""


def test_what_is_kept_of_headers_does_not_grow_for_ever() -> None:
    for number in range(3 * whole_responses.KEPT):
        transport = Transport()
        made, _ = cycle(transport)
        headers = [*TWO, (b"x-number", b"%d" % number)]
        assert whole_responses.write(web.Start(200, headers, b"{}", False), made, transport)
        assert len(whole_responses._lines) <= whole_responses.KEPT


def test_a_connection_that_idles_is_closed_and_one_that_asks_again_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "KEEP_ALIVE_S", 2)
    asyncio.run(asyncio.wait_for(_ask_and_idle(), 30))


async def _ask_and_idle() -> None:
    async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": TWO})
        await send({"type": "http.response.body", "body": b"{}"})

    listener = socket.create_server(("127.0.0.1", 0))
    server = web_server.make_server(app, listener, 30.0, 65536)
    await server.start()
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    try:
        began = loop.time()
        while loop.time() < began + 2.5:  # longer than it may idle
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200 OK")
            await asyncio.sleep(0.05)
        assert await reader.read() == b""
    finally:
        writer.close()
        await server.close()
