"""The websocket listener: one connection is a client's session, a container's runner, or an allocation's agent.

A connection says who it is in its upgrade request (the token) and in its first frame (`wire.Hello`, of an agent
`wire.Join`). What it sends is decoded here and handed to the service; nothing is decided here.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
import picows
from nomadfn_agent import wire

from nomadfn.control.tokens import Identity
from nomadfn.exception import AuthError

if TYPE_CHECKING:
    from nomadfn.control.service import Service

HELLO_TIMEOUT_S = 10.0
READ_BUFFER_BYTES = 16 * 1024
"""What a connection takes of memory at first; one whose frames are larger gets a larger one."""
FRAME_MAX_BYTES = 64 * 1024 * 1024
LOG_BACKLOG_BYTES = 4 * 1024 * 1024
"""A client that is further behind than this misses log lines and figures, never results."""
BACKLOG_MAX_BYTES = 512 * 1024 * 1024
"""A client that is further behind than this is disconnected; its results are kept for when it comes back."""
JOINED_BYTES = 64 * 1024
"""Frames that are more together are not copied into one piece, which saves a call for each of many small ones."""
CLOSE_REASON_BYTES = 123
_BINARY = 0x82
_SHORT, _MEDIUM, _LONG = struct.Struct(">BB"), struct.Struct(">BBH"), struct.Struct(">BBQ")
NOBODY = Identity("nobody", "nothing")
"""Who an agent is to everything but its `Join`."""


class Connection(picows.WSListener):
    """One websocket, from its upgrade to its end."""

    def __init__(self, service: Service, identity: Identity, bearer: str = "") -> None:
        self.service = service
        self.identity = identity
        self.bearer = bearer
        """An agent's credential, which is looked at when it joins; empty for everybody else."""
        self.role = ""
        self.id = ""
        """The session, or the container."""
        self.closed = False
        self.heard_at = time.monotonic()
        """When the last ping came; agents send one every 2 s."""
        self.outputs = 0
        """Frames of outputs that have come from a runner."""
        self.acknowledged = 0
        """How many of those it was told to be safe."""
        self.skipped = 0
        """Log lines that were not sent since the last one that was."""
        self._transport: picows.WSTransport | None = None
        self._collected: list[bytes] = []
        self._many: wire.ManyResults | None = None
        """Results of single calls that go out in one frame, behind what is collected."""
        self._many_bytes = 0
        self.takes_many = False
        self._deadline: asyncio.TimerHandle | None = None

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self._transport = transport
        self._deadline = asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, self.close)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        kind = frame.msg_type
        if kind != picows.WSMsgType.BINARY:
            if kind == picows.WSMsgType.CLOSE:
                self.close()
            elif kind == picows.WSMsgType.PING:
                self.heard_at = time.monotonic()
                transport.send_pong(frame.get_payload_as_bytes())
            return
        data = frame.get_payload_as_memoryview()
        try:
            self._take(data)
        except msgspec.DecodeError as error:
            self.service.log(f"a connection of {self.id or 'nobody yet'} sent a frame that cannot be read: {error}")
            self.close()

    def _take(self, data: memoryview) -> None:
        if not self.role:
            self._greet(wire.decode_first(data))
        elif self.role == "runner":
            self.service.containers.on_frame(self, wire.decode_from_runner(data))
        elif self.role == "agent":
            self.service.agents.on_frame(self, wire.decode_from_agent(data))
        else:
            self.service.clients.on_frame(self, wire.decode_from_client(data))

    def _greet(self, first: wire.Hello | wire.Join) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        match first:
            case wire.Join() if self.bearer:
                self.role, self.id = "agent", first.alloc
                self.service.agents.on_join(self, first)
            case wire.Hello() if not self.bearer and first.role != "agent":
                self.role, self.id, self.takes_many = first.role, first.session, first.takes_many
                if not self.service.welcome(self, first):
                    self.close()
            case _:
                self.close("the token is of no use for that")

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self.closed = True
        if self._deadline is not None:
            self._deadline.cancel()
        if self.role:
            self.service.on_disconnect(self)

    def send(self, frame: msgspec.Struct) -> None:
        """Now, or while the service collects together with what else it has for this connection."""
        if self._transport is None or self.closed:
            return
        collecting = self.service.collecting
        if collecting is None:
            self._write((wire.encode(frame),))
            return
        if self._many is not None:
            self._end_many()
        if not self._collected:
            collecting.append(self)
        self._collected.append(wire.encode(frame))

    def send_results(self, frame: wire.Results) -> None:
        """As `send`. What is collected of single calls is one frame: that costs both ends less than one for each."""
        collecting = self.service.collecting
        if collecting is None or not self.takes_many or len(frame.indexes) > 1:
            return self.send(frame)
        if self._transport is None or self.closed:
            return None
        many = self._many
        if many is not None and self._many_bytes >= wire.MAX_FRAME_BYTES:
            self._end_many()
            many = None
        if many is None:
            if not self._collected:
                collecting.append(self)
            many = self._many = wire.ManyResults(0, [], [], [], [], [])
        many.number = frame.number
        many.calls.append(frame.call)
        many.indexes += frame.indexes
        many.statuses += frame.statuses
        many.payloads += frame.payloads
        many.codecs.append(frame.codec)
        self._many_bytes += len(frame.payloads[0])
        return None

    def _end_many(self) -> None:
        self._collected.append(wire.encode(self._many))
        self._many, self._many_bytes = None, 0

    def send_collected(self) -> None:
        if self._many is not None:
            self._end_many()
        frames, self._collected = self._collected, []
        if frames and not self.closed:
            self._write(frames)

    def _write(self, frames: Sequence[bytes]) -> None:
        """Each write is a call into the kernel, so many frames are one."""
        transport = self._transport
        assert transport is not None
        if len(frames) == 1:
            transport.send(picows.WSMsgType.BINARY, frames[0])
        else:
            parts = [part for frame in frames for part in (_head(len(frame)), frame)]
            if sum(map(len, parts)) > JOINED_BYTES:
                transport.underlying_transport.writelines(parts)
            else:
                transport.underlying_transport.write(b"".join(parts))
        if self.backlog_bytes > BACKLOG_MAX_BYTES:
            self.close()

    @property
    def backlog_bytes(self) -> int:
        if self._transport is None or self.closed:
            return 0
        return int(self._transport.underlying_transport.get_write_buffer_size())

    def close(self, why: str = "") -> None:
        """End the connection; `why` is for the other side."""
        if self._transport is not None and not self.closed:
            self.send_collected()
            if why:
                self._transport.send_close(picows.WSCloseCode.GOING_AWAY, _shortened(why))
            self._transport.disconnect()

    def abandon(self) -> None:
        """End it at once, for an other side that is not there to see it end."""
        if self._transport is not None and not self.closed:
            self._transport.disconnect(graceful=False)


def _head(size: int) -> bytes:
    """What stands before a binary message of a server."""
    if size < 126:
        return _SHORT.pack(_BINARY, size)
    return _MEDIUM.pack(_BINARY, 126, size) if size < 1 << 16 else _LONG.pack(_BINARY, 127, size)


def _shortened(reason: str) -> bytes:
    """A close frame holds CLOSE_REASON_BYTES: of a longer reason the middle is left out, which mostly is a path."""
    text = reason.encode()
    if len(text) <= CLOSE_REASON_BYTES:
        return text
    return "…".join((text[:30].decode(errors="ignore"), text[-90:].decode(errors="ignore"))).encode()


async def listen(
    service: Service, host: str | None = None, port: int | None = None, sock: socket.socket | None = None
) -> asyncio.Server:
    """Accept websockets on `/v1/connect`, by TCP or on `sock`; a request without a good token gets 401."""

    def accept(request: picows.WSUpgradeRequest) -> Connection | picows.WSUpgradeResponseWithListener | None:
        if request.path.partition(b"?")[0] != b"/v1/connect":
            return None
        header = request.headers.get("authorization") or ""
        scheme, _, token = header.partition(" ")
        bearer = token.strip() if scheme.lower() == "bearer" else None
        if bearer and service.agents.expects(bearer):
            return Connection(service, NOBODY, bearer)
        try:
            identity = service.identify(bearer)
        except AuthError as error:
            body = str(error).encode()
            response = picows.WSUpgradeResponse.create_error_response(HTTPStatus.UNAUTHORIZED, body)
            return picows.WSUpgradeResponseWithListener(response, None)
        return Connection(service, identity)

    return await picows.ws_create_server(
        accept,
        host,
        port,
        sock=sock,
        max_frame_size=FRAME_MAX_BYTES,
        enable_auto_pong=False,
        websocket_handshake_timeout=HELLO_TIMEOUT_S,
        logger_name="nomadfn",
        read_buffer_init_size=READ_BUFFER_BYTES,
    )
