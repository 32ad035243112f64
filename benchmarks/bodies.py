"""The functions that every contender runs. Nothing but the standard library: the peers' environment has no nomadfn."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import time
from collections.abc import Callable
from typing import Any

_files: dict[str, int] = {}


def noop(value: object = None) -> None:
    """No work at all: what is measured is the way there and back."""


def echo(value: bytes) -> bytes:
    return value


def sleep(duration_s: float) -> None:
    time.sleep(duration_s)


def mark(path: str) -> None:
    """Add one byte to a file, which costs a microsecond or two: its size says how many inputs are done."""
    file = _files.get(path)
    if file is None:
        file = _files[path] = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(file, b".")


def hold_gil(duration_s: int) -> tuple[float, float]:
    """Wait with the GIL held, as an extension does that forgets to give it back: no other thread of it runs.

    Returns when it began and ended, in seconds of the machine's monotonic clock. A duration of 0 returns at once.
    """
    started = time.monotonic()
    if duration_s:
        ctypes.PyDLL(None).sleep(duration_s)
    return started, time.monotonic()


def hold_slot(duration_s: int) -> tuple[float, float]:
    """The same with a sleep that gives the GIL back."""
    started = time.monotonic()
    if duration_s:
        time.sleep(duration_s)
    return started, time.monotonic()


def wait_for(path: str, _padding: bytes = b"") -> None:
    """Return once the file is there (20 minutes at most); at once for an empty path."""
    deadline = time.monotonic() + 1200
    while path and not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.005)


BATCH_S = 0.005


def batch(values: list[int]) -> list[int]:
    """A model that takes as long for many as for one: tells each how many there were."""
    time.sleep(BATCH_S)
    return [len(values)] * len(values)


async def async_sleep(duration_s: float) -> None:
    await asyncio.sleep(duration_s)


async def web_app(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[dict[str, Any]], Any]) -> None:
    """The smallest ASGI application that answers with JSON."""
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(JSON))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": JSON})


JSON = json.dumps({"message": "Hello, world!"}).encode()

BODIES: dict[str, Callable[..., Any]] = {
    body.__name__: body for body in (noop, echo, sleep, mark, hold_gil, hold_slot, wait_for)
}
