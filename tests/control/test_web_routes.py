"""Where web functions are: by path, by host, by the id of a run, and behind somebody else's name."""

from __future__ import annotations

import pytest
from nomadfn_agent import wire

from nomadfn.control.web_routes import Routes
from nomadfn.core.core import Core

ASGI = wire.WebSpec(kind="asgi")
LABELLED = wire.WebSpec(kind="asgi", label="api")


def app(name: str, **functions: wire.WebSpec | None) -> wire.AppSpec:
    return wire.AppSpec(name=name, functions=[wire.FunctionSpec(name=one, web=web) for one, web in functions.items()])


@pytest.fixture
def core() -> Core:
    core = Core()
    core.open_session("se")
    core.deploy(0.0, "ap-1", app("shop", web=ASGI, other_one=LABELLED, plain=None), 1)
    return core


def found(routes: Routes, path: str, host: str = "") -> str:
    headers = [(b"accept", b"*/*"), (b"host", host.encode())] if host else []
    route = routes.find(path.encode(), headers)
    return "" if route is None else f"{route.function.id} {route.root}"


def test_a_path_names_app_and_function_or_its_label(core: Core) -> None:
    routes = Routes(core.state, "http://h:1")
    assert found(routes, "/shop/web") == found(routes, "/shop/web/deeper/still") == "ap-1/web /shop/web"
    assert found(routes, "/shop/api/") == "ap-1/other_one /shop/api"
    assert found(routes, "/ap-1/api") == "ap-1/other_one /ap-1/api"
    assert found(routes, "/sh%6Fp/w%65b/x") == "ap-1/web /shop/web"
    for path in ("/shop/other_one", "/shop/plain", "/shop", "/", "", "/shop/webs", "/-/healthz", "/SHOP/web"):
        assert found(routes, path) == ""
    functions = core.state.functions
    assert routes.url(functions["ap-1/web"]) == "http://h:1/shop/web"
    assert routes.url(functions["ap-1/other_one"]) == "http://h:1/shop/api"
    assert routes.url(functions["ap-1/plain"]) == ""


def test_a_host_names_them_too_and_keeps_the_path(core: Core) -> None:
    routes = Routes(core.state, "https://{name}.fn.example.com")
    for host in ("shop--web.fn.example.com", "shop--web.fn.example.com:443", "SHOP--WEB.localhost:8080"):
        assert found(routes, "/anything", host) == "ap-1/web "
    assert found(routes, "/shop/web", "shop--api.fn.example.com") == "ap-1/other_one "
    assert found(routes, "/x", "shop--nothing.fn.example.com") == found(routes, "/x", "shop--web.evil.example") == ""
    assert routes.url(core.state.functions["ap-1/web"]) == "https://shop--web.fn.example.com"


def test_names_become_parts_of_a_host(core: Core) -> None:
    core.deploy(0.0, "ap-2", app("My.App_2", Do_It=ASGI), 1)
    routes = Routes(core.state, "http://{name}.x:8000")
    assert routes.url(core.state.functions["ap-2/Do_It"]) == "http://my-app-2--do-it.x:8000"
    assert found(routes, "/", "my-app-2--do-it.x") == "ap-2/Do_It "
    assert found(routes, "/My.App_2/Do_It") == "ap-2/Do_It /My.App_2/Do_It"


def test_of_two_that_share_a_host_name_the_second_has_its_id(core: Core) -> None:
    core.deploy(1.0, "ap-2", app("Shop", web=ASGI), 1)
    routes = Routes(core.state, "http://{name}.x")
    urls = {routes.url(core.state.functions[f"{id}/web"]) for id in ("ap-1", "ap-2")}
    assert len(urls) == 2
    assert all(found(routes, "/", url.partition("//")[2]) for url in urls)


def test_runs_have_a_name_of_their_own_and_the_newest_has_it(core: Core) -> None:
    core.start_app(1.0, "ap-2", app("shop", web=ASGI), "se")
    routes = Routes(core.state, "http://h:1")
    functions = core.state.functions
    assert routes.url(functions["ap-2/web"]) == "http://h:1/shop-dev/web"
    core.start_app(2.0, "ap-3", app("shop", web=ASGI), "se")
    assert routes.url(functions["ap-3/web"]) == "http://h:1/shop-dev/web"
    assert routes.url(functions["ap-2/web"]) == "http://h:1/ap-2/web"
    assert found(routes, "/shop-dev/web") == "ap-3/web /shop-dev/web"
    assert found(routes, "/ap-2/web") == "ap-2/web /ap-2/web"
    core.stop_app(3.0, "ap-3")
    assert found(routes, "/shop-dev/web") == "ap-2/web /shop-dev/web"
    core.deploy(4.0, "ap-4", app("shop-dev", web=ASGI), 1)
    assert found(routes, "/shop-dev/web") == "ap-4/web /shop-dev/web"
    assert routes.url(functions["ap-2/web"]) == "http://h:1/ap-2/web"


def test_a_deploy_changes_what_there_is_and_keeps_the_rate(core: Core) -> None:
    routes = Routes(core.state, "http://h:1")
    before = routes.find(b"/shop/web", [])
    assert before is not None
    core.deploy(1.0, "ap-1", app("shop", web=LABELLED, new=ASGI), 2)
    assert found(routes, "/shop/web") == ""
    after = routes.find(b"/shop/api", [])
    assert after is not None
    assert after.bucket is before.bucket
    assert found(routes, "/shop/new") == "ap-1/new /shop/new"
