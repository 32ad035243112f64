"""Much memory at once: half of it by another thread, since copying is bound to one core.

A file takes one writer at a time. So what is large lies in two, of which each has about one half: the second one's
name is that of the first and SECOND.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from mmap import PAGESIZE
from pickle import PickleBuffer
from typing import IO, Any

WIDE_BYTES = 8 * 1024 * 1024
"""What is not larger is one file, and read by one thread."""
SECOND = "_2"
PART_BYTES = 1024 * 1024
POPULATE_WRITE = 23
"""Linux's MADV_POPULATE_WRITE, which neither `mmap` nor older kernels know."""
Pieces = Sequence[bytes | memoryview]


def write_wide(path: str, pieces: Pieces, size: int) -> None:
    """Make what `open_wide` reads. Nobody may be told of it before this has returned; it leaves nothing if it fails."""
    if not _is_wide(size):
        _write(path, pieces)
        return
    first, second = _halves(pieces, size)
    try:
        _side_by_side(lambda: _write(path, first), lambda: _write(path + SECOND, second))
    except BaseException:
        unlink_wide(path)
        raise


def open_wide(path: str, size: int) -> IO[bytes]:
    """What lies there in one or two files, which should be `size` bytes, to be read from its beginning.

    Raises OSError, and ValueError where it has another size.
    """
    files = [io.FileIO(path)]
    try:
        found = os.fstat(files[0].fileno()).st_size
        if found < size and os.path.exists(path + SECOND):
            files.append(io.FileIO(path + SECOND))
            found += os.fstat(files[1].fileno()).st_size
        if found != size:
            raise ValueError(f"it has {found:,} bytes, not {size:,}")
        if len(files) == 1 and not _is_wide(size):
            return io.BufferedReader(files[0])
        return _WideReader(_Joined(files))
    except BaseException:
        for file in files:
            file.close()
        raise


def unlink_wide(path: str) -> None:
    """Remove what is there of it and can be removed."""
    for one in (path, path + SECOND):
        try:
            os.unlink(one)
        except OSError:
            pass


def _is_wide(size: int) -> bool:
    return size >= WIDE_BYTES and hasattr(os, "preadv") and (os.cpu_count() or 1) > 1


def _write(path: str, pieces: Pieces) -> None:
    with open(path, "xb") as file:
        try:
            for piece in pieces:
                file.write(piece)
            file.flush()
        except BaseException:
            os.unlink(path)
            raise


def _halves(pieces: Pieces, size: int) -> tuple[list[memoryview], list[memoryview]]:
    first, second, rest = [], [], size // 2
    for piece in pieces:
        view = PickleBuffer(piece).raw()  # Bytes, whatever the items and the shape of an array are.
        first.append(view[:rest])
        second.append(view[rest:])
        rest = max(0, rest - len(view))
    return first, second


class _Joined(io.RawIOBase):
    """Files as one, that are read one after the other or at any place."""

    def __init__(self, files: list[io.FileIO]) -> None:
        self._files = files
        self._sizes = [os.fstat(file.fileno()).st_size for file in files]
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, sum(self._sizes))[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = self.read_at(memoryview(buffer).cast("B"), self._at)
        self._at += count
        return count

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(WIDE_BYTES) or b"", b""))

    def read_at(self, view: memoryview, offset: int) -> int:
        """As much as the file has there that begins or goes on at this place; 0 at the end of all."""
        for file, size in zip(self._files, self._sizes, strict=True):
            if offset < size:
                return os.preadv(file.fileno(), [view[: size - offset]], offset)
            offset -= size
        return 0

    def close(self) -> None:
        super().close()
        for file in self._files:
            file.close()


class _WideReader(io.BufferedReader):
    """`pickle.load` reads a large buffer with one call of `readinto`."""

    raw: _Joined

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if len(view) < WIDE_BYTES:
            return super().readinto(view)
        start, half = self.tell(), len(view) // 2
        _side_by_side(lambda: self._fill(view[:half], start), lambda: self._fill(view[half:], start + half))
        self.seek(start + len(view))
        return len(view)

    def _fill(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view):
            part = view[done : done + PART_BYTES]
            _provide(part)
            count = self.raw.read_at(part, offset + done)
            if not count:
                raise OSError(f"the file ends after {offset + done:,} bytes")
            done += count


def _side_by_side(mine: Callable[[], None], other: Callable[[], None]) -> None:
    """Do both, one of them in a thread of its own, and raise what one has raised once both have ended."""
    failed: list[BaseException] = []

    def do_other() -> None:
        try:
            other()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=do_other, name="nomadfn-half", daemon=True)
    thread.start()
    try:
        mine()
    finally:
        _wait_for(thread)
    if failed:
        raise failed[0]


def _wait_for(thread: threading.Thread) -> None:
    """Until it has ended, since it uses memory of whoever waits; a signal may raise something here meanwhile."""
    try:
        thread.join()
    except BaseException:
        _wait_for(thread)
        raise


def _provide(view: memoryview) -> None:
    """Have the system give the pages of this memory at once, which is cheaper than one by one when they are written to.

    Advice alone: of what lies there nothing changes. It is not worth the import of ctypes where nobody has needed it.
    """
    if "ctypes" not in sys.modules or sys.platform != "linux":
        return
    import ctypes

    madvise = _madvise()
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    first = address - address % PAGESIZE
    madvise(first, address + len(view) - first, POPULATE_WRITE)


@cache
def _madvise() -> Callable[[int, int, int], int]:
    import ctypes

    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise
