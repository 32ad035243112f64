"""The stream of an input: what it gives out while it runs, and what it is fed, both in numbered parts.

    runner  → control  Part      control → SDK     Parts     a generator's values, a response
    SDK     → control  Taken     control → runner  Consumed  who reads has them, up to a number
    control → runner   Feed                                  the body of a request, messages of a websocket
    runner  → control  Fed                                   user code has taken them, up to a number

Parts are numbered from 1 within one delivery, each way. A sender goes on while less than STREAM_WINDOW_BYTES of it are
not taken; a part counts with the bytes of its value, wherever those lie, and PART_EXTRA_BYTES. So whoever reads slowly
slows down the one who writes, and nobody on the way keeps more than a window. What the other side has not taken is
kept and sent again after a lost connection; the numbers say what came twice. An input's `Outputs` end its stream.
"""

from __future__ import annotations

import msgspec

STREAM_WINDOW_BYTES = 1024 * 1024
PART_EXTRA_BYTES = 64
"""What a part counts for beside its bytes: many small values are not for nothing in anybody's memory."""


class _Frame(msgspec.Struct, array_like=True, gc=False):
    pass


class Part(_Frame, tag=33):
    """What a running input gives out: columns as in `Outputs`; `number` is that of the last of them."""

    delivery: int
    number: int
    statuses: list[int]
    payloads: list[bytes]


class Parts(_Frame, tag=12):
    """The same on its way to the client. `delivery` names the attempt: parts of two attempts are never mixed."""

    call: str
    index: int
    delivery: int
    number: int
    statuses: list[int]
    payloads: list[bytes]


class Taken(_Frame, tag=13):
    """Whoever iterates over the input's parts has been given all of them up to `number`."""

    call: str
    index: int
    number: int


class Consumed(_Frame, tag=34):
    """`Taken`, on its way to the runner."""

    delivery: int
    number: int


class Feed(_Frame, tag=35):
    """Parts for a running input; `number` is that of the last of them, and nothing comes after `last`."""

    delivery: int
    number: int
    payloads: list[bytes]
    last: bool = False


class Fed(_Frame, tag=36):
    """User code has what it was fed, up to `number`; 0 is what came in the input's own payload.

    The first one is sent before user code goes on: an input that has taken something is not run again.
    """

    delivery: int
    number: int
