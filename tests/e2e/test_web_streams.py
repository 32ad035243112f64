"""Bodies that are too large for any buffer, server-sent events and websockets, through the gateway."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import websockets
from web_site import CURL, Site, peak_kib
from websockets.asyncio.client import connect
from world import World

MIB = 1 << 20
LARGE_MIB = 100
ROOM_KIB = 48 * 1024
"""What a process may have more at its peak: of a body of 100 MiB nobody keeps more than some windows."""


@pytest.fixture
def site(world: World) -> Iterator[Site]:
    with Site(world) as made:
        yield made


def zeros(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield bytes(MIB)


def test_100_mib_go_up_and_come_down_in_bounded_memory(site: Site) -> None:
    container = site.get("api").json()["pid"]
    before = peak_kib(site.service_pid), peak_kib(container)
    sent = site.client.post(site.url("api/upload"), content=zeros(LARGE_MIB)).json()
    assert sent["size"] == LARGE_MIB * MIB
    assert sent["most"] <= MIB
    with site.client.stream("GET", site.url(f"api/download?mib={LARGE_MIB}")) as answer:
        assert sum(map(len, answer.iter_bytes())) == LARGE_MIB * MIB
    after = peak_kib(site.service_pid), peak_kib(container)
    assert [now - then for now, then in zip(after, before, strict=True) if now - then > ROOM_KIB] == []


@pytest.mark.skipif(CURL is None, reason="there is no curl")
def test_curl_sends_and_gets_100_mib(site: Site) -> None:
    large = site.world.folder / "large"
    with large.open("wb") as file:
        file.truncate(LARGE_MIB * MIB)
    for words in (["--data-binary", f"@{large}"], ["-T", str(large), "-X", "POST", "-H", "Transfer-Encoding: chunked"]):
        status, body = site.curl("api/upload", *words)
        assert (status, f'"size":{LARGE_MIB * MIB}' in body) == (200, True)
    out = site.world.folder / "out"
    status, _ = site.curl(f"api/download?mib={LARGE_MIB}", "-o", out)
    assert (status, out.stat().st_size) == (200, LARGE_MIB * MIB)


def test_a_client_that_reads_slowly_slows_the_application_down(site: Site) -> None:
    container = site.get("api").json()["pid"]
    before = peak_kib(site.service_pid), peak_kib(container)
    with site.client.stream("GET", site.url("api/download?mib=400")) as answer:
        parts = answer.iter_raw()
        assert next(parts)
        # All of it would be there by the time that this other one is answered a hundred times.
        for _ in range(100):
            site.get("api/items/1")
    after = peak_kib(site.service_pid), peak_kib(container)
    assert [now - then for now, then in zip(after, before, strict=True) if now - then > ROOM_KIB] == []


def test_events_arrive_as_they_are_sent(site: Site) -> None:
    with site.client.stream("GET", site.url("api/ticks?count=4&pause=0.3")) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        came = [(line, time.monotonic()) for line in answer.iter_lines() if line]
    assert [line for line, _ in came] == [f"data: {number}" for number in range(4)]
    assert came[-1][1] - came[0][1] > 0.3  # not all together at the end


@pytest.mark.skipif(CURL is None, reason="there is no curl")
def test_curl_gets_events(site: Site) -> None:
    status, body = site.curl("api/ticks?count=3", "-N")
    assert (status, body) == (200, "data: 0\n\ndata: 1\n\ndata: 2\n\n")


def test_a_websocket_echoes_text_and_bytes_and_is_closed_by_either_side(site: Site) -> None:
    url = site.url("api/echo").replace("http://", "ws://")

    async def talk() -> None:
        async with connect(url, subprotocols=[websockets.Subprotocol("b"), websockets.Subprotocol("a")]) as socket:
            assert socket.subprotocol == "b"
            for number in range(50):
                await socket.send(f"text {number}")
                assert await socket.recv() == f"echo text {number}"
            data = os.urandom(MIB)
            await socket.send(data)
            assert await socket.recv() == data[::-1]
        async with connect(url) as socket:
            await socket.send("bye")
            with pytest.raises(websockets.ConnectionClosedError) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as you wish")

    asyncio.run(talk())


def test_a_websocket_can_be_refused(site: Site) -> None:
    async def try_them() -> list[int]:
        found = []
        for path in ("api/closed", "api/nothing", "nothing/at/all"):
            with pytest.raises(websockets.InvalidStatus) as refused:
                await connect(site.url(path).replace("http://", "ws://"))
            found.append(refused.value.response.status_code)
        return found

    assert asyncio.run(try_them()) == [403, 403, 404]


def test_many_websockets_and_requests_share_a_container(site: Site) -> None:
    url = site.url("api/echo").replace("http://", "ws://")

    async def one(number: int) -> str:
        async with connect(url) as socket:
            await socket.send(str(number))
            return str(await socket.recv())

    async def all_of_them() -> list[str]:
        async with httpx.AsyncClient(timeout=40, trust_env=False) as client:
            talks = [one(number) for number in range(15)]
            asks = [client.get(site.url(f"api/items/{number}")) for number in range(15)]
            said = await asyncio.gather(*talks)
            answers = await asyncio.gather(*asks)
            assert [answer.json()["number"] for answer in answers] == list(range(15))
            assert len({answer.json()["input"] for answer in answers}) == 15
            return said

    assert asyncio.run(all_of_them()) == [f"echo {number}" for number in range(15)]


def test_a_server_behind_a_function_streams_and_has_websockets(world: World, tmp_path: Path) -> None:
    from consul_server import free_ports

    [port] = free_ports(1)
    program = f"""
        import subprocess, sys
        import nomadfn

        app = nomadfn.App("site")

        @app.function()
        @nomadfn.concurrent(max_inputs=10)
        @nomadfn.web_server({port}, startup_timeout=30)
        def server():
            where = ["--port", "{port}", "--app-dir", "{tmp_path}"]
            subprocess.Popen([sys.executable, "-m", "uvicorn", "served:app", *where])
    """
    (tmp_path / "served.py").write_text(
        "from starlette.applications import Starlette\n"
        "from starlette.responses import JSONResponse, StreamingResponse\n"
        "from starlette.routing import Route, WebSocketRoute\n"
        "async def seen(request):\n"
        "    size = 0\n"
        "    async for part in request.stream(): size += len(part)\n"
        "    return JSONResponse({'path': request.url.path, 'size': size, 'headers': dict(request.headers)})\n"
        "async def down(request):\n"
        "    async def parts():\n"
        "        for _ in range(20): yield b'y' * (1 << 20)\n"
        "    return StreamingResponse(parts())\n"
        "async def echo(socket):\n"
        "    await socket.accept(subprotocol=socket.scope['subprotocols'][0])\n"
        "    async for text in socket.iter_text(): await socket.send_text(socket.url.path + ' ' + text)\n"
        "app = Starlette(routes=[Route('/down', down), WebSocketRoute('/ws', echo),\n"
        "                        Route('/{rest:path}', seen, methods=['GET', 'POST'])])\n"
    )
    with Site(world, program) as site:
        seen = site.client.post(site.url("server/up?a=1"), content=zeros(20)).json()
        assert (seen["path"], seen["size"]) == ("/up", 20 * MIB)
        assert seen["headers"]["x-forwarded-prefix"] == "/site/server"
        assert seen["headers"]["x-forwarded-for"] == "127.0.0.1"
        with site.client.stream("GET", site.url("server/down")) as answer:
            assert sum(map(len, answer.iter_bytes())) == 20 * MIB

        async def talk() -> str:
            url = site.url("server/ws").replace("http://", "ws://")
            async with connect(url, subprotocols=[websockets.Subprotocol("chat")]) as socket:
                assert socket.subprotocol == "chat"
                await socket.send("hi")
                return str(await socket.recv())

        assert asyncio.run(talk()) == "/ws hi"
