"""The supervisor's line to its control service: whole messages over a socket that never blocks.

What is to be said waits here, also while there is no connection. A message that was only partly sent when its
connection ended is sent again, whole, on the next one. How messages become bytes is the framing's matter: behind
their length on the socket that a supervisor inherits, as websocket frames on the one that an agent has opened.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .wire import STREAM_HEADER
from .wire.link import link_closed

if TYPE_CHECKING:
    from websockets.client import ClientProtocol

RECEIVE_BYTES = 64 * 1024


class Framing(Protocol):
    """How messages stand in the bytes of one connection."""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole with these bytes. Raises `ConnectionError` when they end the connection."""
        ...

    def pack(self, message: bytes) -> bytes: ...

    def owed(self) -> bytes:
        """What must be sent before the next message."""
        ...


class LengthFraming:
    """Each message behind its length."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._buffer += data
        messages: list[bytes] = []
        start, head = 0, STREAM_HEADER.size
        while len(self._buffer) - start >= head:
            (length,) = STREAM_HEADER.unpack_from(self._buffer, start)
            end = start + head + length
            if len(self._buffer) < end:
                break
            messages.append(bytes(self._buffer[start + head : end]))
            start = end
        del self._buffer[:start]
        return messages

    def pack(self, message: bytes) -> bytes:
        return STREAM_HEADER.pack(len(message)) + message

    def owed(self) -> bytes:
        return b""


class WebsocketFraming:
    """Each message a binary frame of an open websocket; pings are answered."""

    def __init__(self, protocol: ClientProtocol) -> None:
        from websockets.frames import Frame, Opcode

        self._protocol = protocol
        self._frame = Frame
        self._opcode = Opcode
        self._fragments: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        protocol, opcode = self._protocol, self._opcode
        protocol.receive_data(data)
        messages: list[bytes] = []
        for event in protocol.events_received():
            if not isinstance(event, self._frame):
                continue
            if event.opcode in (opcode.BINARY, opcode.CONT):
                self._fragments.append(bytes(event.data))
                if event.fin:
                    messages.append(b"".join(self._fragments))
                    self._fragments.clear()
            elif event.opcode is opcode.CLOSE:
                raise link_closed(protocol)
        if protocol.parser_exc is not None:
            raise link_closed(protocol)
        return messages

    def pack(self, message: bytes) -> bytes:
        self._protocol.send_binary(message)
        return self.owed()

    def ping(self) -> None:
        """The other side answers, if it is there."""
        self._protocol.send_ping(b"")

    def owed(self) -> bytes:
        return b"".join(self._protocol.data_to_send())


class Channel:
    """At most one connection, and the messages that wait for it."""

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.waiting_bytes = 0
        self.heard_at = 0.0
        """When anything was received last, by the monotonic clock."""
        self._framing: Framing = LengthFraming()
        self._waiting: deque[bytes] = deque()
        self._packed = memoryview(b"")
        """What the socket has not taken yet of that which is being sent."""
        self._is_message = False
        """Whether that is the first waiting message."""

    def open(self, sock: socket.socket, framing: Framing) -> None:
        sock.setblocking(False)
        self.socket, self._framing = sock, framing
        self.heard_at = time.monotonic()

    def close(self) -> None:
        """Drop the connection; what has not been sent whole waits for the next one."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None
        self._packed, self._is_message = memoryview(b""), False

    @property
    def waiting(self) -> Sequence[bytes]:
        """Messages that have not been sent whole, the oldest first."""
        return self._waiting

    @property
    def wants_write(self) -> bool:
        """Whether the socket was full."""
        return bool(self._packed)

    def put(self, message: bytes) -> None:
        """Have it sent by `write`, after everything before it."""
        self._waiting.append(message)
        self.waiting_bytes += len(message)

    def write(self) -> None:
        """Send what the socket takes. Raises `OSError` when the connection has ended."""
        assert self.socket is not None
        try:
            while self._packed or self._pack():
                self._packed = self._packed[self.socket.send(self._packed) :]
                if not self._packed and self._is_message:
                    self._is_message = False
                    self.waiting_bytes -= len(self._waiting.popleft())
        except BlockingIOError:
            pass

    def _pack(self) -> bool:
        """Make the next thing to send ready; says whether there is one."""
        data = self._framing.owed()
        if not data and self._waiting:
            data, self._is_message = self._framing.pack(self._waiting[0]), True
        self._packed = memoryview(data)
        return bool(data)

    def read(self) -> list[bytes]:
        """The messages that have arrived. Raises `OSError` when the connection has ended."""
        assert self.socket is not None
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionError("the other side closed the connection")
        self.heard_at = time.monotonic()
        return self._framing.feed(data)
