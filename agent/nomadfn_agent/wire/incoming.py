"""The client's side of what arrives on a websocket.

Nearly all of it are binary messages in one frame each, unmasked as a server sends them. Those are cut out of the
receive buffer, and one that is larger is received into its own place. Every other frame goes through the `websockets`
library, which also finds what is wrong: for a short call its parser costs as much as all else that a client does.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any

from .deferred import defer

if TYPE_CHECKING:
    from websockets.client import ClientProtocol

RECEIVE_BYTES = 512 * 1024
MAX_MESSAGE_BYTES = 1 << 30
_WHOLE = 0x82
"""The first byte of a binary message in one frame."""
_MEDIUM, _LONG = struct.Struct(">H"), struct.Struct(">Q")

# Half of what importing websockets costs is behind this one, which only its development versions use.
defer("importlib.metadata")


class Incoming:
    """`read` reads once from the socket; `ready` are the messages that have come whole."""

    def __init__(self, sock: socket.socket, protocol: ClientProtocol) -> None:
        from websockets.frames import Opcode

        self._socket = sock
        self._protocol = protocol
        self._opcode = Opcode
        self._buffer = bytearray(RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._kept = 0
        """Bytes at the front of the buffer: a frame's head, of which more has to come."""
        self._message = bytearray()
        """One that is larger than what had arrived, as far as `_filled`."""
        self._filled = 0
        self._passed = 0
        """How much is to come of a frame that the library has begun to parse."""
        self._fragments: list[bytes] = []
        self.ready: list[bytes] = []
        self.passed_on = False
        """Whether the library has been given something since this was last set to False."""
        self.closing = False
        """The other side has said that it closes."""

    def read(self) -> int:
        """Read once, blocking; gives how many bytes have come, 0 at the end. Raises OSError."""
        if self._message:
            return self._fill()
        count = self._socket.recv_into(self._view[self._kept :] if self._kept else self._buffer)
        if count:
            self._cut(self._kept + count)
        return count

    def take(self, events: list[Any]) -> None:
        """Keep the messages among what the library has parsed."""
        opcodes = self._opcode
        for event in events:
            opcode = event.opcode
            if opcode is opcodes.BINARY and event.fin:
                self.ready.append(event.data)
            elif opcode is opcodes.BINARY or opcode is opcodes.CONT:
                self._fragments.append(event.data)
                if event.fin:
                    self.ready.append(b"".join(self._fragments))
                    self._fragments.clear()
            elif opcode is opcodes.CLOSE:
                self.closing = True

    def leave(self) -> None:
        """Have the library parse everything from here on: it gets what has come of a message."""
        if self._message:
            self._protocol.receive_data(_head_of(len(self._message)) + self._message[: self._filled])
        elif self._kept:
            self._protocol.receive_data(bytes(self._view[: self._kept]))
        self._message, self._kept = bytearray(), 0

    def _fill(self) -> int:
        count = self._socket.recv_into(memoryview(self._message)[self._filled :])
        self._filled += count
        if self._filled == len(self._message):
            self.ready.append(self._message)  # type: ignore[arg-type]  # A bytearray is as good, and no copy.
            self._message = bytearray()
        return count

    def _cut(self, end: int) -> None:
        """Take apart what is in the buffer up to `end`."""
        buffer, view, start = self._buffer, self._view, 0
        if self._passed:
            start = self._pass_on(0, min(self._passed, end), self._passed)
        self._kept = 0
        while start < end:
            body = start + 2
            size = buffer[start + 1] if body <= end else 0
            if size == 126:
                body = start + 4
                size = _MEDIUM.unpack_from(buffer, start + 2)[0] if body <= end else 0
            elif size == 127:
                body = start + 10
                size = _LONG.unpack_from(buffer, start + 2)[0] if body <= end else 0
            if body > end:
                self._kept = end - start
                buffer[: self._kept] = bytes(view[start:end])
                return
            stop = body + size
            if buffer[start] != _WHOLE or buffer[start + 1] > 127 or self._fragments or size > MAX_MESSAGE_BYTES:
                start = self._pass_on(start, min(stop, end), stop - start)
            elif stop <= end:
                self.ready.append(bytes(view[body:stop]))
                start = stop
            else:
                self._message, self._filled = bytearray(size), end - body
                self._message[: self._filled] = view[body:end]
                return

    def _pass_on(self, start: int, stop: int, whole: int) -> int:
        """Let the library parse the buffer from `start` to `stop`, of a frame of which `whole` bytes were to come."""
        self._passed, self.passed_on = whole - (stop - start), True
        self._protocol.receive_data(bytes(self._view[start:stop]))
        self.take(self._protocol.events_received())
        return stop


def _head_of(size: int) -> bytes:
    if size < 126:
        return bytes((_WHOLE, size))
    return bytes((_WHOLE, 126)) + _MEDIUM.pack(size) if size < 1 << 16 else bytes((_WHOLE, 127)) + _LONG.pack(size)
