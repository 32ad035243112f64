"""Large payloads: pickled straight into a file of the blob folder, and straight out of it.

A pickler hands large buffers (bytes, the memory of an array) to its file as they are. So a value becomes a list of
pieces, most often one; when they are too many bytes to travel in a frame they are written one after the other, and
no buffer is copied on the way.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any

from . import PICKLE
from .outcome import BlobRef
from .payload import PICKLE_PROTOCOL, cloud_dumps, load_arguments, split_arguments
from .store import BlobStore

SMALL_BYTES = 4096
"""A pickler that has made more is not used again: it would clear a large table after each small value."""
SHORT = 16 * 1024
"""The most that a text or bytes has of which `is_short` holds, and bits of an int."""
GLOBALS_PIECE_BYTES = 256 * 1024
"""What stands in a larger piece is a buffer and names no global."""


def is_short(value: Any) -> bool:
    """Whether `pickle.dumps` never fails for it and gives a little that names nothing: it is faster than a `Dumper`."""
    kind = type(value)
    if kind is bytes or kind is str:
        return len(value) <= SHORT
    if kind is int:
        return bool(value.bit_length() <= SHORT)
    return value is None or kind is float or kind is bool


class _Sink:
    """The file of a pickler: a list of what it writes."""

    __slots__ = ("pieces", "write")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.write = self.pieces.append


class Dumper:
    """Pickles values, by cloudpickle where plain pickle cannot. For one thread at a time, and not within itself."""

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        sink = _Sink()
        pickler = pickle.Pickler(sink, PICKLE_PROTOCOL)
        self._pieces = sink.pieces
        self._dump: Callable[[Any], None] = pickler.dump
        self._clear = pickler.clear_memo

    def dump(self, value: Any) -> list[bytes]:
        """The pieces of a pickle; valid while `value` is not changed. Raises `Unpicklable`."""
        # An interrupt may come anywhere in here: what it leaves must not stand before the next value.
        try:
            self._dump(value)
            pieces = self._pieces
            if len(pieces) == 1 and len(pieces[0]) <= SMALL_BYTES:
                self._clear()
                return [pieces.pop()]
            self._renew()
            return pieces
        except Exception:
            self._renew()
            return [cloud_dumps(value)]
        except BaseException:
            self._renew()
            raise


_of_thread = threading.local()


def dump_once(value: Any) -> list[bytes]:
    """As `Dumper.dump`, with a dumper that this thread keeps: to make one takes longer than to pickle a small value."""
    # It is taken out meanwhile, for pickling may run user code that comes here, too.
    dumper: Dumper = _of_thread.__dict__.pop("dumper", None) or Dumper()
    try:
        return dumper.dump(value)
    finally:
        _of_thread.dumper = dumper


def size_of(pieces: Sequence[bytes]) -> int:
    """In bytes. A piece may be any buffer: an array's memory is one whose items are larger than a byte."""
    return sum(memoryview(piece).nbytes for piece in pieces)


def names_main(pieces: Sequence[bytes]) -> bool:
    """Whether a pickle may refer to something of `__main__`."""
    if len(pieces) == 1 and type(pieces[0]) is bytes:
        return len(pieces[0]) <= GLOBALS_PIECE_BYTES and b"__main__" in pieces[0]
    return any(memoryview(one).nbytes <= GLOBALS_PIECE_BYTES and b"__main__" in bytes(one) for one in pieces)


def load_payload(blobs: BlobStore, ref: BlobRef) -> Any:
    """Unpickle what lies in the blob store. Raises OSError, or DamagedBlobError."""
    with blobs.open(ref) as file:
        return pickle.load(file)


def load_large_arguments(blobs: BlobStore, ref: BlobRef, codec: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """As `payload.load_arguments`. Raises as `load_payload` does."""
    if codec == PICKLE:
        return split_arguments(load_payload(blobs, ref))
    return load_arguments(blobs.read(ref), codec)
