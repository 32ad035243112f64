"""Between bytes and values: an input's arguments, and what came of it as a status and a payload."""

from __future__ import annotations

import os
from pickle import dumps
from typing import Any

from . import context
from .code import Code
from .wire import DURABLE, EXCEPTION, FAILURE, INLINE_PAYLOAD_BYTES, OK, PICKLE, REF
from .wire.bulk import Dumper, is_short, load_large_arguments, size_of
from .wire.payload import (
    NO_KWARGS,
    PICKLE_PROTOCOL,
    Failure,
    Unpicklable,
    decode_ref,
    dump_json,
    encode,
    load_arguments,
    loads,
    over_limit,
    safe_str,
)

MAX_PAYLOAD_BYTES = 1 << 30
CODEC_MASK = REF - 1

Outcome = tuple[int, bytes]
"""A status and a payload."""

NOTHING: Outcome = OK, dumps(None, PICKLE_PROTOCOL)
"""What a function gives that returns nothing."""


class Coder:
    """For the inputs of one function, or of one method of a class, one at a time."""

    def __init__(self, code: Code, method: str = "") -> None:
        name = code.bind.spec.program_name
        self.name = f"{name}.{method}" if method else name
        self._code = code
        self._blobs = code.blobs
        self._dump = Dumper().dump
        self._max_payload_bytes = int(os.environ.get("NOMADFN_MAX_PAYLOAD_BYTES", MAX_PAYLOAD_BYTES))

    def arguments(self, data: bytes, codec: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Raises whatever reading or unpickling raises."""
        if not codec:
            value = loads(data)
            return value if len(value) > 1 else (value[0], NO_KWARGS)
        if not codec & REF:
            return load_arguments(data, codec & CODEC_MASK)
        return load_large_arguments(self._blobs, decode_ref(data), codec & CODEC_MASK)

    def result(self, value: Any, codec: int, what: str = "the result of") -> Outcome:
        """What the function returned, in the codec of its arguments; `what` it is, for the errors."""
        if value is None and codec & CODEC_MASK == PICKLE:
            return NOTHING
        if codec & CODEC_MASK == PICKLE and is_short(value):
            return OK, dumps(value, PICKLE_PROTOCOL)
        try:
            pieces = self._dump(value) if codec & CODEC_MASK == PICKLE else [dump_json(value)]
        except Exception as error:
            return self._unpicklable(value, codec, error, what)
        if len(pieces) == 1 and len(pieces[0]) <= INLINE_PAYLOAD_BYTES:
            return OK, pieces[0]
        return self._store(OK, pieces, codec, what)

    def part(self, value: Any, codec: int) -> Outcome:
        """What a generator yielded."""
        return self.result(value, codec, "a value yielded by")

    def raised(self, error: BaseException, codec: int) -> Outcome:
        """What the function raised, a cancellation too."""
        if isinstance(error, (context.cancellation_type(), context.InputCancellation)):
            return failure("InputCancellation", f"the input was cancelled while {self.name} ran")
        return self._store(EXCEPTION, [encode(self._code.describe(error))], codec)

    def undecodable(self, error: Exception) -> Outcome:
        """The arguments could not be read."""
        return failure(
            "DeserializationError",
            f"the arguments of {self.name} could not be read in the container: "
            f"{type(error).__name__}: {safe_str(error)}",
        )

    def _store(self, status: int, pieces: list[bytes], codec: int, what: str = "the result of") -> Outcome:
        """A large payload as a blob, its reference in its place."""
        size = size_of(pieces)
        if size <= INLINE_PAYLOAD_BYTES:
            return status, b"".join(pieces)
        if size > self._max_payload_bytes:
            return failure(
                "RequestSizeError",
                f"{what} {self.name} has {size:,} bytes, "
                f"{over_limit(self._max_payload_bytes)}, or store it elsewhere and return where it is",
            )
        try:
            ref = self._blobs.write_pieces(pieces, size, self._code.bind.app, durable=bool(codec & DURABLE))
        except OSError as error:
            return failure("InternalError", f"{what} {self.name} could not be stored: {error}")
        return status | REF, encode(ref)

    def _unpicklable(self, value: Any, codec: int, error: Exception, what: str) -> Outcome:
        why = str(error) if isinstance(error, Unpicklable) else f"{type(error).__name__}: {safe_str(error)}"
        form = "pickled" if codec & CODEC_MASK == PICKLE else "made into JSON"
        return failure(
            "SerializationError",
            f"{what} {self.name}, of type {type(value).__name__}, could not be {form}: {why}",
        )


class Coders(dict[str, Coder]):
    """Those of one thread, by method; the empty name is the function itself."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self._code = code

    def __missing__(self, method: str) -> Coder:
        coder = self[method] = Coder(self._code, method)
        return coder


def failure(error: str, message: str) -> Outcome:
    """nomadfn could not get a result; `error` names a class of `nomadfn.exception`."""
    return FAILURE, encode(Failure(error, message))
