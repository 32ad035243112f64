"""What the core asks of the world: data, carried out by the control service in this order."""

from __future__ import annotations

from dataclasses import dataclass

from .model import Container, Function


@dataclass(slots=True)
class Deliver:
    """Send inputs of one call to a container."""

    container: str
    call: str
    deliveries: list[int]
    indexes: list[int]
    payloads: list[bytes]
    codecs: list[int]
    method: str = ""


@dataclass(slots=True)
class DeliverBatch:
    """Send inputs of several calls to a container: web requests, or a batch, or a part of one."""

    container: str
    calls: list[str]
    deliveries: list[int]
    indexes: list[int]
    payloads: list[bytes]
    codecs: list[int]
    last: bool
    """Whether the batch is whole with it."""


@dataclass(slots=True)
class Recall:
    """Ask a container for those deliveries that it has not started."""

    container: str
    deliveries: list[int]


@dataclass(slots=True)
class Interrupt:
    """Cancel deliveries in a container."""

    container: str
    deliveries: list[int]


@dataclass(slots=True)
class StartContainer:
    container: Container


@dataclass(slots=True)
class StopContainer:
    """End a container that holds nothing any more, or (`grace_s` 0) at once whatever it holds."""

    container: str
    grace_s: float
    reason: str


@dataclass(slots=True)
class SendResults:
    session: str
    number: int
    call: str
    indexes: list[int]
    statuses: list[int]
    payloads: list[bytes]
    codec: int


@dataclass(slots=True)
class SendParts:
    """What a running input has given out, to the client that reads it."""

    session: str
    call: str
    index: int
    attempt: int
    number: int
    statuses: list[int]
    payloads: list[bytes]


@dataclass(slots=True)
class Consumed:
    """The parts of a delivery up to `number` are taken."""

    container: str
    delivery: int
    number: int


@dataclass(slots=True)
class SendFeed:
    """Parts for a running input."""

    container: str
    delivery: int
    number: int
    payloads: list[bytes]
    last: bool


@dataclass(slots=True)
class FeedTaken:
    """User code has what its input was fed, up to `number`."""

    session: str
    call: str
    index: int
    number: int


@dataclass(slots=True)
class Accept:
    """Inputs of a durable call are safe."""

    session: str
    call: str
    first: int
    count: int


@dataclass(slots=True)
class Reject:
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


@dataclass(slots=True)
class Visible:
    """A durable call has new results that may be shown, or was closed or cancelled."""

    call: str


@dataclass(slots=True)
class DropBlob:
    """The payload behind this reference (in msgpack) is needed no more."""

    reference: bytes


@dataclass(slots=True)
class AppGone:
    """The app was stopped and its last container is gone."""

    app: str


@dataclass(slots=True)
class FunctionGone:
    """The app has this function no more, though it may still have containers that end."""

    app: str
    name: str


@dataclass(slots=True)
class FunctionChanged:
    """A function's containers or what is wanted of them changed."""

    function: Function


@dataclass(slots=True)
class SettingsReverted:
    """Settings that were changed for a time are as they were before."""

    function: Function


@dataclass(slots=True)
class Notice:
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
