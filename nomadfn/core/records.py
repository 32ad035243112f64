"""What survives a control service: the records of durable calls, in the order in which they happened.

The journal holds them as msgpack; a segment is a list of them. `replay` applies them to a fresh state with
the same functions that made them. A snapshot is a list of records too.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from .model import COMMITTING, NO_DEADLINE, Call, Input


class Submitted(msgspec.Struct, array_like=True, tag=1, gc=False):
    """Inputs `first`, `first + 1`, … of a durable call were taken."""

    call: str
    function: str
    kind: int
    caller: str
    priority: int
    at: float
    first: int
    payloads: list[bytes]
    codecs: list[int]
    deadline: float | None = None
    method: str = ""
    parent: str = ""


class Closed(msgspec.Struct, array_like=True, tag=2, gc=False):
    """The call has `total` inputs and gets no more."""

    call: str
    total: int
    at: float


class Cancelled(msgspec.Struct, array_like=True, tag=3, gc=False):
    """Every input of the call that had no result then was cancelled; `text` says why."""

    call: str
    at: float
    text: str = ""


class Finished(msgspec.Struct, array_like=True, tag=4, gc=False):
    call: str
    indexes: list[int]
    statuses: list[int]
    payloads: list[bytes]
    at: float


class Forgotten(msgspec.Struct, array_like=True, tag=5, gc=False):
    """The results of these calls were kept for their time."""

    calls: list[str]


class Fired(msgspec.Struct, array_like=True, tag=6, gc=False):
    """Everything that was due of a function's schedule up to `at` is done; the last due time was `due`."""

    function: str
    due: float
    at: float


class DictMade(msgspec.Struct, array_like=True, tag=20, gc=False):
    """`session` is that of the client that it ends with; empty for one that has a name."""

    dict: str
    name: str
    session: str
    at: float


class DictPut(msgspec.Struct, array_like=True, tag=21, gc=False):
    """Entries were written, in place of those that were there."""

    dict: str
    keys: list[bytes]
    values: list[bytes]
    codecs: list[int]
    at: float
    token: str = ""
    ats: list[float] = []
    """In a snapshot: a time for each."""


class DictTouched(msgspec.Struct, array_like=True, tag=22, gc=False):
    """Entries were read."""

    dict: str
    keys: list[bytes]
    at: float


class DictRemoved(msgspec.Struct, array_like=True, tag=23, gc=False):
    dict: str
    keys: list[bytes]
    at: float
    token: str = ""


class DictDropped(msgspec.Struct, array_like=True, tag=24, gc=False):
    dict: str


class DictAnswered(msgspec.Struct, array_like=True, tag=25, gc=False):
    """In a snapshot: what a recent change gave. `codec` is that of the value, or one of `shared`."""

    token: str
    at: float
    value: bytes
    codec: int


class QueueMade(msgspec.Struct, array_like=True, tag=30, gc=False):
    """As `DictMade`."""

    queue: str
    name: str
    session: str
    at: float


class QueuePut(msgspec.Struct, array_like=True, tag=31, gc=False):
    """Values came into a partition, which ends `ttl_s` after that unless more come."""

    queue: str
    partition: bytes
    numbers: list[int]
    values: list[bytes]
    codecs: list[int]
    ttl_s: float
    at: float
    token: str = ""


class QueueTaken(msgspec.Struct, array_like=True, tag=32, gc=False):
    """The values of a partition up to the one with the number `upto` are gone."""

    queue: str
    partition: bytes
    upto: int
    at: float
    token: str = ""


class QueueDropped(msgspec.Struct, array_like=True, tag=33, gc=False):
    queue: str


QueueRecord = QueueMade | QueuePut | QueueTaken | QueueDropped
DictRecord = DictMade | DictPut | DictTouched | DictRemoved | DictDropped | DictAnswered
Record = Submitted | Closed | Cancelled | Finished | Forgotten | Fired | DictRecord | QueueRecord

encode_segment = msgspec.msgpack.Encoder().encode
decode_segment = msgspec.msgpack.Decoder(list[Record]).decode

_SNAPSHOT_INPUTS = 256


def size_of(record: Record) -> int:
    """About how many bytes a record takes: its payloads."""
    if isinstance(record, DictPut | QueuePut):
        return sum(map(len, record.values)) + 128 * len(record.values) + 64
    return sum(map(len, record.payloads)) if isinstance(record, Submitted | Finished) else 64


def records_of(call: Call) -> Iterator[Record]:
    """The records that bring back a durable call as it is now."""
    # Taken while the service goes on: what is said last must have been true before the rest was looked at.
    total, cancelled = call.total, call.cancelled
    for first in range(0, call.accepted, _SNAPSHOT_INPUTS):
        part = _inputs(call, first)
        deadline = part[0].deadline
        yield Submitted(
            call=call.id,
            function=call.function.id,
            kind=call.kind,
            caller=call.caller,
            priority=call.priority,
            at=call.created,
            first=first,
            payloads=[b"" if one.state >= COMMITTING else one.payload for one in part],
            codecs=[one.codec for one in part],
            deadline=None if deadline == NO_DEADLINE else deadline,
            method=call.method,
            parent=call.parent,
        )
    # A result that is seen and not yet durable becomes durable with the snapshot; replaying it again changes nothing.
    for first in range(0, call.accepted, _SNAPSHOT_INPUTS):
        done = [one for one in _inputs(call, first) if one.state >= COMMITTING]
        if done:
            yield Finished(
                call.id,
                [one.index for one in done],
                [one.status for one in done],
                [one.payload for one in done],
                call.finished_at,
            )
    if total >= 0:
        yield Closed(call.id, total, call.finished_at)
    if cancelled:
        yield Cancelled(call.id, call.finished_at)


def _inputs(call: Call, first: int) -> list[Input]:
    last = min(first + _SNAPSHOT_INPUTS, call.accepted)
    return [one for index in range(first, last) if (one := call.get(index)) is not None]
