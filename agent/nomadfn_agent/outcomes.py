"""Between bytes and values: an input's arguments, and what came of it as a status and a payload."""

from __future__ import annotations

import os
from typing import Any

from . import context
from .code import Code
from .wire import DURABLE, EXCEPTION, FAILURE, INLINE_PAYLOAD_BYTES, OK, PICKLE, REF
from .wire.payload import (
    Failure,
    Unpicklable,
    decode_ref,
    dump_result,
    encode,
    load_arguments,
    over_limit,
    safe_str,
)

MAX_PAYLOAD_BYTES = 1 << 30

Outcome = tuple[int, bytes]


class Coder:
    """For one function. Any thread may use it."""

    def __init__(self, code: Code) -> None:
        self.name = code.bind.spec.name
        self._code = code
        self._blobs = code.blobs
        self._max_payload_bytes = int(os.environ.get("NOMADFN_MAX_PAYLOAD_BYTES", MAX_PAYLOAD_BYTES))

    def arguments(self, data: bytes, codec: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Raises whatever reading or unpickling raises."""
        if codec & REF:
            data = self._blobs.read(decode_ref(data))
        return load_arguments(data, codec & ~(REF | DURABLE))

    def result(self, value: Any, codec: int) -> Outcome:
        """What the function returned, in the codec of the input."""
        plain = codec & ~(REF | DURABLE)
        try:
            payload = dump_result(value, plain)
        except Exception as error:
            return self._unpicklable(value, plain, error)
        return (OK, payload) if len(payload) <= INLINE_PAYLOAD_BYTES else self._store(OK, payload, codec)

    def raised(self, error: BaseException, codec: int) -> Outcome:
        """What the function raised, a cancellation too."""
        if isinstance(error, (context.cancellation_type(), context.InputCancellation)):
            return failure("InputCancellation", f"the input was cancelled while {self.name} ran")
        payload = encode(self._code.describe(error))
        return (EXCEPTION, payload) if len(payload) <= INLINE_PAYLOAD_BYTES else self._store(EXCEPTION, payload, codec)

    def undecodable(self, error: Exception) -> Outcome:
        return failure(
            "DeserializationError",
            f"the arguments of {self.name} could not be read in the container: "
            f"{type(error).__name__}: {safe_str(error)}",
        )

    def _store(self, status: int, payload: bytes, codec: int) -> Outcome:
        """A large payload as a blob, its reference in its place."""
        if len(payload) > self._max_payload_bytes:
            return failure(
                "RequestSizeError",
                f"the result of {self.name} has {len(payload):,} bytes, "
                f"{over_limit(self._max_payload_bytes)}, or store it elsewhere and return where it is",
            )
        try:
            ref = self._blobs.write(payload, self._code.bind.app, sync=bool(codec & DURABLE))
        except OSError as error:
            return failure("InternalError", f"the result of {self.name} could not be stored: {error}")
        return status | REF, encode(ref)

    def _unpicklable(self, value: Any, codec: int, error: Exception) -> Outcome:
        why = str(error) if isinstance(error, Unpicklable) else f"{type(error).__name__}: {safe_str(error)}"
        form = "pickled" if codec == PICKLE else "made into JSON"
        return failure(
            "SerializationError",
            f"the result of {self.name}, of type {type(value).__name__}, could not be {form}: {why}",
        )


def failure(error: str, message: str) -> Outcome:
    """nomadfn could not get a result; `error` names a class of `nomadfn.exception`."""
    return FAILURE, encode(Failure(error, message))
