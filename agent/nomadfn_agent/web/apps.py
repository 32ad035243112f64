"""From a web function to the ASGI application that its container serves."""

from __future__ import annotations

import inspect
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from ..code import LoadError
from ..wire import WebSpec

HOST = "127.0.0.1"
PORT_POLL_S = 0.01


class WebError(LoadError):
    """A web function that gave nothing that can be served; the text says what, and what to do."""


def make_application(function: Callable[..., Any], name: str, web: WebSpec, slots: int) -> Any:
    """Call the function once, but for an endpoint, and make an ASGI application of it. Raises WebError, or its own.

    `slots` is how many requests there may be at once.
    """
    if web.kind == "asgi":
        return _asgi(function(), name)
    if web.kind == "wsgi":
        return _wsgi(function(), name, slots)
    if web.kind == "fastapi":
        return _fastapi(function, name, web)
    from .proxy import Proxy

    _start_server(function, name, web)
    return Proxy(HOST, web.port)


def _asgi(app: Any, name: str) -> Any:
    if not callable(app):
        raise WebError(
            f"{name} returned {type(app).__name__}, which is no ASGI application; return one, such as FastAPI()"
        )
    if inspect.isclass(app) or _takes(app, 1):
        raise WebError(f"{name} returned an application of ASGI 2, or a class; return an ASGI 3 application")
    return app


def _takes(app: Any, count: int) -> bool:
    try:
        inspect.signature(app).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


def _wsgi(app: Any, name: str, slots: int) -> Any:
    if not callable(app):
        raise WebError(
            f"{name} returned {type(app).__name__}, which is no WSGI application; return one, such as Flask(...)"
        )
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__):
        raise WebError(f"{name} returned an ASGI application; use @nomadfn.asgi_app() for it")
    try:
        from a2wsgi import WSGIMiddleware
    except ModuleNotFoundError:
        raise WebError(
            f"{name} has @wsgi_app, which needs the package a2wsgi where its containers run: pip install a2wsgi"
        ) from None

    def with_errors(environ: Any, start_response: Any) -> Any:
        # a2wsgi names stdout here.
        return app(environ | {"wsgi.errors": sys.stderr}, start_response)

    return WSGIMiddleware(with_errors, workers=slots)


def _fastapi(function: Callable[..., Any], name: str, web: WebSpec) -> Any:
    try:
        from fastapi import FastAPI
        from fastapi.middleware.cors import CORSMiddleware
    except ModuleNotFoundError as error:
        raise WebError(
            f"{name} has @fastapi_endpoint, which needs FastAPI where its containers run, and {error.name} is not "
            "there: pip install fastapi, or give the function an image with .uv_pip_install('fastapi')"
        ) from None
    app = FastAPI(title=name, openapi_url="/openapi.json" if web.docs else None)
    everything = ["*"]
    app.add_middleware(
        CORSMiddleware,
        allow_origins=everything,
        allow_credentials=True,
        allow_methods=everything,
        allow_headers=everything,
    )
    app.add_api_route("/", function, methods=[web.method])
    return app


def _start_server(function: Callable[..., Any], name: str, web: WebSpec) -> None:
    """Returns once the port accepts connections. Raises WebError when it does not in time, or did before."""
    if _accepts(web.port, 0.2):
        raise WebError(
            f"{name} shall listen on port {web.port}, and somebody on its machine does already, another container "
            f"perhaps: give it another port, or max_containers=1 where containers share the machine's ports"
        )
    function()
    deadline = time.monotonic() + web.startup_timeout_s
    while not _accepts(web.port, min(1.0, web.startup_timeout_s)):
        if time.monotonic() >= deadline:
            raise WebError(
                f"{name} did not listen on port {web.port} within startup_timeout={web.startup_timeout_s:g} s; have "
                f"its server listen on 0.0.0.0 or {HOST}, or raise startup_timeout"
            )
        time.sleep(PORT_POLL_S)


def _accepts(port: int, timeout_s: float) -> bool:
    try:
        socket.create_connection((HOST, port), timeout_s).close()
    except OSError:
        return False
    return True
