"""Reading much of a file at once: half of it by another thread, since copying memory is bound to one core."""

from __future__ import annotations

import io
import os
import threading
from typing import IO, Any

WIDE_BYTES = 8 * 1024 * 1024
"""What is not larger is read by one thread."""


def open_wide(path: str, size: int) -> IO[bytes]:
    """A file of about `size` bytes, to be read from its beginning."""
    if size < WIDE_BYTES or not hasattr(os, "preadv") or (os.cpu_count() or 1) < 2:
        return open(path, "rb")
    return _WideReader(io.FileIO(path))


class _WideReader(io.BufferedReader):
    """`pickle.load` reads a large buffer with one call of `readinto`."""

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if len(view) < WIDE_BYTES:
            return super().readinto(view)
        start, half, file = self.tell(), len(view) // 2, self.fileno()
        failed: list[OSError] = []

        def read_other_half() -> None:
            try:
                _read_at(file, view[half:], start + half)
            except OSError as error:
                failed.append(error)

        other = threading.Thread(target=read_other_half, name="nomadfn-read", daemon=True)
        other.start()
        try:
            _read_at(file, view[:half], start)
        finally:
            other.join()
        if failed:
            raise failed[0]
        self.seek(start + len(view))
        return len(view)


def _read_at(file: int, view: memoryview, offset: int) -> None:
    """Fill `view` from there. Raises OSError where the file ends before."""
    done = 0
    while done < len(view):
        count = os.preadv(file, [view[done:]], offset + done)
        if not count:
            raise OSError(f"the file ends after {offset + done:,} bytes")
        done += count
