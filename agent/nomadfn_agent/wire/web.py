"""What is in the payloads of web functions: requests, responses and messages of websockets, after ASGI's events.

An input's payload is one `Request`, with its body as far as it was there. Every part of its stream, either way, and its
output are a msgpack array of messages: a small response is one `Start`, with its body, in the output. The control
service reads these as it reads HTTP; it never unpickles.
"""

from __future__ import annotations

from typing import Any

import msgspec

Headers = list[tuple[bytes, bytes]]


class Request(msgspec.Struct, array_like=True, gc=False):
    """An HTTP request, or with `websocket` a client that asks for one. As in ASGI, `root_path` begins `path`."""

    websocket: bool
    method: str
    scheme: str
    http_version: str
    root_path: str
    path: str
    raw_path: bytes
    query: bytes
    headers: Headers
    client: tuple[str, int] | None = None
    server: tuple[str, int | None] | None = None
    body: bytes = b""
    more: bool = False
    """Whether more of the body follows in the stream."""
    subprotocols: list[str] = []


class _Message(msgspec.Struct, array_like=True, gc=False):
    pass


class Body(_Message, tag=1):
    """A part of a body, of a request or of a response."""

    data: bytes
    more: bool = False


class Start(_Message, tag=2):
    """A response, with its body as far as it is there. To a websocket's request it is the refusal of one."""

    status: int
    headers: Headers
    data: bytes = b""
    more: bool = True


class Accept(_Message, tag=3):
    """The websocket is open."""

    subprotocol: str | None
    headers: Headers


class Text(_Message, tag=4):
    """A message of a websocket, from either side."""

    text: str


class Data(_Message, tag=5):
    """A message of a websocket, from either side."""

    data: bytes


class Close(_Message, tag=6):
    """The websocket is closed, or refused before it was open; from either side."""

    code: int
    reason: str = ""


FromApp = Body | Start | Accept | Text | Data | Close
ToApp = Body | Text | Data | Close

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_from_app = msgspec.msgpack.Decoder(list[FromApp]).decode
decode_to_app = msgspec.msgpack.Decoder(list[ToApp]).decode
NOTHING = encode([])


def encode_messages(messages: list[Any]) -> bytes:
    return encode(messages)
