"""What containers wrote, kept for a while and passed on to those who watch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from nomadfn_agent import wire

KEPT_LINES = 5_000
FOLLOWER_LINES = 10_000


class LogBook:
    """The last lines of each app, in memory, and the queues of those who follow one."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[wire.Log]] = {}
        self._followers: dict[str, list[asyncio.Queue[wire.Log | None]]] = {}

    def add(self, line: wire.Log) -> None:
        lines = self._lines.get(line.app)
        if lines is None:
            lines = self._lines[line.app] = deque(maxlen=KEPT_LINES)
        lines.append(line)
        for queue in self._followers.get(line.app, ()):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(line)

    def tail(self, app: str, count: int) -> list[wire.Log]:
        lines = self._lines.get(app, ())
        return list(lines)[-count:] if count else []

    def end(self, app: str) -> None:
        """The app is gone: its followers come to an end and its lines are dropped."""
        for queue in self._followers.pop(app, ()):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)
        self._lines.pop(app, None)

    async def follow(self, app: str, count: int) -> AsyncGenerator[wire.Log]:
        """The last `count` lines and each new one; a follower that is too slow misses the oldest."""
        queue: asyncio.Queue[wire.Log | None] = asyncio.Queue(FOLLOWER_LINES)
        for line in self.tail(app, min(count, FOLLOWER_LINES)):
            queue.put_nowait(line)
        followers = self._followers.setdefault(app, [])
        followers.append(queue)
        try:
            while (new := await queue.get()) is not None:
                yield new
        finally:
            if queue in followers:
                followers.remove(queue)
