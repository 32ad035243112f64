"""The bytes that stand for a key of a `Dict`: equal keys have equal bytes, whoever makes them.

A pickle of the same key may differ from one process to the next. So strings, bytes, numbers, booleans, None and tuples
of them are written in msgpack, which has one form for each; everything else is pickled, as it is on Modal.
"""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
from nomadfn_agent.wire import payload as payloads

from nomadfn.exception import DeserializationError, SerializationError

PLAIN = b"m"
PICKLED = b"p"
_PLAIN_TYPES = {str, bytes, int, float, bool, type(None)}
_INT_RANGE = range(-(2**63), 2**64)


def encode(key: Any) -> bytes:
    """Raises SerializationError."""
    if _is_plain(key):
        return PLAIN + msgspec.msgpack.encode(_normal(key))
    try:
        return PICKLED + payloads.dumps(key)
    except payloads.Unpicklable as error:
        raise SerializationError(f"a {type(key).__name__} cannot be a key of a Dict: {error}") from None


def decode(data: bytes, owner: str) -> Any:
    """Raises DeserializationError."""
    try:
        return _tuples(msgspec.msgpack.decode(data[1:])) if data[:1] == PLAIN else pickle.loads(data[1:])
    except Exception as error:
        raise DeserializationError(
            f"a key of {owner} cannot be read here: {type(error).__name__}: {error}; its type must be importable in "
            "this program too"
        ) from None


def _is_plain(key: Any) -> bool:
    kind = type(key)
    if kind is int:
        return key in _INT_RANGE
    return all(map(_is_plain, key)) if kind is tuple else kind in _PLAIN_TYPES


def _normal(key: Any) -> Any:
    """With one form for each value: -0.0 is 0.0."""
    if type(key) is tuple:
        return tuple(map(_normal, key))
    return key + 0.0 if type(key) is float else key


def _tuples(value: Any) -> Any:
    """A list cannot be a key: what is read as one was a tuple."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
