"""Web functions: the decorators under `@app.function(...)` that have a function answer HTTP, and where it does so."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import msgspec
from nomadfn_agent import wire

from nomadfn.exception import DeprecationError, InvalidError, UnsupportedError

from .blocking import blocking
from .partial import Partial, _needs_parentheses, _partial

if TYPE_CHECKING:
    from .client import Client
    from .target import Target

F = TypeVar("F", bound=Callable[..., Any])

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
_NAMES = {"asgi": "asgi_app", "wsgi": "wsgi_app", "fastapi": "fastapi_endpoint", "server": "web_server"}


def asgi_app(
    *misplaced: Any,
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    requires_proxy_auth: bool = False,
) -> Callable[[F], F]:
    """Serve the ASGI application (FastAPI, Starlette, …) that the function returns; it is called once a container.

    `label` stands in the URL in place of the function's name. With `requires_proxy_auth` the gateway answers only
    requests with a token in the header `Nomadfn-Key`. Stands under `@app.function(...)`, or on a method of a class.
    """
    _needs_parentheses("asgi_app", "", misplaced)
    return _decorator("asgi", label, custom_domains, requires_proxy_auth)


def wsgi_app(
    *misplaced: Any,
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    requires_proxy_auth: bool = False,
) -> Callable[[F], F]:
    """Serve the WSGI application (Flask, Django, …) that the function returns, each request in a thread.

    The function is called once a container. The settings are those of `asgi_app`.
    """
    _needs_parentheses("wsgi_app", "", misplaced)
    return _decorator("wsgi", label, custom_domains, requires_proxy_auth)


def fastapi_endpoint(
    *misplaced: Any,
    method: str = "GET",
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    docs: bool = False,
    requires_proxy_auth: bool = False,
) -> Callable[[F], F]:
    """Answer requests of one `method` with what the function returns, its arguments read by FastAPI.

    FastAPI has to be installed where the containers run. `docs` serves the pages `/docs` and `/openapi.json`. The
    other settings are those of `asgi_app`.
    """
    _needs_parentheses("fastapi_endpoint", "", misplaced)
    if not isinstance(method, str) or method.upper() not in METHODS:
        raise InvalidError(f"@fastapi_endpoint: method={method!r} must be one of {', '.join(METHODS)}")
    _check_flag("fastapi_endpoint", "docs", docs)
    return _decorator("fastapi", label, custom_domains, requires_proxy_auth, method=method.upper(), docs=docs)


def web_server(
    port: int | None = None,
    *misplaced: Any,
    startup_timeout: float = 5.0,
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    requires_proxy_auth: bool = False,
) -> Callable[[F], F]:
    """Pass requests on to a server that the function starts, once a container, on `port` of the container.

    The function returns while its server goes on, as a process or a thread; the container is ready when the port
    accepts connections, within `startup_timeout` seconds. The other settings are those of `asgi_app`.
    """
    if callable(port) or misplaced:
        _needs_parentheses("web_server", "8000", (port, *misplaced))
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65_535:
        raise InvalidError(f"@web_server: port={port!r} must be a port from 1 to 65,535: write @web_server(8000)")
    if isinstance(startup_timeout, bool) or not isinstance(startup_timeout, int | float) or not startup_timeout > 0:
        raise InvalidError(f"@web_server: startup_timeout={startup_timeout!r} must be a number of seconds over 0")
    timeout_s = float(startup_timeout)
    return _decorator("server", label, custom_domains, requires_proxy_auth, port=port, startup_timeout_s=timeout_s)


def web_endpoint(*args: Any, **kwargs: Any) -> NoReturn:
    """The old name of `fastapi_endpoint`."""
    raise DeprecationError("@web_endpoint is an old name; use @fastapi_endpoint")


def _decorator(
    kind: str, label: str | None, custom_domains: Any, requires_proxy_auth: bool, **more: Any
) -> Callable[[F], F]:
    decorator = _NAMES[kind]
    if custom_domains:
        raise UnsupportedError(
            f"@{decorator}(custom_domains=...) is not supported by nomadfn; let your own proxy or load balancer pass "
            f"the domain on to the function's URL"
        )
    if label is not None and (not isinstance(label, str) or not LABEL.fullmatch(label)):
        raise InvalidError(
            f"@{decorator}: label={label!r} has to be 1 to 63 of a-z, 0-9 and '-', with no '-' at its ends"
        )
    _check_flag(decorator, "requires_proxy_auth", requires_proxy_auth)
    web = wire.WebSpec(kind=kind, label=label or "", requires_proxy_auth=requires_proxy_auth, **more)

    def decorate(function: F) -> F:
        partial = _partial(function, decorator)
        if partial.web is not None:
            raise InvalidError(
                f"function {partial.name}: it has @{_NAMES[partial.web.kind]} and @{decorator}; leave one out"
            )
        if partial.batching is None:
            _check_function(partial, kind)
        partial.web = web
        return partial  # type: ignore[return-value]

    return decorate


def _check_flag(decorator: str, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidError(f"@{decorator}: {name}={value!r} must be True or False")


def _check_function(partial: Partial, kind: str) -> None:
    decorator, function = _NAMES[kind], partial.raw_f
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        way_out = "return a StreamingResponse" if kind == "fastapi" else "return the application"
        raise InvalidError(f"function {partial.name}: a generator cannot have @{decorator}; {way_out} instead")
    if kind == "fastapi":
        return
    if inspect.iscoroutinefunction(function):
        raise InvalidError(
            f"function {partial.name}: @{decorator} needs a function that is defined with `def`, not `async def`; "
            f"what it starts or returns may be asynchronous"
        )
    names = list(inspect.signature(function).parameters)
    if names[:1] == ["self"]:
        del names[0]
    if names:
        raise InvalidError(
            f"function {partial.name}: a function with @{decorator} is called without arguments; leave {names[0]!r} out"
        )


def settle(spec: wire.FunctionSpec, function: Callable[..., Any], owner: str) -> wire.FunctionSpec:
    """The spec of a function, whole where it is a web function. Raises InvalidError for what does not go together."""
    web = spec.web
    if web is None:
        return spec
    if spec.max_batch_size:
        raise InvalidError(
            f"{owner}: @batched and @{_NAMES[web.kind]} do not go together; batch in a function that it calls"
        )
    check_retries(spec, owner)
    return msgspec.structs.replace(spec, is_async=is_stopped_alone(web, function))


def check_retries(spec: wire.FunctionSpec, owner: str) -> None:
    if spec.retries.max_retries:
        raise InvalidError(f"{owner}: retries= is not for web functions, whose clients may try again; leave it out")


def is_stopped_alone(web: wire.WebSpec, function: Callable[..., Any]) -> bool:
    """Whether one request can be stopped by itself: a thread cannot."""
    return web.kind in ("asgi", "server") or (web.kind == "fastapi" and inspect.iscoroutinefunction(function))


def settle_class(spec: wire.FunctionSpec, owner: str) -> None:
    """Raises InvalidError for a class with methods that answer HTTP, where something does not go together with that."""
    methods = [one.name for one in spec.methods if one.web is not None]
    if not methods:
        return
    check_retries(spec, owner)
    for one in spec.parameters:
        if one.type == "bytes" and one.default is None:
            raise InvalidError(
                f"{owner}: its method {methods[0]} answers HTTP, whose addresses cannot give {one.name}, of type "
                f"bytes: give the parameter a default"
            )


def check_addresses(app: str, functions: Iterable[wire.FunctionSpec]) -> None:
    """Raises InvalidError where two web functions of an app would have one address."""
    seen: dict[str, str] = {}
    for spec in functions:
        for method, web in spec.webs:
            name = f"{spec.name}.{method}" if method else spec.name
            label = web.label or name
            if label in seen:
                raise InvalidError(
                    f"app {app}: {seen[label]} and {name} would both answer at /{app}/{label}; "
                    f"give one of them another label"
                )
            seen[label] = name


async def ask_url(client: Client, function_id: str, method: str = "") -> str:
    """Where a web function is, or a method of a class, by the control service; empty for any other."""
    body = {"function_id": function_id, "method": method}
    return str((await client.request("function.web_url", body))["url"])


class WebVerbs:
    """What a `Function` knows of its URL. Who inherits says whom to ask."""

    name: str
    _app: Any

    async def _target(self) -> Target:
        raise NotImplementedError

    @property
    def _is_variant(self) -> bool:
        """Whether it has an address of its own, which is asked for."""
        return False

    @property
    def answers_http(self) -> bool:
        """Whether it is a web function, as far as its definition is known here."""
        spec: wire.FunctionSpec | None = getattr(self, "spec", None)
        return spec is not None and spec.web is not None

    @blocking
    async def get_web_url(self) -> str | None:
        """Where a web function answers; None for any other function. Its app runs, or is deployed."""
        app = self._app
        if app is not None and app._running is None and app.deployment is not None and not self._is_variant:
            urls: dict[str, str] = app.deployment.web_urls
            if self.name in urls or not self.answers_http:
                return urls.get(self.name)
        return (await self._target()).web_url or None
