"""The decorators of web functions: what they leave in the spec, and every way to use them wrongly."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import nomadfn
from nomadfn.exception import DeprecationError, InvalidError, UnsupportedError

names = itertools.count()


def make(*decorators: Callable[..., Any], function: Callable[..., Any] | None = None, **settings: Any) -> Any:
    """A function of an app with these decorators, the upper one first."""
    app: Any = nomadfn.App(f"web-{next(names)}")

    def web() -> str:
        return "an application"

    made: Any = function or web
    for one in reversed(decorators):
        made = one(made)
    return app.function(**settings)(made)


def test_each_decorator_reaches_the_spec() -> None:
    asgi = make(nomadfn.asgi_app(label="api", requires_proxy_auth=True)).spec
    assert (asgi.web.kind, asgi.web.label, asgi.web.requires_proxy_auth, asgi.is_async) == ("asgi", "api", True, True)
    wsgi = make(nomadfn.wsgi_app()).spec
    assert (wsgi.web.kind, wsgi.web.label, wsgi.is_async) == ("wsgi", "", False)
    endpoint = make(nomadfn.fastapi_endpoint(method="post", docs=True)).spec
    assert (endpoint.web.kind, endpoint.web.method, endpoint.web.docs) == ("fastapi", "POST", True)
    server = make(nomadfn.web_server(8000, startup_timeout=20)).spec
    assert (server.web.kind, server.web.port, server.web.startup_timeout_s) == ("server", 8000, 20.0)


def test_a_plain_function_has_no_web_part() -> None:
    assert make().spec.web is None


def test_an_endpoint_is_stopped_alone_where_it_is_a_coroutine() -> None:
    async def item(name: str) -> str:
        return name

    assert make(nomadfn.fastapi_endpoint(), function=item).spec.is_async
    assert not make(nomadfn.fastapi_endpoint()).spec.is_async


@pytest.mark.parametrize("order", [0, 1])
def test_it_goes_with_concurrent_in_either_order(order: int) -> None:
    decorators = [nomadfn.concurrent(max_inputs=20), nomadfn.asgi_app()]
    spec = make(*(decorators[::-1] if order else decorators)).spec
    assert (spec.max_inputs, spec.web.kind) == (20, "asgi")


def test_local_calls_what_the_user_wrote() -> None:
    assert make(nomadfn.asgi_app()).local() == "an application"


@pytest.mark.parametrize(
    ("decorate", "words"),
    [
        (lambda: nomadfn.asgi_app(label="Upper"), "label='Upper' has to be 1 to 63 of a-z"),
        (lambda: nomadfn.asgi_app(label="-a"), "no '-' at its ends"),
        (lambda: nomadfn.asgi_app(requires_proxy_auth="yes"), "requires_proxy_auth='yes' must be True or False"),
        (lambda: nomadfn.asgi_app(print), "write @asgi_app()"),
        (lambda: nomadfn.wsgi_app(print), "write @wsgi_app()"),
        (lambda: nomadfn.fastapi_endpoint(print), "write @fastapi_endpoint()"),
        (lambda: nomadfn.fastapi_endpoint(method="FETCH"), "method='FETCH' must be one of GET, POST"),
        (lambda: nomadfn.fastapi_endpoint(docs=1), "docs=1 must be True or False"),
        (lambda: nomadfn.web_server(), r"port=None must be a port from 1 to 65,535: write @web_server\(8000\)"),
        (lambda: nomadfn.web_server(print), r"write @web_server\(8000\)"),
        (lambda: nomadfn.web_server(70_000), "port=70000"),
        (lambda: nomadfn.web_server(True), "port=True"),
        (lambda: nomadfn.web_server(8000, startup_timeout=0), "startup_timeout=0 must be a number of seconds over 0"),
    ],
)
def test_a_wrong_argument_is_refused(decorate: Callable[[], Any], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        decorate()


@pytest.mark.parametrize("decorator", [nomadfn.asgi_app, nomadfn.wsgi_app, nomadfn.fastapi_endpoint])
def test_custom_domains_have_a_way_out(decorator: Any) -> None:
    with pytest.raises(
        UnsupportedError, match=r"custom_domains=\.\.\.\) is not supported by nomadfn; let your own proxy"
    ):
        decorator(custom_domains=["api.example.com"])
    assert decorator(custom_domains=None)


def test_the_old_name_says_the_new_one() -> None:
    with pytest.raises(DeprecationError, match="use @fastapi_endpoint"):
        nomadfn.web_endpoint(method="POST")
    with pytest.raises(DeprecationError, match="get_web_url"):
        make(nomadfn.asgi_app()).web_url  # noqa: B018


async def coroutine() -> None: ...


def generator() -> Iterator[int]:
    yield 1


def with_parameter(request: Any) -> None: ...


@pytest.mark.parametrize(
    ("decorator", "function", "words"),
    [
        (nomadfn.asgi_app(), coroutine, "function coroutine: @asgi_app needs a function that is defined with `def`"),
        (nomadfn.web_server(8000), coroutine, "@web_server needs a function that is defined with `def`"),
        (nomadfn.wsgi_app(), generator, "function generator: a generator cannot have @wsgi_app"),
        (nomadfn.fastapi_endpoint(), generator, "return a StreamingResponse instead"),
        (nomadfn.asgi_app(), with_parameter, "is called without arguments; leave 'request' out"),
        (nomadfn.asgi_app(), str, "class str: @asgi_app is for a method"),
        (nomadfn.asgi_app(), 3, "@asgi_app needs a function"),
    ],
)
def test_a_wrong_function_is_refused(decorator: Any, function: Any, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        decorator(function)


def test_two_of_them_are_refused() -> None:
    with pytest.raises(InvalidError, match="it has @wsgi_app and @asgi_app; leave one out"):
        make(nomadfn.asgi_app(), nomadfn.wsgi_app())


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(InvalidError, match="function web: retries= is not for web functions"):
        make(nomadfn.asgi_app(), retries=2)

    def batch(texts: list[str]) -> list[str]:
        return texts

    def web() -> None: ...

    batched = nomadfn.batched(max_batch_size=2, wait_ms=1)
    with pytest.raises(InvalidError, match="@batched and @fastapi_endpoint do not go together"):
        make(nomadfn.fastapi_endpoint(), batched, function=batch)
    # Each needs a signature that the other refuses: neither may send people round in circles.
    for inner, outer, function in ((nomadfn.asgi_app(), batched, web), (batched, nomadfn.asgi_app(), batch)):
        with pytest.raises(InvalidError, match="@batched and @asgi_app do not go together"):
            nomadfn.App("both").function()(outer(inner(function)))


def test_above_the_apps_own_decorator_it_is_refused() -> None:
    app: Any = nomadfn.App("web-above")
    with pytest.raises(InvalidError, match=r"@asgi_app stands above @app.function"):

        @nomadfn.asgi_app()
        @app.function()
        def web() -> None: ...


def make_class(body: dict[str, Any], **settings: Any) -> Any:
    app: Any = nomadfn.App(f"web-{next(names)}")
    return app.cls(**settings)(type("Model", (), {"__module__": __name__, **body}))


def returns_app(self: Any) -> None: ...


def test_methods_of_a_class_reach_its_spec() -> None:
    made = make_class({"web": nomadfn.asgi_app(label="api")(returns_app), "plain": nomadfn.method()(returns_app)})
    assert [(method, web.kind, web.label) for method, web in made.spec.webs] == [("web", "asgi", "api")]
    assert {one.name: one.is_async for one in made.spec.methods} == {"web": True, "plain": False}
    assert made.spec.web is None


def test_a_class_alone_with_an_application_needs_no_other_method() -> None:
    assert make_class({"web": nomadfn.wsgi_app()(returns_app)}).spec.is_web


@pytest.mark.parametrize(
    ("body", "settings", "words"),
    [
        ({"web": nomadfn.enter()(nomadfn.asgi_app()(returns_app))}, {}, "web is an @enter method"),
        ({"web": nomadfn.asgi_app()(returns_app)}, {"retries": 1}, "class Model: retries= is not for web functions"),
        (
            {"web": nomadfn.asgi_app()(returns_app), "key": nomadfn.parameter(), "__annotations__": {"key": "bytes"}},
            {},
            "its method web answers HTTP, whose addresses cannot give key, of type bytes: give the parameter a default",
        ),
    ],
)
def test_what_does_not_go_together_in_a_class_is_refused(
    body: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidError, match=words):
        make_class(body, **settings)


def test_two_functions_at_one_address_are_refused() -> None:
    from nomadfn.sdk.web import check_addresses

    labelled = make(nomadfn.asgi_app(label="web")).spec
    plain = make(nomadfn.asgi_app()).spec
    check_addresses("shop", [plain])
    with pytest.raises(InvalidError, match="app shop: web and web would both answer at /shop/web"):
        check_addresses("shop", [plain, labelled])
