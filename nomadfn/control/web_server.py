"""The gateway's HTTP server: uvicorn over httptools, with an end to every wait for a client's headers."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from nomadfn.control.http_server import ApiServer, config_of

CONNECTIONS_MAX = 10_000
KEEP_ALIVE_S = 75
CLOSE_GRACE_S = 5
WEBSOCKET_BYTES = 16 * 1024 * 1024
"""The largest message of a websocket."""
TOO_LARGE = b"431 Request Header Fields Too Large", b"the headers are too large\n"


Begin = Callable[[dict[str, Any], bytes, Any, Any], bool]


def make_server(
    app: Any, listener: socket.socket, header_timeout_s: float, max_header_bytes: int, begin: Begin | None = None
) -> ApiServer:
    """Serve `app` on a bound socket. Start and close what this returns.

    `begin` is asked first for requests whose body is there whole; what it does not take is the application's.
    """
    # What clients and applications do wrong is no news for the service's log, and its own faults it writes itself.
    quiet = logging.getLogger("nomadfn.gateway")
    quiet.setLevel(logging.CRITICAL)

    class Bounded(_Bounded):
        _header_timeout_s = header_timeout_s
        _max_header_bytes = max_header_bytes
        _quiet = quiet
        _begin = staticmethod(begin) if begin is not None else None

    class Quiet(WebSocketsSansIOProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.logger = quiet

    config = config_of(
        app,
        http=Bounded,
        ws=Quiet,
        ws_max_size=WEBSOCKET_BYTES,
        ws_per_message_deflate=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_GRACE_S,
    )
    return ApiServer(config, listener)


class _Cork:
    """A transport that can gather what is written: a head and its body are one system call then, not two."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: list[bytes] | None = None
        self.is_closing = transport.is_closing
        self.abort = transport.abort
        self.get_extra_info = transport.get_extra_info

    def put(self) -> None:
        self._held = []

    def pull(self) -> None:
        held, self._held = self._held, None
        if held and not self.is_closing():
            self._transport.write(b"".join(held))

    def write(self, data: bytes) -> None:
        if self._held is None:
            self._transport.write(data)
        else:
            self._held.append(data)

    def close(self) -> None:
        self.pull()
        self._transport.close()


class _Bounded(HttpToolsProtocol):
    """Ends connections that are slow to send a whole request head, or send a large one.

    Requests find it in their scope as `nomadfn.peer`: `on_lost` is called when the client hangs up before the response
    is whole.
    """

    _header_timeout_s: float
    _max_header_bytes: int
    _quiet: logging.Logger
    _begin: Begin | None
    _waiting: tuple[RequestResponseCycle, Any] | None = None
    """A request whose head has been read just now, and not its body."""
    _parsing = False
    _deadline: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0
    on_lost: Callable[[], None] | None = None
    cork: _Cork
    _idle_since = 0.0
    """When the last response was whole; 0 while a request is under way."""
    _idle_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.logger = self._quiet
        self.cork = _Cork(transport)
        self._raw_transport = transport
        self.transport = self.cork  # type: ignore[assignment]
        self._arm()

    def handle_websocket_upgrade(self) -> None:
        self.transport = self._raw_transport
        super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            # What follows the head in these bytes counts as well: enough to bound what a head may be.
            self._head_bytes += len(data)
        self._parsing = True
        super().data_received(data)
        self._parsing = False
        if self._waiting is not None:
            self._start_waiting()
        if self._in_head:
            if self._head_bytes > self._max_header_bytes:
                self._refuse(*TOO_LARGE)
            elif self._deadline is None and self._head_bytes:
                self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["nomadfn.peer"] = self  # type: ignore[typeddict-unknown-key]

    def on_headers_complete(self) -> None:
        if self._head_bytes > self._max_header_bytes and self._size_of_head() > self._max_header_bytes:
            self._refuse(*TOO_LARGE)
            raise ValueError("the headers are too large")  # The parser goes no further.
        self._in_head = False
        self._disarm()
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._waiting = cycle, app
        if not self._parsing:
            self._start_waiting()

    def _start_waiting(self) -> None:
        assert self._waiting is not None
        (cycle, app), self._waiting = self._waiting, None
        is_short = not cycle.more_body and app is self.app and self._begin is not None
        if not (is_short and self._begin_short(cycle)):
            super()._start_asgi_task(cycle, app)

    def _begin_short(self, cycle: RequestResponseCycle) -> bool:
        assert self._begin is not None
        scope: Any = cycle.scope
        return self._begin(scope, bytes(cycle.body), cycle, self)

    def run(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Have a request answered by `app`, in a task."""
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """As uvicorn's, which sets a timer with each response and takes it back with each request."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._end_idle)

    def _unset_keepalive_if_required(self) -> None:
        super()._unset_keepalive_if_required()
        self._idle_since = 0.0

    def _end_idle(self) -> None:
        self._idle_timer = None
        if self._idle_since:
            left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
            if left_s > 0:
                self._idle_timer = self.loop.call_later(left_s, self._end_idle)
            else:
                self.timeout_keep_alive_handler()

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._waiting is not None:
            self._start_waiting()
        self._in_head = True
        self._head_bytes = 0

    def _arm(self) -> None:
        self._deadline = self.loop.call_later(self._header_timeout_s, self._time_out)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self) -> None:
        text = b"the headers did not arrive within %g s\n" % self._header_timeout_s
        if self._head_bytes:
            self._refuse(b"408 Request Timeout", text)
        else:
            self.transport.close()

    def _refuse(self, status: bytes, text: bytes) -> None:
        if self.transport.is_closing():
            return
        head = (
            b"HTTP/1.1 %s\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head % (status, len(text)) + text)
        self.transport.close()
