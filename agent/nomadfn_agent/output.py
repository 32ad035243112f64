"""What one container writes, as text: whole lines where there are lines, in bounded memory."""

from __future__ import annotations

import codecs
import os

READ_BYTES = 64 * 1024
MAX_PARTIAL_CHARACTERS = 16 * 1024
"""A line that is longer goes out in pieces."""
TAIL_LINES = 30
"""Room for a crash report of Python's, from its first line on."""
TAIL_CHARACTERS = 8 * 1024


class Pipe:
    """The read end of one stream of a container: 1 is stdout, 2 stderr."""

    def __init__(self, handle: int, stream: int) -> None:
        os.set_blocking(handle, False)
        self.handle = handle
        self.stream = stream
        self.open = True
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._partial = ""

    def read(self) -> tuple[str, bool]:
        """The text that is there, up to its last line end, and whether there may be more at once.

        A read returns at most READ_BYTES, so that one container cannot keep the others waiting.
        """
        try:
            data = os.read(self.handle, READ_BYTES)
        except BlockingIOError:
            return "", False
        except OSError:
            data = b""
        if not data:
            return self.close(), False
        text = self._partial + self._decoder.decode(data)
        end = max(text.rfind("\n"), text.rfind("\r")) + 1
        if len(text) - end > MAX_PARTIAL_CHARACTERS:
            end = len(text)
        self._partial = text[end:]
        return text[:end], True

    def close(self) -> str:
        """Close the pipe; returns what was left of a line. More than once is no error."""
        if not self.open:
            return ""
        self.open = False
        os.close(self.handle)
        text, self._partial = self._partial + self._decoder.decode(b"", final=True), ""
        return text


class Tail:
    """The last lines that a container wrote."""

    def __init__(self) -> None:
        self._text = ""

    def add(self, text: str) -> None:
        self._text = (self._text + text[-TAIL_CHARACTERS:])[-TAIL_CHARACTERS:]

    def lines(self) -> str:
        return "\n".join(self._text.splitlines()[-TAIL_LINES:])
