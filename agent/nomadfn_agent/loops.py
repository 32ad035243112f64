"""The event loops that coroutines of functions, and web functions, run on.

epoll counts in milliseconds and rounds up, so a coroutine that sleeps for 10 ms on asyncio's own loop sleeps for half a
millisecond more in the mean. `select` counts in microseconds: it waits for the epoll object itself, and epoll then
says what is there.
"""

from __future__ import annotations

import asyncio
import select
import selectors
from typing import Any

SELECT_BELOW = 1024
"""`select` knows no larger file numbers."""


def make_event_loop() -> asyncio.AbstractEventLoop:
    """The fastest one that is there, for web functions."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return new_event_loop()
    loop: Any = uvloop.new_event_loop()
    return loop  # type: ignore[no-any-return]


def new_event_loop() -> asyncio.AbstractEventLoop:
    """asyncio's own, whose sleeps end when they should. It is not set as the thread's."""
    if not hasattr(selectors, "EpollSelector"):
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(_FineSelector())


if hasattr(selectors, "EpollSelector"):

    class _FineSelector(selectors.EpollSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            handle = self.fileno()
            if timeout is not None and timeout > 0 and handle < SELECT_BELOW:
                select.select((handle,), (), (), timeout)
                timeout = 0
            return super().select(timeout)
