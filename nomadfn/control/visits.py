"""One request or websocket in the gateway: the input that it is, what comes of it, and how it ends."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec
from nomadfn_agent import wire
from nomadfn_agent.wire import outcome, web

from nomadfn.core.model import DRAINING, Function
from nomadfn.exception import InvalidError, NotFoundError, ResourceExhaustedError

if TYPE_CHECKING:
    from nomadfn.control.service import Service

TAKEN_BYTES = wire.STREAM_WINDOW_BYTES // 4
"""After so much that the client has taken the container is told."""
DRAINED = "the container ends; connect again"

Outcome = tuple[int, bytes] | Exception


class Gone(Exception):
    """The client is not there any more."""


class Visit:
    """Read by one task (`next`), fed by another. Registered with `service.streams` under its call."""

    __slots__ = (
        "_arrived",
        "_closed",
        "_fed",
        "_fed_bytes",
        "_loop",
        "_lost",
        "_number",
        "_room",
        "_service",
        "_taken_bytes",
        "_timer",
        "_wake",
        "call",
        "complete",
        "function",
        "outcome",
        "too_large",
    )

    def __init__(self, service: Service, function: Function, method: str, payload: bytes, codec: int) -> None:
        self.function = function
        self.outcome: Outcome | None = None
        """What the input ended with."""
        self.complete = False
        """The response is whole, or the websocket closed."""
        self.too_large = False
        self._service = service
        self._loop = service.loop
        self._arrived: deque[tuple[int, bytes]] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._lost = False
        self._closed = 0
        """The code of a websocket's end that the control service has decided."""
        self._timer: asyncio.TimerHandle | None = None
        self._fed: deque[tuple[int, int]] = deque()
        self._fed_bytes = 0
        self._number = 0
        """Of the last part that `next` has given."""
        self._taken_bytes = 0
        self.call = service.streams.hand_in(function, payload, codec, self, method=method)

    # What the function gives.

    async def next(self) -> list[web.FromApp] | None:
        """What has come since; None once the input has ended, or the response is whole. Raises `Gone`."""
        while not self._arrived:
            if self._lost and not self.too_large:
                raise Gone
            if self.outcome is not None or self.complete or self._closed or self.too_large:
                return None
            self._wake = self._loop.create_future()
            await self._wake
        self._number, payload = self._arrived.popleft()
        self._taken_bytes += len(payload) + wire.PART_EXTRA_BYTES
        try:
            messages = web.decode_from_app(payload)
        except msgspec.DecodeError as error:
            self._service.log(f"{self.function.id} sent a response that cannot be read: {error}")
            self.outcome = (wire.FAILURE, outcome.encode(outcome.Failure("InternalError", "")))
            return None
        if messages:
            last = messages[-1]
            kind = type(last)
            self.complete = (
                kind is web.Close or ((kind is web.Body or kind is web.Start) and not last.more)  # type: ignore[union-attr]
            )
        return messages

    def taken(self) -> None:
        """The client has what `next` has given."""
        if self._taken_bytes >= TAKEN_BYTES and self.outcome is None:
            self._taken_bytes = 0
            self._service.streams.taken(self.call, self._number)

    def _on_parts(self, number: int, statuses: list[int], payloads: list[bytes]) -> None:
        for place, payload in enumerate(payloads, number - len(payloads) + 1):
            self._arrived.append((place, payload))
        self._awake()

    def _end(self, ended: Outcome) -> None:
        if not isinstance(ended, Exception) and ended[0] == wire.OK:
            self._arrived.append((self._number, ended[1]))
        self.outcome = ended
        self._awake()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _awake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # What it is fed.

    async def feed(self, payload: bytes, *, last: bool = False) -> bool:
        """Give it the next part, and wait while the window is full; False once nobody takes any."""
        while self._fed_bytes >= wire.STREAM_WINDOW_BYTES and self._is_open:
            self._room = self._loop.create_future()
            await self._room
        if not self._is_open:
            return False
        number = self._service.core.feed(self.call, 0, [payload], last=last)
        size = len(payload) + wire.PART_EXTRA_BYTES
        self._fed.append((number, size))
        self._fed_bytes += size
        self._service.poke()
        return True

    @property
    def _is_open(self) -> bool:
        return self.outcome is None and not self._lost

    def _on_feed_taken(self, number: int) -> None:
        while self._fed and self._fed[0][0] <= number:
            self._fed_bytes -= self._fed.popleft()[1]
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # How it ends.

    def lose(self) -> None:
        """The client is gone, or has sent what it may not: the application is told, and then cancelled."""
        if not self._lost:
            self._lost = True
            self._cancel()
            self._awake()
            if self._room is not None and not self._room.done():
                self._room.set_result(None)

    def lose_after(self, wait_s: float) -> None:
        """The client has said goodbye: the application has so long to end by itself."""
        self._timer = self._loop.call_later(wait_s, self.lose)

    def end_for_drain(self) -> None:
        self._closed = 1012
        self._awake()

    def leave(self) -> None:
        """Nobody reads any more. The application may go on after its whole response, with what it does then."""
        if self._timer is not None:
            self._timer.cancel()
        if self.outcome is None and not self.complete:
            self._lost = True
            self._cancel()

    def _cancel(self) -> None:
        if self.outcome is None and not self.complete:
            self._service.core.drop_stream(self.call, 0)
            self._service.core.cancel_call(self._service.now(), self.call)
            self._service.poke()

    def end(self) -> tuple[int, str, list[tuple[bytes, bytes]]]:
        """What the client is told where the input has ended without a response: status, text and headers."""
        app = self._service.core.state.apps.get(self.function.app)
        return end_of(self.outcome, self.function.spec.name, app.name if app is not None else "")

    @property
    def is_draining(self) -> bool:
        """Whether the container that it is in is to end."""
        stream = self._service.core.state.streams.get((self.call, 0))
        container = self._service.core.container(stream.container) if stream is not None else None
        return container is not None and container.state == DRAINING

    @property
    def closed(self) -> int:
        return self._closed


def end_of(ended: Outcome | None, name: str, app: str) -> tuple[int, str, list[tuple[bytes, bytes]]]:
    """What a client is told whose input ended without a response: status, text and headers.

    What the function raised stands in its log, not here: anybody may be the client.
    """
    if isinstance(ended, ResourceExhaustedError):
        retry = [(b"retry-after", b"%d" % max(1, math.ceil(ended.retry_after_s)))]
        return 429, str(ended), retry
    if isinstance(ended, NotFoundError):
        return 503, "this function is not running any more", []
    if isinstance(ended, InvalidError):
        return 400, str(ended), []
    if ended is None or isinstance(ended, Exception):
        return 503, "this request was refused", []
    status, payload = ended
    if status == wire.EXCEPTION:
        return 500, "Internal Server Error", []
    if status == wire.OK:
        return 500, "the function ended without a response", []
    failure = outcome.decode_failure(payload)
    if failure.error == "FunctionTimeoutError":
        return 504, failure.message, []
    if failure.error == "ExecutionError":
        return 500, f"no container of {name} could be started; `nomadfn app logs {app}` says why", []
    if failure.error == "InputCancellation":
        return 503, "this function was stopped", [(b"retry-after", b"1")]
    if failure.error == "InternalFailure":
        return 502, f"the container of {name} was lost while it answered", []
    return 502, f"no response could be got: {failure.error}", []


async def close_websocket(visit: Visit, opened: bool, send: Any) -> None:
    """The input has ended, or has to, and its websocket has not."""
    if visit.closed:
        code, reason = visit.closed, DRAINED
    elif isinstance(visit.outcome, tuple) and visit.outcome[0] == wire.OK:
        code, reason = 1000, ""
    else:
        status, reason, headers = visit.end()
        code = {429: 1013, 503: 1013, 504: 1011}.get(status, 1011)
        if not opened:
            body = f"{reason}\n".encode()
            plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
            await send({"type": "websocket.http.response.start", "status": status, "headers": [*plain, *headers]})
            await send({"type": "websocket.http.response.body", "body": body})
            return
    await send({"type": "websocket.close", "code": code, "reason": reason[:120]})
