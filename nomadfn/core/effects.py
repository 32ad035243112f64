"""What the core asks of the world: data, carried out by the control service in this order."""

from __future__ import annotations

import msgspec

from .model import Container, Function


class Deliver(msgspec.Struct):
    """Send inputs of one call to a container."""

    container: str
    call: str
    deliveries: list[int]
    indexes: list[int]
    payloads: list[bytes]
    codecs: list[int]
    method: str = ""


class DeliverBatch(msgspec.Struct):
    """Send inputs of several calls to a container: web requests, or a batch, or a part of one."""

    container: str
    calls: list[str]
    deliveries: list[int]
    indexes: list[int]
    payloads: list[bytes]
    codecs: list[int]
    last: bool
    """Whether the batch is whole with it."""


class Recall(msgspec.Struct):
    """Ask a container for those deliveries that it has not started."""

    container: str
    deliveries: list[int]


class Interrupt(msgspec.Struct):
    """Cancel deliveries in a container."""

    container: str
    deliveries: list[int]


class StartContainer(msgspec.Struct):
    container: Container


class StopContainer(msgspec.Struct):
    """End a container that holds nothing any more, or (`grace_s` 0) at once whatever it holds."""

    container: str
    grace_s: float
    reason: str


class SendResults(msgspec.Struct):
    session: str
    number: int
    call: str
    indexes: list[int]
    statuses: list[int]
    payloads: list[bytes]
    codec: int


class SendParts(msgspec.Struct):
    """What a running input has given out, to the client that reads it."""

    session: str
    call: str
    index: int
    attempt: int
    number: int
    statuses: list[int]
    payloads: list[bytes]


class Consumed(msgspec.Struct):
    """The parts of a delivery up to `number` are taken."""

    container: str
    delivery: int
    number: int


class SendFeed(msgspec.Struct):
    """Parts for a running input."""

    container: str
    delivery: int
    number: int
    payloads: list[bytes]
    last: bool


class FeedTaken(msgspec.Struct):
    """User code has what its input was fed, up to `number`."""

    session: str
    call: str
    index: int
    number: int


class Accept(msgspec.Struct):
    """Inputs of a durable call are safe."""

    session: str
    call: str
    first: int
    count: int


class Reject(msgspec.Struct):
    """Inputs were not taken; `error` names a class of `nomadfn.exception`."""

    session: str
    call: str
    first: int
    count: int
    error: str
    message: str
    retry_after_s: float = 1.0
    limit: str = ""
    value: int = 0
    maximum: int = 0


class Visible(msgspec.Struct):
    """A durable call has new results that may be shown, or was closed or cancelled."""

    call: str


class DropBlob(msgspec.Struct):
    """The payload behind this reference (in msgpack) is needed no more."""

    reference: bytes


class AppGone(msgspec.Struct):
    """The app was stopped and its last container is gone."""

    app: str


class FunctionGone(msgspec.Struct):
    """The app has this function no more, though it may still have containers that end."""

    app: str
    name: str


class FunctionChanged(msgspec.Struct):
    """A function's containers or what is wanted of them changed."""

    function: Function


class SettingsReverted(msgspec.Struct):
    """Settings that were changed for a time are as they were before."""

    function: Function


class Notice(msgspec.Struct):
    """A line for the people who watch this app."""

    app: str
    function: str
    text: str


Effect = (
    Deliver
    | DeliverBatch
    | Recall
    | Interrupt
    | StartContainer
    | StopContainer
    | SendResults
    | SendParts
    | Consumed
    | SendFeed
    | FeedTaken
    | Accept
    | Reject
    | Visible
    | DropBlob
    | AppGone
    | FunctionChanged
    | SettingsReverted
    | FunctionGone
    | Notice
)
