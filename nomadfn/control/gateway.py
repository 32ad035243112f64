"""The gateway: HTTP requests and websockets for web functions, each an input like any other.

It is an ASGI application that passes ASGI's events on: the request as the input's payload, and what follows, either
way, as parts of the input's stream. A small request and its small response are one frame each. Queueing, slots, scale
from zero, timeouts and draining are the core's; here are the addresses, the limits, and what a client is told.
"""

from __future__ import annotations

import asyncio
import math
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nomadfn_agent import wire
from nomadfn_agent.wire import web

from nomadfn.control import web_parameters
from nomadfn.control.quick_visits import QuickVisit
from nomadfn.control.visits import Gone, Visit, close_websocket
from nomadfn.control.web_front import Application, answer, refuse
from nomadfn.control.web_routes import Headers, Route, Routes
from nomadfn.core.model import Function
from nomadfn.exception import AuthError, Error, PermissionDeniedError

if TYPE_CHECKING:
    from nomadfn.control.service import Service

KEY_HEADER = b"nomadfn-key"
CODEC = wire.PICKLE
"""Nobody looks at it: both ends know what is in the payloads of web functions."""
CLOSE_S = 10.0
"""How long an application may take to end once its websocket's client is gone."""
DRAIN_S = 30.0
"""How long a websocket stays open whose container is to end."""
DRAIN_POLL_S = 1.0
DRAIN_STEP_S = 0.02
NOT_FOUND: tuple[int, str, Headers] = (
    404,
    "no web function is at this address; `nomadfn function list` shows where they are",
    [],
)
LEAVE_S = 5.0
"""How long requests may take to end whose control service does."""

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Gateway:
    """The ASGI application. `max_body_bytes` bounds a request's body."""

    def __init__(self, service: Service, base_url: str, max_body_bytes: int) -> None:
        self.routes = Routes(service.core.state, base_url)
        self._service = service
        self._max_body_bytes = max_body_bytes
        self._websockets: set[Visit] = set()
        self._open = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        headers: Headers = scope["headers"]
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        route = self.routes.find(raw_path, headers)
        is_websocket = scope["type"] == "websocket"
        refusal = NOT_FOUND if route is None else self._refusal(route, headers)
        if refusal is not None:
            await refuse(scope, receive, send, *refusal)
            return
        assert route is not None
        if route.function.spec.parameters and not route.function.spec.variant_of:
            try:
                route = await self._of_query(route, scope["query_string"])
            except Error as error:
                await refuse(scope, receive, send, 400, str(error), [])
                return
        request = self._request(route, raw_path, scope)
        self._open += 1
        try:
            if is_websocket:
                await self._websocket(route, request, scope, receive, send)
            else:
                await self._http(route, request, scope, receive, send)
        except Exception as error:
            self._note(route.function, error)
            raise
        finally:
            self._open -= 1

    def begin(self, scope: Message, body: bytes, cycle: Any, peer: Any) -> bool:
        """Take a request whose body is there whole; False where it has to be looked at more closely (`__call__`).

        Where its response comes whole as well, no task is made for it.
        """
        headers: Headers = scope["headers"]
        raw_path: bytes = scope["raw_path"]
        route = self.routes.find(raw_path, headers)
        if route is None or route.web.requires_proxy_auth or len(body) > self._max_body_bytes:
            return False
        if route.function.spec.parameters:
            return False
        if route.bucket.take(self._service.now()):
            return False
        request = self._request(route, raw_path, scope)
        request.body = body
        self._open += 1
        visit = QuickVisit(self._service, route, web.encode(request), CODEC, cycle, peer, self._go_on)
        peer.on_lost = visit.lose
        return True

    def _go_on(self, visit: QuickVisit | None) -> Application | None:
        """The rest of what `begin` began: what answers it as it comes, or None where it is over."""
        if visit is None:
            self._open -= 1
            return None

        async def application(scope: Message, receive: Receive, send: Send) -> None:
            try:
                await self._respond(visit, scope["nomadfn.peer"], send)
            except Exception as error:
                self._note(visit.function, error)
                raise
            finally:
                self._open -= 1

        return application

    def _request(self, route: Route, raw_path: bytes, scope: Message) -> web.Request:
        path: str = scope["path"]
        if not raw_path.startswith(route.raw_root):  # some of it was needlessly encoded
            raw_path = route.raw_root + b"/" + b"/".join(raw_path.split(b"/", 3)[3:])
        if len(raw_path) == len(route.raw_root):
            path, raw_path = path + "/", raw_path + b"/"
        return web.Request(
            scope["type"] == "websocket",
            scope.get("method", "GET"),
            scope["scheme"],
            scope["http_version"],
            route.root,
            path,
            raw_path,
            scope["query_string"],
            scope["headers"],
            scope["client"],
            scope["server"],
        )

    def _note(self, function: Function, error: Exception) -> None:
        """Say what went wrong: uvicorn raises a RuntimeError for a response that is none of HTTP."""
        if isinstance(error, RuntimeError):
            self._service.log(f"{function.id} sent a response that is none of HTTP: {error}")
        else:
            self._service.log(traceback.format_exc())

    async def drain(self) -> None:
        """Returns when no request is open any more, or after LEAVE_S. Websockets are closed."""
        for visit in self._websockets:
            visit.end_for_drain()
        end = self._service.loop.time() + LEAVE_S
        while self._open and self._service.loop.time() < end:
            await asyncio.sleep(DRAIN_STEP_S)

    def _refusal(self, route: Route, headers: Headers) -> tuple[int, str, Headers] | None:
        if route.web.requires_proxy_auth and (why := self._check_key(route, headers)):
            return 401, why, []
        wait_s = route.bucket.take(self._service.now())
        if not wait_s:
            return None
        rate = self._service.core.state.limits.web_requests_per_s
        text = (
            f"more than {rate:g} requests a second came for this function, the setting limits.web_requests_per_s; "
            f"try again in {wait_s:.2g} s"
        )
        return 429, text, [(b"retry-after", b"%d" % max(1, math.ceil(wait_s)))]

    def _check_key(self, route: Route, headers: Headers) -> str:
        """Why the request's token is not good; empty where it is. The application never sees it."""
        token = ""
        for place, (name, value) in enumerate(headers):
            if name == KEY_HEADER:
                token = value.decode("latin-1").strip()
                del headers[place]
                break
        try:
            self._service.tokens.require_web(token, route.function.app)
        except (AuthError, PermissionDeniedError):
            return "this function wants a token in the header Nomadfn-Key"
        return ""

    async def _of_query(self, route: Route, query: bytes) -> Route:
        """The instance of a class that the query asks for. Raises one of nomadfn's errors."""
        given = web_parameters.given(route.function.spec, query)
        function = await self._service.operations.variants.resolve(route.function, given)
        return replace(route, function=function)

    async def _http(self, route: Route, request: web.Request, scope: Message, receive: Receive, send: Send) -> None:
        length = _content_length(request.headers)
        if length > self._max_body_bytes:
            await refuse(scope, receive, send, 413, self._too_large(), [])
            return
        first = await receive()
        if first["type"] != "http.request":
            return
        request.body, request.more = first["body"], first["more_body"]
        visit = Visit(self._service, route.function, route.method, web.encode(request), CODEC)
        peer = scope["nomadfn.peer"]
        peer.on_lost = visit.lose
        upload = asyncio.ensure_future(self._upload(visit, receive, len(request.body))) if request.more else None
        try:
            await self._respond(visit, peer, send)
        finally:
            if upload is not None:
                upload.cancel()

    async def _respond(self, visit: Visit, peer: Any, send: Send) -> None:
        """Pass on what the function gives, until the response is whole."""
        started = False
        try:
            while (messages := await visit.next()) is not None:
                peer.cork.put()
                for message in messages:
                    started = started or type(message) is web.Start
                    await _send_http(message, send)
                peer.cork.pull()
                visit.taken()
            if not visit.complete:
                await self._end_http(visit, started, send, peer)
        except Gone:
            pass
        finally:
            peer.cork.pull()
            peer.on_lost = None
            visit.leave()

    async def _end_http(self, visit: Visit, started: bool, send: Send, peer: Any) -> None:
        """The input has ended without a whole response."""
        if visit.too_large:
            status, text, headers = 413, self._too_large(), [(b"connection", b"close")]
        else:
            status, text, headers = visit.end()
        if started:
            peer.transport.close()  # What was promised will not come: the client sees its connection end.
        else:
            await answer(send, status, text, headers)

    async def _upload(self, visit: Visit, receive: Receive, size: int) -> None:
        """Feed the rest of a body."""
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                visit.lose()
                return
            more = message["more_body"]
            size += len(message["body"])
            if size > self._max_body_bytes:
                visit.too_large = True
                visit.lose()
                return
            if not await visit.feed(web.encode([web.Body(message["body"], more)]), last=not more):
                return

    def _too_large(self) -> str:
        return f"the body is over {self._max_body_bytes:,} bytes, the setting web_max_body_bytes"

    async def _websocket(
        self, route: Route, request: web.Request, scope: Message, receive: Receive, send: Send
    ) -> None:
        await receive()
        request.subprotocols = list(scope.get("subprotocols") or ())
        visit = Visit(self._service, route.function, route.method, web.encode(request), CODEC)
        if not self._websockets:
            self._service.keep(self._end_websockets_of_draining())
        self._websockets.add(visit)
        incoming = asyncio.ensure_future(_feed_websocket(visit, receive))
        opened = False
        try:
            while (messages := await visit.next()) is not None:
                for message in messages:
                    opened = opened or type(message) is web.Accept
                    await _send_websocket(message, send)
                visit.taken()
            if not visit.complete:
                await close_websocket(visit, opened, send)
        except Gone:
            pass
        finally:
            self._websockets.discard(visit)
            incoming.cancel()
            visit.leave()

    async def _end_websockets_of_draining(self) -> None:
        """A container that is to end waits for its websockets, but not for ever."""
        since: dict[Visit, float] = {}
        while self._websockets:
            await asyncio.sleep(DRAIN_POLL_S)
            now = self._service.now()
            since = {one: since.get(one, now) for one in self._websockets if one.is_draining}
            for visit, at in since.items():
                if now - at >= DRAIN_S:
                    visit.end_for_drain()


async def _feed_websocket(visit: Visit, receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            close = web.Close(message.get("code") or 1005, message.get("reason") or "")
            await visit.feed(web.encode([close]), last=True)
            visit.lose_after(CLOSE_S)
            return
        data = message.get("bytes")
        part = web.Text(message["text"]) if data is None else web.Data(data)
        if not await visit.feed(web.encode([part])):
            return


async def _send_http(message: web.FromApp, send: Send) -> None:
    if type(message) is web.Start:
        await send({"type": "http.response.start", "status": message.status, "headers": message.headers})
        if message.data or not message.more:
            await send({"type": "http.response.body", "body": message.data, "more_body": message.more})
    elif type(message) is web.Body:
        await send({"type": "http.response.body", "body": message.data, "more_body": message.more})


async def _send_websocket(message: web.FromApp, send: Send) -> None:
    match message:
        case web.Text(text):
            await send({"type": "websocket.send", "text": text})
        case web.Data(data):
            await send({"type": "websocket.send", "bytes": data})
        case web.Accept(subprotocol, headers):
            await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})
        case web.Close(code, reason):
            await send({"type": "websocket.close", "code": code, "reason": reason})
        case web.Start(status, headers, data, more):
            await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
            if data or not more:
                await send({"type": "websocket.http.response.body", "body": data, "more_body": more})
        case web.Body(data, more):
            await send({"type": "websocket.http.response.body", "body": data, "more_body": more})


def _content_length(headers: Headers) -> int:
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
