"""The client's end of a websocket, blocking, on a plain socket.

The `websockets` library does the handshake and all but the plainest frames (`incoming`) without I/O; this module moves
the bytes. One thread may receive while others send: what a receiver owes the other side (an answer to a ping) never
waits for a sender that is blocked on a full socket, so two ends that both write cannot lock each other up.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .incoming import MAX_MESSAGE_BYTES, Incoming

if TYPE_CHECKING:
    from websockets.client import ClientProtocol

LOCAL_SEND_BYTES = 2 * 1024 * 1024
"""What a Unix socket takes before its writer waits; TCP's buffers grow by themselves. The system may allow less."""
DEAD_PEER_S = 30
"""A peer whose machine does not answer for this long is taken for gone."""

JOINED_BYTES = 64 * 1024
"""What is not more is copied together: that costs less than a list of parts."""
MAX_PARTS = 64
"""A system takes so many parts at once, and most take more."""

KEYS = 512
_BINARY, _MASKED = 0x82, 0x80
_SHORT, _MEDIUM, _LONG = struct.Struct(">BB"), struct.Struct(">BBH"), struct.Struct(">BBQ")
_keys: deque[bytes] = deque()


class LinkClosed(ConnectionError):
    """The websocket is closed, by either side."""

    def __init__(self, text: str, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason
        """What the other side gave as its reason, if it gave one."""


class LinkRefused(ConnectionError):
    """The server answered the handshake with something else than a websocket."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"the websocket was refused with HTTP status {status}: {body}".rstrip(": "))
        self.status = status
        self.body = body


class Link:
    """One open websocket that carries binary messages. `connect` makes it."""

    def __init__(self, sock: socket.socket, protocol: ClientProtocol) -> None:
        from websockets.frames import Frame, Opcode, apply_mask  # type: ignore[attr-defined]

        self._socket = sock
        self._mask = apply_mask
        self._protocol = protocol
        self._frame = Frame
        self._opcode = Opcode
        self._incoming = Incoming(sock, protocol)
        self._writing = threading.Lock()
        self._owed: deque[bytes] = deque()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._closed = self._torn = self._ended = False

    @classmethod
    def connect(cls, url: str, token: str, timeout_s: float = 10.0, socket_path: str = "") -> Link:
        """Open a websocket to `ws://host:port/path`, with `token` as its bearer.

        `socket_path`: a Unix socket of the same server. It is taken where it can be reached, as a message by it costs
        half the system's time of one by TCP; an image with a file system of its own does not reach it.
        Raises LinkRefused when the server says no, LinkClosed or OSError when it does not answer in time.
        """
        from websockets.client import ClientProtocol
        from websockets.uri import parse_uri

        parts = urlsplit(url)
        if parts.scheme != "ws" or not parts.hostname:
            raise LinkClosed(f"{url!r} is not a websocket address such as ws://127.0.0.1:7070/v1/connect")
        deadline = time.monotonic() + timeout_s
        sock = _reach_locally(socket_path, timeout_s) if socket_path else None
        if sock is None:
            sock = socket.create_connection((parts.hostname, parts.port or 80), timeout_s)
            _tune(sock)
        try:
            protocol = ClientProtocol(parse_uri(url), max_size=MAX_MESSAGE_BYTES)
            messages = _shake_hands(sock, protocol, token, deadline)
            sock.settimeout(None)
            link = cls(sock, protocol)
            link._incoming.take(messages)
            return link
        except BaseException:
            sock.close()
            raise

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send one binary message; waits while the socket is full. Any thread may. Raises LinkClosed."""
        self.send_all((data,))

    def send_all(self, messages: Sequence[bytes | bytearray | memoryview]) -> None:
        """The same for several messages at once, in their order."""
        mask = self._mask
        if len(messages) == 1 and len(messages[0]) <= JOINED_BYTES:
            data = b"".join(_masked(messages[0], mask))
            with self._writing:
                self._write(data)
            self._pay()
            return
        with_heads = [part for message in messages for part in _masked(message, mask)]
        is_large = sum(map(len, with_heads)) > JOINED_BYTES
        with self._writing:
            if is_large and len(with_heads) <= MAX_PARTS:
                self._write_parts(with_heads)
            else:
                self._write(b"".join(with_heads))
        self._pay()

    def receive(self, timeout_s: float | None = None) -> list[bytes]:
        """Every message that has arrived, at least one; empty after `timeout_s`. For one thread at a time.

        None waits until something comes or the link ends. Raises LinkClosed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._incoming.ready:
            if self._closed:
                raise LinkClosed("the connection is closed")
            if deadline is not None:
                rest_s = max(0.0, deadline - time.monotonic())
                if not self._poll.poll(rest_s * 1000):
                    return []
            self._read()
        return self._received()

    def wait(self, timeout_s: float) -> bool:
        """Whether something arrives, or the link ends, within the time. For the thread that receives."""
        return bool(self._incoming.ready or self._closed or self._poll.poll(timeout_s * 1000))

    def spin(self, until: float) -> bool:
        """As `wait`, up to a time of the monotonic clock, awake all the time and last in line for its processor."""
        if self._incoming.ready or self._closed:
            return True
        poll, clock, give_way = self._poll.poll, time.monotonic, os.sched_yield
        while not poll(0):
            if clock() > until:
                return False
            give_way()
        return True

    def receive_once(self) -> list[bytes]:
        """Read once, which does not block after `wait`, and give the messages that are whole. Raises LinkClosed."""
        if not self._incoming.ready:
            if self._closed:
                raise LinkClosed("the connection is closed")
            self._read()
        return self._received()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """End the link; a thread that waits in `receive` or `send` gets LinkClosed. More than once is no error."""
        if self._closed and not self._torn:
            return
        self._closed, self._torn = True, False
        if self._writing.acquire(blocking=False):
            try:
                goodbye = self._frame(self._opcode.CLOSE, b"\x03\xe8").serialize(mask=True)
                self._socket.send(goodbye, socket.MSG_DONTWAIT)
            except OSError:
                pass
            finally:
                self._writing.release()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()

    def hang_up(self) -> None:
        """Have whoever reads or writes find the link closed; any thread may."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def tear(self) -> None:
        """As `hang_up`, and nothing more is received: what was read may have been lost on its way to who read it."""
        if not self._closed:
            self._closed = self._torn = True
            self.hang_up()

    def abandon(self) -> None:
        """Drop this process's copy of the socket and say nothing: for a forked child, whose parent goes on."""
        self._closed = True
        self._socket.close()

    def release(self) -> tuple[socket.socket, ClientProtocol, list[bytes]]:
        """Hand the open connection over to a loop that does not block, with what has arrived and was not received."""
        self._closed = True
        self._incoming.leave()
        self._incoming.take(self._protocol.events_received())
        return self._socket, self._protocol, self._incoming.ready

    def _received(self) -> list[bytes]:
        incoming = self._incoming
        messages, incoming.ready = incoming.ready, []
        return messages

    def _read(self) -> None:
        incoming = self._incoming
        try:
            count = incoming.read()
        except OSError as error:
            if incoming.closing:
                raise link_closed(self._protocol) from error
            raise LinkClosed(f"the connection broke: {error}") from error
        protocol = self._protocol
        if not count:
            if not self._ended:
                self._ended = True
                protocol.receive_eof()
            raise link_closed(protocol)
        if incoming.passed_on:
            incoming.passed_on = False
            self._see_to(protocol)

    def _see_to(self, protocol: ClientProtocol) -> None:
        """What the library has parsed: answer pings, and end where the other side ends."""
        self._owed.extend(data for data in protocol.data_to_send() if data)
        if self._owed:
            try:
                self._pay()
            except LinkClosed:
                if not self._incoming.closing:
                    raise  # Else it is gone already, and has said why.
        if not self._incoming.ready and (self._incoming.closing or protocol.parser_exc is not None):
            raise link_closed(protocol)

    def _pay(self) -> None:
        """Send what is owed, unless somebody is writing: then they do it after their own message."""
        while self._owed and self._writing.acquire(blocking=False):
            try:
                while self._owed:
                    self._write(self._owed.popleft())
            finally:
                self._writing.release()

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise LinkClosed(f"the connection broke: {error}") from error

    def _write_parts(self, parts: Sequence[bytes]) -> None:
        """The same, without a copy of them as a whole."""
        try:
            sent = self._socket.sendmsg(parts)
        except OSError as error:
            raise LinkClosed(f"the connection broke: {error}") from error
        for part in parts:  # A signal may have ended it before all was taken.
            if sent < len(part):
                self._write(memoryview(part)[sent:])
            sent = max(0, sent - len(part))


def _masked(data: bytes | bytearray | memoryview, mask: Callable[[Any, bytes], bytes]) -> tuple[bytes, bytes]:
    """A binary message as one frame of a client, as RFC 6455 has it: its head, and what follows that.

    Its keys are drawn many at a time.
    """
    size = len(data)
    if size < 126:
        head = _SHORT.pack(_BINARY, _MASKED | size)
    elif size < 1 << 16:
        head = _MEDIUM.pack(_BINARY, _MASKED | 126, size)
    else:
        head = _LONG.pack(_BINARY, _MASKED | 127, size)
    try:
        key = _keys.popleft()
    except IndexError:
        random = os.urandom(4 * KEYS)
        _keys.extend(random[start : start + 4] for start in range(4, 4 * KEYS, 4))
        key = random[:4]
    return head + key, mask(data, key)


def _reach_locally(path: str, timeout_s: float) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(path)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_SEND_BYTES)
        return sock
    except OSError:
        sock.close()
        return None


def _tune(sock: socket.socket) -> None:
    """No delay for small messages, and an end to waiting for a machine that is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", DEAD_PEER_S // 3),
        ("TCP_KEEPINTVL", DEAD_PEER_S // 6),
        ("TCP_KEEPCNT", 4),
        ("TCP_USER_TIMEOUT", DEAD_PEER_S * 1000),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _shake_hands(sock: socket.socket, protocol: ClientProtocol, token: str, deadline: float) -> list[Any]:
    """The websocket handshake; gives the frames that came right behind the server's answer."""
    from websockets.exceptions import InvalidStatus

    request = protocol.connect()
    request.headers["Authorization"] = f"Bearer {token}"
    protocol.send_request(request)
    sock.sendall(b"".join(protocol.data_to_send()))
    while True:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        data = sock.recv(65536)
        if data:
            protocol.receive_data(data)
        else:
            protocol.receive_eof()
        refusal = protocol.handshake_exc
        if isinstance(refusal, InvalidStatus):
            response = refusal.response
            raise LinkRefused(response.status_code, bytes(response.body).decode(errors="replace").strip())
        if refusal is not None:
            raise LinkClosed(f"the other side does not speak websocket: {refusal}") from refusal
        events = protocol.events_received()
        if events:
            return events[1:]
        if not data:
            raise LinkClosed("the other side closed the connection during the handshake")


def link_closed(protocol: ClientProtocol) -> LinkClosed:
    """Why the other side has ended a connection, as far as it has said so."""
    close = protocol.close_rcvd
    fault = protocol.parser_exc
    if close is None and fault is not None and not isinstance(fault, EOFError):
        return LinkClosed(f"the other side broke the websocket protocol: {fault}")
    if close is None or not close.reason:
        return LinkClosed("the other side closed the connection")
    return LinkClosed(f"the other side closed the connection: {close.reason}", close.reason)
