"""One request, or one websocket, between the application and the gateway: ASGI's `receive` and `send`.

What the application sends is kept until the end of the loop's turn, so that a whole small response travels as the
input's output, and what comes in one turn as one part. More than STREAM_WINDOW_BYTES that the client has not taken
make `send` wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

from ..wire import OK, PART_EXTRA_BYTES, STREAM_WINDOW_BYTES, Fed, Part
from ..wire.web import Accept, Body, Close, Data, FromApp, Request, Start, Text, ToApp, encode

PIECE_BYTES = 64 * 1024
"""Of a body: what is larger goes in pieces, so that no frame keeps others waiting."""
FED_BYTES = STREAM_WINDOW_BYTES // 4
"""After so much that was taken the other side is told."""
ABNORMAL = 1006
"""A websocket's code for one that ended without a goodbye."""

BYTES = (bytes, bytearray, memoryview)

Message = dict[str, Any]


class Line(Protocol):
    """What an exchange needs of the runner's loop."""

    def tell(self, frame: Part | Fed) -> None: ...

    def flush_soon(self, exchange: Exchange) -> None:
        """Have `exchange.flush` called at the end of this turn, unless it is done by then."""
        ...


class Exchange:
    """`receive` and `send` are what the application is given."""

    __slots__ = (
        "_begun",
        "_closed",
        "_consumed",
        "_drained",
        "_gone",
        "_head",
        "_inbox",
        "_line",
        "_number",
        "_out",
        "_out_bytes",
        "_request",
        "_scheduled",
        "_started",
        "_taken",
        "_taken_bytes",
        "_unread",
        "_waiter",
        "_websocket",
        "complete",
        "delivery",
        "done",
        "sent",
    )

    def __init__(self, delivery: int, request: Request, line: Line) -> None:
        self.delivery = delivery
        self._line = line
        self._request: Request | None = request
        self._websocket = request.websocket
        self._inbox: deque[tuple[int, int, ToApp | None]] = deque()
        """Number of the part, what it counts for, the message; None is the opening of a websocket."""
        if request.websocket:
            self._inbox.append((0, 0, None))
        else:
            self._inbox.append((0, len(request.body), Body(request.body, request.more)))
        self._waiter: asyncio.Future[None] | None = None
        self._begun = False
        self._taken = 0
        self._taken_bytes = 0
        self._closed: Close | None = None
        """How the websocket ended, or that the client of a request is gone."""
        self._gone = False
        """Nobody will read what is sent any more."""
        self._started = False
        self._head: Start | None = None
        """The start of the response, until there is a body to go with it, or the turn ends."""
        self._out: list[FromApp] = []
        self._out_bytes = 0
        self._scheduled = False
        self._number = 0
        self._unread: deque[tuple[int, int]] = deque()
        """Parts that the client has not taken: number, and what they count for."""
        self._consumed = 0
        """What the client has not taken, in bytes."""
        self._drained: asyncio.Future[None] | None = None
        self.complete = False
        """The application has sent all of its response, or closed the websocket."""
        self.sent = False
        """A part has gone out."""
        self.done = False
        """The application has returned."""

    # What the application gets.

    def scope(self, state: dict[str, Any]) -> Message:
        """ASGI's scope of the request; `state` is the lifespan's. Once."""
        request, self._request = self._request, None
        assert request is not None
        scope: Message = {
            "type": "websocket" if request.websocket else "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version,
            "scheme": request.scheme,
            "method": request.method,
            "root_path": request.root_path,
            "path": request.path,
            "raw_path": request.raw_path,
            "query_string": request.query,
            "headers": request.headers,
            "client": request.client,
            "server": request.server,
            "state": state.copy(),
        }
        if request.websocket:
            del scope["method"]
            scope["subprotocols"] = request.subprotocols
            scope["extensions"] = {"websocket.http.response": {}}
        return scope

    async def receive(self) -> Message:
        while not self._inbox:
            if self._closed is not None or (self.complete and not self._websocket):
                return self._disconnect()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        number, size, message = self._inbox.popleft()
        self._take(number, size)
        if message is None:
            return {"type": "websocket.connect"}
        kind = type(message)
        if kind is Body:
            return {"type": "http.request", "body": message.data, "more_body": message.more}  # type: ignore[union-attr]
        if kind is Text:
            return {"type": "websocket.receive", "text": message.text}  # type: ignore[union-attr]
        return {"type": "websocket.receive", "bytes": message.data}  # type: ignore[union-attr]

    def _disconnect(self) -> Message:
        if not self._websocket:
            return {"type": "http.disconnect"}
        closed = self._closed or Close(ABNORMAL)
        return {"type": "websocket.disconnect", "code": closed.code, "reason": closed.reason}

    def _take(self, number: int, size: int) -> None:
        """Say what the application has: at first before it goes on, so that its request is not run again then."""
        self._taken, self._taken_bytes = number, self._taken_bytes + size
        if (size and not self._begun) or self._taken_bytes >= FED_BYTES:
            self._begun = True
            self._taken_bytes = 0
            self._line.tell(Fed(self.delivery, number))

    def feed(self, number: int, messages: Iterable[ToApp]) -> None:
        """A part of the request's body, or what the websocket's client has sent."""
        for message in messages:
            if type(message) is Close:
                self._end(message)
            else:
                data = message.text if type(message) is Text else message.data  # type: ignore[union-attr]
                self._inbox.append((number, len(data) + PART_EXTRA_BYTES, message))
        self._wake()

    def disconnect(self) -> None:
        """The client is gone, or nobody waits for this any more."""
        self._gone = True
        self._end(Close(ABNORMAL))
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _end(self, close: Close) -> None:
        self._closed = self._closed or close
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the application gives.

    async def send(self, message: Message) -> None:
        if self.complete:
            raise RuntimeError(f"{message['type']} came after the end of the response")
        kind = message["type"]
        if kind == "http.response.body":
            self._put_body(message)
        elif kind == "http.response.start" or kind == "websocket.http.response.start":
            self._put_head(message)
        elif kind == "websocket.http.response.body":
            self._put_body(message)
        elif self._websocket:
            self._put_websocket(kind, message)
        else:
            raise RuntimeError(f"a response has no message {kind!r}")
        if self._gone:
            self._out, self._out_bytes = [], 0
        elif not self._scheduled:
            self._scheduled = True
            self._line.flush_soon(self)
        while self._consumed + self._out_bytes > STREAM_WINDOW_BYTES and not self._gone:
            self.flush()
            if self._consumed <= STREAM_WINDOW_BYTES:
                break
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def _put_head(self, message: Message) -> None:
        if self._started:
            raise RuntimeError("the response was started twice")
        headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        self._head = Start(int(message["status"]), headers)
        self._started = True

    def _put_body(self, message: Message) -> None:
        data, more = message.get("body", b""), message.get("more_body", False)
        if not self._started:
            raise RuntimeError("the body of a response came before its start")
        if not isinstance(data, BYTES):
            raise TypeError(f"the body of a response is bytes, not {type(data).__name__}")
        size = len(data)
        if size <= PIECE_BYTES:
            self._put_piece(data, more)
        else:
            view = memoryview(data)
            for at in range(0, size, PIECE_BYTES):
                self._put_piece(view[at : at + PIECE_BYTES], more or at + PIECE_BYTES < size)
        if not more:
            self._complete()

    def _put_piece(self, data: Any, more: bool) -> None:
        head, self._head = self._head, None
        if head is not None:
            head.data, head.more = data, more
            self._put(head, len(data))
        else:
            self._put(Body(data, more), len(data))

    def _put_websocket(self, kind: str, message: Message) -> None:
        if kind == "websocket.send":
            data = message.get("bytes")
            if data is not None:
                self._put(Data(data), len(data))
            else:
                self._put(Text(message["text"]), len(message["text"]))
        elif kind == "websocket.accept":
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers") or ()]
            self._put(Accept(message.get("subprotocol"), headers), 0)
        elif kind == "websocket.close":
            self._put(Close(message.get("code", 1000), message.get("reason") or ""), 0)
            self._closed = self._closed or Close(message.get("code", 1000), message.get("reason") or "")
            self._complete()
        else:
            raise RuntimeError(f"a websocket has no message {kind!r}")

    def _put(self, message: FromApp, size: int) -> None:
        self._out.append(message)
        self._out_bytes += size + PART_EXTRA_BYTES

    def _complete(self) -> None:
        self.complete = True
        self._wake()

    def flush(self) -> None:
        """Send what is there as parts, each of about PIECE_BYTES."""
        self._scheduled = False
        self._put_waiting_head()
        if self.done or not self._out or self._gone:
            return
        out, self._out, self._out_bytes = self._out, [], 0
        for part in _parts(out):
            payload = encode(part)
            self._number += 1
            size = len(payload) + PART_EXTRA_BYTES
            self._unread.append((self._number, size))
            self._consumed += size
            self.sent = True
            self._line.tell(Part(self.delivery, self._number, [OK], [payload]))

    def _put_waiting_head(self) -> None:
        head, self._head = self._head, None
        if head is not None:
            self._put(head, 0)

    def consumed(self, number: int) -> None:
        """The client has taken the parts up to `number`."""
        while self._unread and self._unread[0][0] <= number:
            self._consumed -= self._unread.popleft()[1]
        if self._drained is not None and not self._drained.done() and self._consumed <= STREAM_WINDOW_BYTES // 2:
            self._drained.set_result(None)

    @property
    def finished(self) -> bool:
        """Whether the application has answered in full, as far as anybody is there to read it."""
        return self.complete or self._gone or self._closed is not None

    def rest(self) -> list[FromApp]:
        """What has not gone out; the input's output takes it along. The application has returned."""
        self._put_waiting_head()
        if sum(_size(one) for one in self._out) > 2 * PIECE_BYTES:
            self.flush()
        self.done = True
        return self._out


def _parts(messages: list[FromApp]) -> Iterable[list[FromApp]]:
    part: list[FromApp] = []
    size = 0
    for message in messages:
        size += _size(message)
        if part and size > PIECE_BYTES:
            yield part
            part, size = [], _size(message)
        part.append(message)
    if part:
        yield part


def _size(message: FromApp) -> int:
    if isinstance(message, Text):
        return len(message.text)
    return len(message.data) if isinstance(message, (Body, Start, Data)) else 0
