"""The parts of a payload that nomadfn itself reads: where a large one lies, what was raised, why there is none."""

from __future__ import annotations

import msgspec


class BlobRef(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a large payload lies: the blob's name, the sha256 of its bytes, and how many there are.

    What need not survive a crash has no digest: that costs more than to write and read it.

    Payload blobs have names of their own, so that each has one owner who deletes it: an input's goes when the
    input is done, a `.remote` or `.map` result's when its client has read it, a spawn's result when it is
    forgotten. Code is named by its digest and shared.
    """

    name: str
    digest: str
    size: int


class Raised(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An exception of user code. `pickled` is empty when it could not be pickled."""

    pickled: bytes
    type_name: str
    text: str
    traceback: str
    """As Python prints it, with the user's own frames only."""


class Failure(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Why nomadfn has no result. `error` names a class of `nomadfn.exception`."""

    error: str
    message: str


encode = msgspec.msgpack.Encoder().encode
decode_raised = msgspec.msgpack.Decoder(Raised).decode
decode_failure = msgspec.msgpack.Decoder(Failure).decode
decode_ref = msgspec.msgpack.Decoder(BlobRef).decode
