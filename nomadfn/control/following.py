"""A standby's copy of the queue, read from the journal while another control service writes it.

So whoever takes over has it already, but for the last moment. It costs the standby the memory and, for spawns, a part
of the processor time that they cost the leader.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from nomadfn import ports
from nomadfn.core import records
from nomadfn.core.core import Core
from nomadfn.core.limits import Limits
from nomadfn.exception import Error

PAUSE_S = 0.2
"""Between two looks when there was nothing."""
FAULT_PAUSE_S = 2.0


class Tail(Protocol):
    """See `ConsulJournalTail`."""

    position: Any

    def advance(self, begin: Callable[[], None], take: Callable[[bytes], None]) -> bool: ...

    def close(self) -> None: ...


class Following:
    """Reads on a thread of its own, from `start` until `stop`. A fault is logged once, and it goes on."""

    def __init__(self, tail: Tail, limits: Limits, log: Callable[[str], None]) -> None:
        self._tail = tail
        self._limits = limits
        self._log = log
        self._core = Core(limits)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def segment(self) -> int | None:
        """The last one that it has read; None where it has not begun."""
        position = self._tail.position
        return None if position is None else int(position.number)

    def start(self) -> None:
        """More than once is no error."""
        if self._thread is None and not self._ended.is_set():
            self._thread = threading.Thread(target=self._follow, name="following", daemon=True)
            self._thread.start()

    def stop(self) -> tuple[Core, Any]:
        """The state, and the tail's position in the journal that it is of: None where it is of none. Blocks."""
        self._ended.set()
        self._tail.close()
        if self._thread is not None:
            self._thread.join()
        return self._core, self._tail.position

    def _follow(self) -> None:
        fault = ""
        while not self._ended.is_set():
            try:
                if not self._tail.advance(self._begin, self._take):
                    self._ended.wait(PAUSE_S)
                fault = ""
            except (Error, ports.JournalError, OSError) as error:
                if not self._ended.is_set() and str(error) != fault:
                    fault = str(error)
                    self._log(f"the journal cannot be read along; a takeover would take longer: {error}")
                self._ended.wait(FAULT_PAUSE_S)

    def _begin(self) -> None:
        self._core = Core(self._limits)

    def _take(self, body: bytes) -> None:
        self._core.replay(records.decode_segment(body))


def replay(core: Core, segments: Iterator[tuple[int, bytes]]) -> int:
    """Apply segments to a core that serves nobody; returns how many there were. Blocks."""
    count = 0
    for _, body in segments:
        core.replay(records.decode_segment(body))
        count += 1
    return count
