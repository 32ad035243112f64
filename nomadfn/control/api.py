"""The control service over HTTP, for people and for other languages: path and body in, JSON out.

Each route is one operation of the service by its name; nothing is decided here. Every answer but a log is
JSON, errors too: `{"error": {"kind": "NotFoundError", "message": "…"}}`, where `kind` is a class of
`nomadfn.exception` or, for a function that raised, the name of its own exception beside a `traceback`.
Results pass through as the JSON that the container wrote; nothing is ever unpickled.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import msgspec
from nomadfn_agent import wire
from nomadfn_agent.wire import outcome
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nomadfn import exception
from nomadfn.control.agent_bundle import Bundles
from nomadfn.control.blob_api import BlobApi, Download
from nomadfn.control.blob_desk import BlobDesk
from nomadfn.control.http_server import ApiServer, serve_api, unless_gone
from nomadfn.control.input_api import InputApi
from nomadfn.control.json_calls import read_call
from nomadfn.control.json_lines import json_lines
from nomadfn.control.metrics import MEDIA_TYPE

__all__ = ["ApiServer", "Service", "create_api", "serve_api"]

MAX_BODY_BYTES = 1024 * 1024
BODY_TIMEOUT_S = 30.0
"""How long a client may take to send a body."""
WAIT_DEFAULT_S = 60.0
WAIT_MAX_S = 600.0
TAIL_DEFAULT = 100
TAIL_MAX = 10_000
BUNDLE_PATH = "/v1/agent/nomadfn-agent.pyz"
METRICS_PATH = "/metrics"
OPEN_PATHS = frozenset(("/healthz", "/v1/leader", BUNDLE_PATH, METRICS_PATH))
"""What needs no token, since there is nothing secret in it and Nomad fetches the agent without one, and `/metrics`,
which asks for one of its own."""

STATUS_CODES: dict[type[exception.Error], int] = {
    exception.InvalidError: 400,
    exception.UnsupportedError: 400,
    exception.SerializationError: 400,
    exception.AuthError: 401,
    exception.PermissionDeniedError: 403,
    exception.NotFoundError: 404,
    exception.OutputExpiredError: 404,
    exception.AlreadyExistsError: 409,
    exception.ConflictError: 409,
    exception.RequestSizeError: 413,
    exception.ResourceExhaustedError: 429,
    exception.ServiceError: 503,
    exception.TimeoutError: 504,
    exception.Error: 500,
}
"""The status of each error; a class that is not here has that of the nearest class above it."""
AUTOSCALER_FIELDS = {
    "min_containers": "min_containers",
    "max_containers": "max_containers",
    "buffer_containers": "buffer_containers",
    "scaledown_window": "scaledown_window_s",
}


class Service(Protocol):
    """What the API needs of the control service. Every method but `follow_logs` raises `nomadfn.exception` errors."""

    def identify(self, bearer: str | None) -> Any:
        """Who holds this token. Raises `AuthError`."""
        ...

    async def perform(self, operation: str, body: dict[str, Any], identity: Any) -> Any: ...

    def leader(self) -> dict[str, Any]: ...

    def trouble(self) -> str:
        """Why it is not healthy, in words; empty while it is."""
        ...

    async def metrics(self, bearer: str | None) -> bytes:
        """The page `/metrics`, for who holds a token that is good for it."""
        ...

    def follow_logs(self, app: str, tail: int) -> AsyncGenerator[dict[str, Any]]:
        """The last `tail` lines and then each new one: `{container, function, index, stream, text}`."""
        ...


_T = TypeVar("_T")


def create_api(service: Service, blobs: BlobDesk, *, max_body_bytes: int = MAX_BODY_BYTES) -> Starlette:
    """The ASGI application over `service`. `max_body_bytes` is the largest body that is read, but for blobs."""
    api = _Api(service, blobs, max_body_bytes)
    function = "/v1/apps/{app}/functions/{name}"
    return Starlette(
        routes=[
            Route("/healthz", api.health),
            Route(METRICS_PATH, api.metrics),
            Route("/v1/leader", api.leader),
            agent_bundle_route(),
            BlobApi(blobs, BODY_TIMEOUT_S).route(),
            Route("/v1/status", api.status),
            Route("/v1/apps", api.list_apps),
            Route("/v1/apps/{app}", api.show_app),
            Route("/v1/apps/{app}/stop", api.stop_app, methods=["POST"]),
            Route("/v1/apps/{app}/logs", api.logs),
            Route("/v1/functions", api.list_functions),
            Route(function, api.explain_function),
            Route(f"{function}/autoscaler", api.scale_function, methods=["PATCH"]),
            Route(f"{function}/stats", api.function_stats),
            Route(f"{function}/call", api.call_function, methods=["POST"]),
            Route(f"{function}/spawn", api.spawn_function, methods=["POST"]),
            Route("/v1/calls/{id}", api.call_info),
            Route("/v1/calls/{id}/result", api.call_result),
            Route("/v1/calls/{id}/cancel", api.cancel_call, methods=["POST"]),
            *InputApi(service).routes(),
        ],
        middleware=[Middleware(_TokenMiddleware, service=service)],
        exception_handlers={
            exception.Error: _on_error,
            HTTPException: _on_http_exception,
            ClientDisconnect: _on_disconnect,
            Exception: _on_fault,
        },
    )


def agent_bundle_route() -> Route:
    """Where Nomad fetches the agent: `?python=3.12&platform=linux_x86_64`, by default as this control service runs."""
    bundles = Bundles()

    async def bundle(request: Request) -> Response:
        asked = [request.query_params.get(name, "") for name in ("python", "platform")]
        try:
            made = await bundles.offer(*asked)
        except exception.Error as error:
            return error_response(error)
        etag = f'"{made.digest}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(made.data, headers=headers, media_type="application/zip")

    return Route(BUNDLE_PATH, bundle)


class _Api:
    """The handlers; each reads its path and body, performs one operation and says what came back."""

    def __init__(self, service: Service, blobs: BlobDesk, max_body_bytes: int) -> None:
        self._service = service
        self._blobs = blobs
        self._max_body_bytes = max_body_bytes

    async def health(self, request: Request) -> Response:
        """503 where it leads and cannot do what it has to; what asks for it is a health check."""
        trouble = self._service.trouble()
        status = {"status": "failing", "reason": trouble} if trouble else {"status": "ok"}
        return _json({**status, "role": "leader"}, 503 if trouble else 200)

    async def metrics(self, request: Request) -> Response:
        return Response(await self._service.metrics(bearer_of(request)), media_type=MEDIA_TYPE)

    async def leader(self, request: Request) -> Response:
        return _json(self._service.leader())

    async def status(self, request: Request) -> Response:
        return _json(await self._perform(request, "status", {}))

    async def list_apps(self, request: Request) -> Response:
        return _json({"apps": await self._perform(request, "app.list", {})})

    async def show_app(self, request: Request) -> Response:
        return _json(await self._perform(request, "app.info", {"app": request.path_params["app"]}))

    async def stop_app(self, request: Request) -> Response:
        return _json(await self._perform(request, "app.stop", {"app_id": request.path_params["app"]}))

    async def list_functions(self, request: Request) -> Response:
        app = request.query_params.get("app")
        return _json({"functions": await self._perform(request, "function.list", {"app": app} if app else {})})

    async def explain_function(self, request: Request) -> Response:
        return _json(await self._perform(request, "function.explain", dict(request.path_params)))

    async def scale_function(self, request: Request) -> Response:
        changes = await self._json_object(request)
        body: dict[str, Any] = {"for_s": changes.pop("for_s")} if "for_s" in changes else {}
        if isinstance(reset := changes.pop("reset", None), list):
            body["reset"] = [AUTOSCALER_FIELDS.get(str(name), str(name)) for name in reset]
        elif reset is not None:
            raise exception.InvalidError(f"reset must be a list of settings, not {json.dumps(reset)[:80]}")
        for key, value in changes.items():
            if key not in AUTOSCALER_FIELDS:
                raise exception.InvalidError(f'unknown setting "{key}"; there are {", ".join(AUTOSCALER_FIELDS)}')
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise exception.InvalidError(f"{key} must be a number or null, not {json.dumps(value)[:80]}")
            body[AUTOSCALER_FIELDS[key]] = value
        if not body:
            raise exception.InvalidError(f"nothing to change: the body names one of {', '.join(AUTOSCALER_FIELDS)}")
        found = await self._perform(request, "function.lookup", dict(request.path_params))
        return _json(await self._perform(request, "function.scale", {"function_id": found["function_id"], **body}))

    async def function_stats(self, request: Request) -> Response:
        found = await self._perform(request, "function.lookup", dict(request.path_params))
        return _json(await self._perform(request, "function.stats", {"function_id": found["function_id"]}))

    async def call_function(self, request: Request) -> Response:
        """Runs the function and waits for its result, up to `?wait_s=`; then 202 with the call to ask for.

        A generator's values come as lines, as they are yielded.
        """
        wait_s = _number(request, "wait_s", WAIT_DEFAULT_S, WAIT_MAX_S)
        body = {**request.path_params, **await self._arguments(request), "wait_s": wait_s}
        outcome = await unless_gone(request.receive, self._perform(request, "call.json", body))
        if (stream := outcome.get("stream")) is not None:
            return await json_lines(request, stream, self._blobs, self._result, wait_s)
        if outcome.get("pending"):
            return _pending(outcome["call"])
        return await self._result(outcome["status"], outcome["payload"], outcome["codec"])

    async def spawn_function(self, request: Request) -> Response:
        body = {**request.path_params, **await self._arguments(request)}
        outcome = await self._perform(request, "call.spawn_json", body)
        return _json(outcome, 202, {"Location": f"/v1/calls/{outcome['call']}/result"})

    async def call_info(self, request: Request) -> Response:
        return _json(await self._perform(request, "call.info", {"call": request.path_params["id"]}))

    async def call_result(self, request: Request) -> Response:
        """The result of one input, `?index=` (0 is the first), once it is there within `?wait_s=`; else 202."""
        call = request.path_params["id"]
        index = int(_number(request, "index", 0, math.inf, whole=True))
        wait_s = _number(request, "wait_s", 0.0, 30.0)
        body = {"call": call, "first": index, "count": 1, "wait_s": wait_s}
        found = await unless_gone(request.receive, self._perform(request, "call.outputs", body))
        if found["indexes"]:
            return await self._result(found["statuses"][0], found["payloads"][0], found["codec"])
        if found["closed"] and found["num_inputs"] is not None and index >= found["num_inputs"]:
            raise exception.NotFoundError(f"call {call} has {found['num_inputs']} inputs, so none with index {index}")
        return _pending(call)

    async def cancel_call(self, request: Request) -> Response:
        body = await self._json_object(request)
        terminate = body.pop("terminate_containers", False)
        if body or not isinstance(terminate, bool):
            raise exception.InvalidError('the body is empty or {"terminate_containers": true}')
        cancel = {"call": request.path_params["id"], "terminate_containers": terminate}
        return _json(await self._perform(request, "call.cancel", cancel))

    async def logs(self, request: Request) -> Response:
        """Lines of text, or with `?format=json` one JSON object a line; `?follow=1` goes on until the app ends."""
        app = request.path_params["app"]
        tail = int(_number(request, "tail", TAIL_DEFAULT, TAIL_MAX, whole=True))
        form = _choice(request, "format", {"text": _text_line, "json": _json_line}, _text_line)
        follow = _choice(request, "follow", {"0": False, "1": True, "false": False, "true": True}, False)
        media_type = "application/x-ndjson" if form is _json_line else "text/plain"
        recent = await self._perform(request, "app.logs", {"app": app, "tail": 0 if follow else tail})
        if not follow:
            return Response(b"".join(map(form, recent["lines"])), media_type=media_type)

        async def lines() -> AsyncIterator[bytes]:
            async with aclosing(self._service.follow_logs(app, tail)) as source:
                async for line in source:
                    yield form(line)

        return StreamingResponse(lines(), media_type=media_type)

    async def _perform(self, request: Request, operation: str, body: dict[str, Any]) -> Any:
        return await self._service.perform(operation, body, request.state.identity)

    async def _arguments(self, request: Request) -> dict[str, Any]:
        return read_call(await self._json_object(request))

    async def _json_object(self, request: Request) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty object."""
        data = await self._read_body(request)
        if not data.strip():
            return {}
        try:
            body = json.loads(data)
        except RecursionError:
            raise exception.InvalidError("the body is not valid JSON: it is nested too deeply") from None
        except ValueError as error:
            raise exception.InvalidError(f"the body is not valid JSON: {error}") from None
        if not isinstance(body, dict):
            raise exception.InvalidError(f"the body must be a JSON object, not {type(body).__name__}")
        return body

    async def _read_body(self, request: Request) -> bytes:
        declared = request.headers.get("content-length", "0")
        body = bytearray()
        if int(declared) <= self._max_body_bytes:
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    async for chunk in request.stream():
                        body += chunk
                        if len(body) > self._max_body_bytes:
                            break
                    else:
                        return bytes(body)
            except TimeoutError:
                raise HTTPException(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
        raise exception.RequestSizeError(
            f"the body is over {self._max_body_bytes:,} bytes, the setting max_body_bytes of the control service; "
            "raise it, or call the function from Python, where large arguments travel out of band"
        )

    async def _result(self, status: int, data: bytes, codec: int) -> Response:
        """One output as a response; `data` is passed on unread but for errors, which are msgpack of ours."""
        if status & wire.REF:
            return await self._large_result(status & ~wire.REF, outcome.decode_ref(data), codec)
        if status == wire.FAILURE:
            failure = outcome.decode_failure(data)
            kind = getattr(exception, failure.error, exception.InternalError)
            # A result that is no JSON is not the caller's mistake.
            code = 500 if kind is exception.SerializationError else _status_of(kind)
            return _error(failure.error, failure.message, code)
        if status == wire.EXCEPTION:
            raised = outcome.decode_raised(data)
            return _error(raised.type_name, raised.text, 500, traceback=raised.traceback)
        _refuse_pickle(codec)
        return _json({"result": msgspec.Raw(data)})

    async def _large_result(self, status: int, ref: outcome.BlobRef, codec: int) -> Response:
        """An output that lies in the blob store; it is streamed, whatever its size."""
        expired = exception.OutputExpiredError("the result was kept for its time and is gone; call the function again")
        if status == wire.OK:
            _refuse_pickle(codec)
            return Download(self._blobs.reading(ref.name), expired, b'{"result":', b"}", "application/json")
        try:
            async with self._blobs.reading(ref.name) as parts:
                return await self._result(status, b"".join([part async for part in parts]), codec)
        except exception.NotFoundError:
            raise expired from None


class _TokenMiddleware:
    """No token, no answer, whatever the path; only OPEN_PATHS are open."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                scope.setdefault("state", {})["identity"] = self._service.identify(bearer_of(Request(scope)))
            except exception.Error as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def bearer_of(request: Request) -> str | None:
    """The token that came with a request."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return (token.strip() or None) if scheme.lower() == "bearer" else None


def _refuse_pickle(codec: int) -> None:
    if codec != wire.JSON:
        raise exception.InvalidError(
            "this call was made from Python and its result is a Python object, not JSON; "
            "read it with nomadfn.FunctionCall.from_id"
        )


def _number(request: Request, name: str, default: float, maximum: float, *, whole: bool = False) -> float:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= maximum:
        kind = "a whole number" if whole else "a number"
        bounds = f"from 0 to {maximum:g}" if math.isfinite(maximum) else "of 0 or more"
        raise exception.InvalidError(f"?{name}= must be {kind} {bounds}, not {text[:80]!r}")
    return value


def _choice(request: Request, name: str, choices: dict[str, _T], default: _T) -> _T:
    text = request.query_params.get(name)
    if text is None:
        return default
    if text not in choices:
        raise exception.InvalidError(f"?{name}= must be one of {', '.join(choices)}, not {text[:80]!r}")
    return choices[text]


def _text_line(line: dict[str, Any]) -> bytes:
    mark = f"{line['function']}#{line['index']} │ " if line["function"] else ""
    return f"{mark}{line['text'].rstrip(chr(10))}\n".encode(errors="replace")


def _json_line(line: dict[str, Any]) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def _pending(call: str) -> Response:
    return _json({"call": call, "pending": True}, 202, {"Location": f"/v1/calls/{call}/result"})


def _error(kind: str, message: str, status: int, headers: dict[str, str] | None = None, **more: str) -> Response:
    return _json({"error": {"kind": kind, "message": message, **more}}, status, headers)


def _status_of(kind: type[BaseException]) -> int:
    return next((STATUS_CODES[base] for base in kind.__mro__ if base in STATUS_CODES), 500)


def error_response(error: exception.Error) -> Response:
    headers = {}
    if isinstance(error, exception.ResourceExhaustedError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, exception.AuthError):
        headers["WWW-Authenticate"] = "Bearer"
    return _error(type(error).__name__, str(error), _status_of(type(error)), headers)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, exception.Error)
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses, and bodies that come too slowly."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    kind, message = {
        404: ("NotFoundError", f"there is nothing at {where}"),
        405: ("InvalidError", f"{where} is not offered; use {(error.headers or {}).get('Allow', 'another method')}"),
    }.get(error.status_code, ("InvalidError", error.detail))
    return _error(kind, message, error.status_code, dict(error.headers or {}))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _on_fault(request: Request, error: Exception) -> Response:
    """A fault of ours: Starlette raises it again after this answer, so that it stands in the service's log."""
    return _error("InternalError", "a fault of nomadfn; the control service's log has the details", 500)
