"""The listener of the gateway: open before there is a gateway, and while another control service leads."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from nomadfn.control.serving import bind, url

if TYPE_CHECKING:
    from nomadfn.control.gateway import Gateway
    from nomadfn.control.http_server import ApiServer
    from nomadfn.control.settings import Settings

HEALTH_PATH = "/-/healthz"
"""No app has this name: a load balancer asks here which control service leads."""
NOT_LEADING = "this control service does not lead; another one answers, or will in a moment"
RETRY_AFTER = (b"retry-after", b"1")

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class WebFront:
    """An ASGI application that passes on to the gateway, once there is one. `base_url` is how others see it."""

    def __init__(self, settings: Settings, listener: socket.socket, base_url: str) -> None:
        self.base_url = base_url
        self.port: int = listener.getsockname()[1]
        self._settings = settings
        self._listener = listener
        self._server: ApiServer | None = None
        self._app: Gateway | None = None

    @classmethod
    def bound(cls, settings: Settings, port: int, *, is_private: bool = False) -> WebFront:
        """On a socket of its own. Raises `ConflictError` when the port is taken."""
        listener = bind(settings.web_host, port, "web_port")
        own_url = url("http", _shown(settings.web_host), listener.getsockname()[1])
        # What the settings say of the world outside is said of the service that stays.
        return cls(settings, listener, own_url if is_private else settings.web_url or own_url)

    async def start(self) -> None:
        """Answer, if it does not already."""
        if self._server is None:
            from nomadfn.control.web_server import make_server

            settings = self._settings
            app: Any = self
            if settings.web_url:
                from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

                app = ProxyHeadersMiddleware(app, settings.web_proxies)
            begin = self._begin if app is self else None
            server = make_server(
                app, self._listener, settings.web_header_timeout_s, settings.web_max_header_bytes, begin
            )
            await server.start()
            self._server = server

    def lead(self, app: Gateway | None) -> None:
        """`app` answers from now on; None while another control service leads."""
        self._app = app

    def _begin(self, scope: Message, body: bytes, cycle: Any, peer: Any) -> bool:
        return self._app is not None and self._app.begin(scope, body, cycle, peer)

    async def close(self) -> None:
        """Take no more requests, and let the open ones end for a short time."""
        self._app = None
        if self._server is not None:
            await self._server.close()
        else:
            self._listener.close()

    def __call__(self, scope: Message, receive: Receive, send: Send) -> Awaitable[None]:
        if self._app is None:
            return refuse(scope, receive, send, 503, NOT_LEADING, [RETRY_AFTER])
        if scope["path"] == HEALTH_PATH:
            return refuse(scope, receive, send, 200, "this control service leads", [])
        return self._app(scope, receive, send)


async def refuse(scope: Message, receive: Receive, send: Send, status: int, text: str, headers: Headers) -> None:
    """Answer in plain text; whoever wanted a websocket gets the same instead of one."""
    is_websocket = scope["type"] == "websocket"
    if is_websocket:
        await receive()
    await answer(send, status, text, headers, "websocket.http.response" if is_websocket else "http.response")


async def answer(send: Send, status: int, text: str, headers: Headers, kind: str = "http.response") -> None:
    body = f"{text}\n".encode()
    plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": f"{kind}.start", "status": status, "headers": [*plain, *headers]})
    await send({"type": f"{kind}.body", "body": body})


def _shown(host: str) -> str:
    """An address at which others find what listens everywhere."""
    return socket.gethostname() if host in ("0.0.0.0", "::", "[::]") else host
