"""The event loop that web functions are served on."""

from __future__ import annotations

import asyncio
from typing import Any


def make_event_loop() -> asyncio.AbstractEventLoop:
    """The fastest one that is there."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    loop: Any = uvloop.new_event_loop()
    return loop  # type: ignore[no-any-return]
