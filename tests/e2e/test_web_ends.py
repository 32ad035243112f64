"""How web requests end that do not go well: limits, timeouts, losses, clients that leave, deploys in between."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import websockets
from web_site import CURL, Site
from websockets.asyncio.client import connect
from world import World, eventually

ENDS = """
    import asyncio
    import os
    import time

    import nomadfn

    app = nomadfn.App("site")
    VERSION = 1

    @app.function(max_containers=2, scaledown_window=30, timeout=TIMEOUT)
    @nomadfn.concurrent(max_inputs=10)
    @nomadfn.asgi_app()
    def api():
        from starlette.applications import Starlette
        from starlette.background import BackgroundTask
        from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
        from starlette.routing import Route, WebSocketRoute

        async def root(request):
            return JSONResponse({"version": VERSION, "pid": os.getpid()})

        async def body(request):
            return JSONResponse({"size": len(await request.body()), "pid": os.getpid()})

        async def slow(request):
            seconds = float(request.query_params["seconds"])
            print("begun", flush=True)
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                print("cancelled", flush=True)
                raise
            return JSONResponse({"version": VERSION, "pid": os.getpid()})

        async def endless(request):
            async def parts():
                try:
                    for number in range(10_000):
                        yield f"{os.getpid()} {number}\\n"
                        await asyncio.sleep(0.05)
                finally:
                    print("left", flush=True)

            return StreamingResponse(parts())

        async def waits(request):
            while (message := await request.receive())["type"] != "http.disconnect":
                pass
            print("disconnected", flush=True)

        async def die(request):
            if request.method == "POST":
                await request.body()
            os._exit(9)

        async def die_once(request):
            path = request.query_params["path"]
            if not os.path.exists(path):
                open(path, "w").close()
                os._exit(9)
            return PlainTextResponse("survived")

        async def half(request):
            async def parts():
                yield "half "
                await asyncio.sleep(0.2)
                os._exit(9)

            return StreamingResponse(parts())

        async def boom(request):
            raise LookupError("a secret of the application")

        async def liar(request):
            length = request.query_params["length"]
            return PlainTextResponse("short", headers={"Content-Length": length, "X-Odd": request.query_params["odd"]})

        async def after(request):
            async def work():
                await asyncio.sleep(0.3)
                print("worked on", flush=True)

            return PlainTextResponse("answered", background=BackgroundTask(work))

        async def held(socket):
            await socket.accept()
            try:
                async for text in socket.iter_text():
                    await socket.send_text(text)
            finally:
                print("socket over", flush=True)

        routes = [
            Route("/", root), Route("/slow", slow), Route("/endless", endless), Route("/waits", waits),
            Route("/die", die, methods=["GET", "POST"]), Route("/die_once", die_once), Route("/half", half),
            Route("/boom", boom), Route("/after", after), Route("/liar", liar), Route("/body", body, methods=["POST"]),
            WebSocketRoute("/held", held),
        ]
        return Starlette(routes=routes)

    @app.function(max_containers=1)
    @nomadfn.fastapi_endpoint()
    def one_at_a_time(seconds: float = 0.0):
        time.sleep(seconds)
        return "done"

    @app.function()
    @nomadfn.asgi_app(requires_proxy_auth=True)
    def guarded():
        async def web(scope, receive, send):
            names = sorted(name.decode() for name, _ in scope["headers"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": " ".join(names).encode()})

        return web
"""


def program(timeout_s: int = 60, **changes: str) -> str:
    text = ENDS.replace("TIMEOUT", str(timeout_s))
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


@pytest.fixture
def site(world: World) -> Iterator[Site]:
    with Site(world, program()) as made:
        yield made


@pytest.fixture
def logs(site: Site) -> Callable[[str], None]:
    """Waits until the app's containers have printed something."""
    return site.world.start("nomadfn", "app", "logs", "-f", "site").says


def printed(site: Site) -> str:
    done = site.world.nomadfn("app", "logs", "site").ok()
    return done.out + done.err


def test_the_first_request_waits_for_its_container_and_bursts_share_it(site: Site) -> None:
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: site.get("api"), range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["pid"] for answer in answers}) <= 2


def test_a_client_that_leaves_is_seen_by_the_application(site: Site, logs: Callable[[str], None]) -> None:
    with site.client.stream("GET", site.url("api/endless")) as answer:
        next(answer.iter_raw())
    logs("left")


def test_a_client_that_gives_up_is_seen_by_the_application(site: Site, logs: Callable[[str], None]) -> None:
    site.get("api")
    for path, words in (("api/waits", "disconnected"), ("api/slow?seconds=50", "cancelled")):
        with pytest.raises(httpx.ReadTimeout):
            site.get(path, timeout=httpx.Timeout(40, read=0.5))
        logs(words)


def test_what_the_application_does_after_its_response_goes_on(site: Site, logs: Callable[[str], None]) -> None:
    assert site.get("api/after", headers={"Connection": "close"}).text == "answered"
    logs("worked on")


def test_an_application_that_raises_gives_500_and_no_secrets(site: Site, logs: Callable[[str], None]) -> None:
    answer = site.get("api/boom")
    assert (answer.status_code, answer.text.strip()) == (500, "Internal Server Error")
    assert site.get("api").status_code == 200
    eventually(lambda: "a secret of the application" in printed(site), "its log")


def test_a_response_that_is_none_of_http_ends_the_connection_and_nothing_else(site: Site) -> None:
    assert site.get("api/liar?length=5&odd=no").text == "short"
    for query in ("length=500&odd=no", "length=2&odd=no", "length=5&odd=a%0d%0aSet-Cookie:%20b"):
        with pytest.raises(httpx.RemoteProtocolError):
            site.get(f"api/liar?{query}")
    assert site.get("api").status_code == 200
    assert (site.world.data / "control.log").read_text().count("sent a response that is none of HTTP") == 3


def test_a_request_over_its_timeout_gives_504_and_its_siblings_go_on(world: World) -> None:
    with Site(world, program(timeout_s=2)) as site, ThreadPoolExecutor(2) as threads:
        pid = site.get("api").json()["pid"]
        late = threads.submit(site.get, "api/slow?seconds=30")
        good = threads.submit(site.get, "api/slow?seconds=1")
        assert (good.result().status_code, good.result().json()["pid"]) == (200, pid)
        assert late.result().status_code == 504
        assert "longer than its timeout of 2 s" in late.result().text
        assert site.get("api").json()["pid"] == pid


def test_a_lost_container_gives_502_once_something_was_taken_or_sent(site: Site) -> None:
    first = site.get("api").json()["pid"]
    taken = site.client.post(site.url("api/die"), content=b"a body")
    assert (taken.status_code, taken.text.strip()) == (502, "the container of api was lost while it answered")
    with pytest.raises(httpx.RemoteProtocolError), site.client.stream("GET", site.url("api/half")) as answer:
        assert "".join(answer.iter_text()) == "half "
    assert site.get("api").json()["pid"] != first


def test_a_lost_container_is_no_matter_where_nothing_was_taken_or_sent(site: Site) -> None:
    answer = site.get(f"api/die_once?path={site.world.folder / 'once'}")
    assert (answer.status_code, answer.text) == (200, "survived")


def test_a_container_that_is_killed_ends_what_it_streams(site: Site) -> None:
    with site.client.stream("GET", site.url("api/endless")) as answer:
        lines = answer.iter_lines()
        os.kill(int(next(lines).split()[0]), signal.SIGKILL)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    assert site.get("api").status_code == 200


def test_a_deploy_lets_open_requests_end_where_they_are(site: Site) -> None:
    old = site.get("api").json()
    with ThreadPoolExecutor(1) as threads:
        open_one = threads.submit(site.get, "api/slow?seconds=4")
        eventually(lambda: "begun" in printed(site), "the request has begun")
        site.deploy(program(**{"VERSION = 1": "VERSION = 2"}))
        eventually(lambda: site.get("api").json()["version"] == 2, "the new version answers")
        assert open_one.result().json() == old


def test_more_than_200_a_second_are_told_when_to_try_again(world: World) -> None:
    env = {"NOMADFN_LIMITS_WEB_REQUESTS_PER_S": "5", "NOMADFN_LIMITS_WEB_BURST_S": "2"}
    with Site(world, program(), **env) as site:
        answers = [site.get("api") for _ in range(40)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert 10 <= len(answers) - len(refused) < 40
        assert int(refused[0].headers["retry-after"]) >= 1
        assert "limits.web_requests_per_s" in refused[0].text
        assert site.get("one_at_a_time").status_code == 200  # another function has a limit of its own
        eventually(lambda: site.get("api").status_code == 200, "it answers again")


def test_over_the_limit_of_pending_inputs_requests_are_refused(world: World) -> None:
    with Site(world, program(), NOMADFN_LIMITS_PENDING_INPUTS="2") as site, ThreadPoolExecutor(8) as threads:
        assert site.get("one_at_a_time").status_code == 200
        answers = list(threads.map(lambda _: site.get("one_at_a_time?seconds=1"), range(8)))
        counts = {status: sum(answer.status_code == status for answer in answers) for status in (200, 429)}
        assert counts[200] >= 3
        assert counts[200] + counts[429] == 8
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert "limits.pending_inputs" in refused.text
        assert int(refused.headers["retry-after"]) >= 1


def test_an_application_that_cannot_start_gives_500_with_where_to_look(world: World) -> None:
    broken = """
        import nomadfn

        app = nomadfn.App("site")

        @app.function()
        @nomadfn.asgi_app()
        def raises():
            raise LookupError("a secret of the program")

        @app.function()
        @nomadfn.asgi_app()
        def nothing():
            return None

        @app.function()
        @nomadfn.web_server(1, startup_timeout=0.2)
        def silent():
            pass

        @app.function()
        @nomadfn.wsgi_app()
        def wrong():
            async def web(scope, receive, send): ...
            return web
    """
    with Site(world, broken) as site:
        words = {
            "raises": "a secret of the program",
            "nothing": "returned NoneType, which is no ASGI application",
            "silent": "did not listen on port 1 within startup_timeout=0.2 s",
            "wrong": "returned an ASGI application; use @nomadfn.asgi_app() for it",
        }
        for name, why in words.items():
            answer = site.get(name)
            assert (answer.status_code, why in answer.text) == (500, False), answer.text
            assert f"no container of {name} could be started; `nomadfn app logs site` says why" in answer.text
            assert why in printed(site)


def test_a_guarded_function_wants_a_token_and_does_not_see_it(world: World) -> None:
    with Site(world, program(), NOMADFN_WEB_TOKEN="nf_web-token-of-a-caller") as site:
        owner = (world.data / "token").read_text().strip()
        assert site.get("guarded").status_code == 401
        assert site.get("guarded", headers={"Nomadfn-Key": "nf_wrong-token-of-a-caller"}).status_code == 401
        for token in (owner, "nf_web-token-of-a-caller"):
            answer = site.get("guarded", headers={"Nomadfn-Key": token})
            assert (answer.status_code, "nomadfn-key" in answer.text) == (200, False)
        assert site.get("api").status_code == 200


def test_bodies_and_headers_over_their_limits_are_refused(world: World) -> None:
    env = {"NOMADFN_WEB_MAX_BODY_BYTES": "100000", "NOMADFN_WEB_MAX_HEADER_BYTES": "8192"}
    with Site(world, program(), **env) as site:
        assert site.client.post(site.url("api/body"), content=b"x" * 100_000).json()["size"] == 100_000
        large = site.client.post(site.url("api/body"), content=b"x" * 100_001)
        assert (large.status_code, "web_max_body_bytes" in large.text) == (413, True)
        parts = (b"x" * 10_000 for _ in range(50))
        assert site.client.post(site.url("api/body"), content=parts).status_code == 413
        assert site.get("api", headers={"X-Large": "x" * 9_000}).status_code == 431
        assert site.get("api", headers={"X-Large": "x" * 60_000}).status_code == 431
        assert site.get("api", headers={"X-Good": "x" * 4_000}).status_code == 200


def test_headers_that_do_not_come_are_not_waited_for(world: World) -> None:
    with Site(world, program(), NOMADFN_WEB_HEADER_TIMEOUT_S="0.5") as site:
        port = int(site.base.rpartition(":")[2])
        for sent, expected in ((b"GET / HT", b"HTTP/1.1 408 "), (b"", b"")):
            with socket.create_connection(("127.0.0.1", port), 20) as peer:
                peer.sendall(sent)
                got = b""
                while part := peer.recv(4096):
                    got += part
                assert got.startswith(expected)
        with socket.create_connection(("127.0.0.1", port), 20) as peer:
            peer.sendall(b"no http at all\r\n\r\n")
            assert peer.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_a_websocket_is_told_when_its_application_ends(site: Site, logs: Callable[[str], None]) -> None:
    url = site.url("api/held").replace("http://", "ws://")

    async def hold_and_kill() -> int:
        async with connect(url) as held:
            await held.send("hi")
            assert await held.recv() == "hi"
            pid = site.get("api").json()["pid"]
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await held.recv()
            assert closed.value.rcvd is not None
            return closed.value.rcvd.code

    async def leave() -> None:
        async with connect(url) as held:
            await held.send("hi")
            await held.recv()

    assert asyncio.run(hold_and_kill()) == 1011
    asyncio.run(leave())
    logs("socket over")


@pytest.mark.skipif(CURL is None, reason="there is no curl")
def test_down_ends_open_requests_and_up_has_the_same_address(site: Site) -> None:
    assert site.get("api").status_code == 200
    stuck = threading.Thread(target=lambda: _swallow(site, "api/slow?seconds=50"), daemon=True)
    stuck.start()
    began = time.monotonic()
    site.world.nomadfn("down").ok()
    assert time.monotonic() - began < 40
    stuck.join(20)
    assert site.world.up()["web_url"] == site.base
    eventually(lambda: site.curl("api")[0] == 200, "the deployed app answers again")


def _swallow(site: Site, path: str) -> None:
    try:
        site.get(path)
    except httpx.HTTPError:
        pass
