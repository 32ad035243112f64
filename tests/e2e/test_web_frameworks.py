"""Web functions of every kind, asked by a real HTTP client and by curl: FastAPI, Starlette, Flask, a server."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from consul_server import free_ports
from web_site import CURL, Site
from world import World

KINDS = """
    import nomadfn

    app = nomadfn.App("site")

    @app.function()
    @nomadfn.fastapi_endpoint(docs=True)
    def greet(name: str = "you"):
        return {"hello": name}

    @app.function()
    @nomadfn.fastapi_endpoint(method="POST", label="add")
    async def add_up(body: dict):
        return body["x"] + body["y"]

    @app.function()
    @nomadfn.asgi_app()
    def plain():
        from contextlib import asynccontextmanager
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        @asynccontextmanager
        async def lifespan(web):
            print("startup", flush=True)
            yield {"since": "startup"}
            print("shutdown", flush=True)

        async def state(request):
            url = str(request.url_for("named", name="x"))
            return JSONResponse({"since": request.state.since, "url": url})

        async def named(request):
            return JSONResponse(request.path_params["name"])

        routes = [Route("/", state), Route("/named/{name:path}", named, name="named")]
        return Starlette(routes=routes, lifespan=lifespan)

    @app.function()
    @nomadfn.concurrent(max_inputs=5)
    @nomadfn.wsgi_app()
    def flask():
        from flask import Flask, Response, request, url_for

        web = Flask("site")

        @web.get("/")
        def root():
            return {"script": request.script_root, "here": url_for("echo")}

        @web.post("/echo")
        def echo():
            return Response(request.get_data(), mimetype=request.mimetype, headers={"X-Method": request.method})

        @web.get("/errors")
        def errors():
            import sys

            request.environ["wsgi.errors"].write("told")
            return {"stderr": request.environ["wsgi.errors"] is sys.stderr}

        @web.get("/slow")
        def slow():
            return Response((f"{number}\\n" for number in range(1000)), mimetype="text/plain")

        return web

    @app.function()
    @nomadfn.concurrent(max_inputs=5)
    @nomadfn.web_server(PORT, startup_timeout=30)
    def files():
        import subprocess, sys

        subprocess.Popen([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "-d", "FOLDER", "PORT"])
"""


@pytest.fixture
def site(world: World) -> Iterator[Site]:
    (world.folder / "public").mkdir()
    (world.folder / "public/page.html").write_text("<p>a page</p>")
    [port] = free_ports(1)
    with Site(world, KINDS.replace("PORT", str(port)).replace("FOLDER", str(world.folder / "public"))) as made:
        yield made


def test_a_fastapi_endpoint_reads_its_arguments_and_has_docs(site: Site) -> None:
    assert site.get("greet").json() == {"hello": "you"}
    assert site.get("greet/?name=Ada").json() == {"hello": "Ada"}
    assert site.get("greet?name=Ada").json() == {"hello": "Ada"}
    assert "/site/greet/openapi.json" in site.get("greet/docs").text
    assert site.get("greet/openapi.json").json()["paths"]["/"]["get"]
    assert site.client.post(site.url("greet")).status_code == 405
    assert site.client.post(site.url("add"), json={"x": 2, "y": 3}).json() == 5
    assert site.get("add_up").status_code == 404
    allowed = site.get("greet", headers={"Origin": "https://elsewhere.example"}).headers
    assert allowed["access-control-allow-origin"] in ("*", "https://elsewhere.example")


def test_a_starlette_application_has_its_lifespan_and_its_own_addresses(site: Site) -> None:
    answer = site.get("plain").json()
    assert answer == {"since": "startup", "url": site.url("plain/named/x")}
    assert site.get("plain/named/a%2Fb%20c").json() == "a/b c"
    logs = site.world.start("nomadfn", "app", "logs", "-f", "site")
    logs.says("startup")
    site.world.nomadfn("app", "stop", "site").ok()
    logs.says("shutdown")


def test_a_flask_application_runs_in_threads(site: Site) -> None:
    assert site.get("flask").json() == {"script": "/site/flask", "here": "/site/flask/echo"}
    answer = site.client.post(site.url("flask/echo"), content=b"\0bytes", headers={"Content-Type": "image/x"})
    assert (answer.content, answer.headers["content-type"]) == (b"\0bytes", "image/x")
    assert answer.headers["x-method"] == "POST"
    assert site.get("flask/slow").text.splitlines() == [str(number) for number in range(1000)]
    assert site.get("flask/errors").json() == {"stderr": True}
    assert site.get("flask/nothing").status_code == 404


def test_a_server_that_the_function_starts_is_asked_below_its_own_path(site: Site) -> None:
    assert site.get("files/page.html").text == "<p>a page</p>"
    assert "page.html" in site.get("files").text
    assert site.get("files/nothing").status_code == 404
    head = site.client.head(site.url("files/page.html"))
    assert (head.headers["content-length"], head.content) == ("13", b"")


@pytest.mark.skipif(CURL is None, reason="there is no curl")
def test_curl_finds_each_by_path_and_by_host(site: Site) -> None:
    assert site.curl("greet?name=curl") == (200, '{"hello":"curl"}')
    assert site.curl("add", "--json", '{"x": 1, "y": 2}') == (200, "3")
    port = site.base.rpartition(":")[2]
    for host in ("site--greet.localhost", "SITE--GREET.localhost"):
        done = site.world.execute(CURL, "-sS", "-H", f"Host: {host}:{port}", f"{site.base}/?name=host").ok()
        assert done.out == '{"hello":"host"}'
    status, text = site.curl("nothing")
    assert status == 404
    assert "no web function is at this address" in text


def test_the_commands_and_the_program_show_the_addresses(site: Site) -> None:
    listed = {one["name"]: one["web_url"] for one in site.world.nomadfn("function", "list", "--json").ok().json}
    assert listed["greet"] == site.url("greet")
    assert listed["add_up"] == site.url("add")
    assert site.url("greet") in site.world.nomadfn("function", "explain", "site", "greet").ok().out
    assert site.url("add") in site.world.nomadfn("deploy", "site.py").ok().out
    site.world.write(
        "asks.py",
        """
        import nomadfn

        greet = nomadfn.Function.from_name("site", "greet")
        print(greet.get_web_url())
        for verb in (greet.remote, greet.spawn, lambda: list(greet.map([1]))):
            try:
                verb()
            except nomadfn.exception.InvalidError as error:
                print(error)
        """,
    )
    asked = site.world.python("asks.py").ok().out.splitlines()
    assert asked[0] == site.url("greet")
    for line in asked[1:]:
        assert line.startswith(f"greet is a web function and takes HTTP requests only; send them to {asked[0]}")
    assert len(asked) == 4


def test_a_program_that_runs_has_addresses_of_its_own(world: World) -> None:
    world.write(
        "once.py",
        """
        import urllib.request
        import nomadfn

        app = nomadfn.App("once")

        @app.function()
        @nomadfn.asgi_app()
        def hello():
            async def web(scope, receive, send):
                headers = [(b"content-type", b"text/plain")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": scope["path"].encode()})

            return web

        @app.function()
        def asks():
            return hello.get_web_url(), urllib.request.urlopen(hello.get_web_url() + "/inner").read().decode()

        @app.local_entrypoint()
        def main():
            url = hello.get_web_url()
            print(url, asks.get_web_url())
            print(urllib.request.urlopen(url).read().decode())
            print(*asks.remote())
            try:
                hello.remote()
            except nomadfn.exception.InvalidError as error:
                print(error)
        """,
    )
    done = world.nomadfn("run", "once.py").ok()
    first, second, third, fourth = done.out.splitlines()
    url = first.removesuffix(" None")
    assert url.endswith("/once-dev/hello")
    assert second == "/once-dev/hello/"
    assert third == f"{url} /once-dev/hello/inner"
    assert url in fourth
    assert f"hello answers at {url}" in done.err


def test_behind_a_proxy_addresses_are_those_of_outside(world: World) -> None:
    program = """
        import nomadfn

        app = nomadfn.App("site")

        @app.function()
        @nomadfn.asgi_app()
        def plain():
            from starlette.applications import Starlette
            from starlette.responses import JSONResponse
            from starlette.routing import Route

            async def seen(request):
                return JSONResponse([str(request.url), request.client.host])

            return Starlette(routes=[Route("/x", seen)])
    """
    port = world.up(NOMADFN_WEB_URL="https://{name}.fn.example.com/")["web_url"]
    assert port == "https://{name}.fn.example.com"
    world.write("site.py", program)
    assert "https://site--plain.fn.example.com" in world.nomadfn("deploy", "site.py").ok().out
    inside = f"http://127.0.0.1:{(world.data / 'web_port').read_text().strip()}/x"
    headers = {"Host": "site--plain.fn.example.com", "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}
    with httpx.Client(timeout=60, trust_env=False) as client:
        assert client.get(inside, headers=headers).json() == ["https://site--plain.fn.example.com/x", "203.0.113.7"]
