"""A client's frames on their way to its link. What many tasks of an event loop send at once takes few system calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nomadfn_agent import wire
from nomadfn_agent.wire.link import Link, LinkClosed

from .blocking import driving_loop, running_loop

COLLECT = 64
"""Frames that are sent at once though an event loop may have more of them."""


class Outgoing:
    """`link` gives the one that is there now, if one is: what cannot be sent is lost, and sent again by its owner."""

    def __init__(self, link: Callable[[], Link | None]) -> None:
        self._link = link
        self._soon: dict[object, list[bytes]] = {}
        """By event loop, until its next turn: what follows the first frame. Only its own thread looks at its list."""

    def send(self, frame: wire.ClientFrame) -> None:
        """Send now, behind what this thread's event loop has collected."""
        if self._soon and (loop := running_loop()) in self._soon:
            self._send_collected(loop)
        self._send_all((wire.encode(frame),))

    def send_soon(self, frame: wire.ClientFrame) -> None:
        """The same, but what the tasks of one event loop send in one turn of it goes out together, behind the first."""
        loop = driving_loop()
        if loop is None:
            self.send(frame)
            return
        collected = self._soon.get(loop)
        if collected is None:
            self._soon[loop] = []
            loop.call_soon(self._end_turn, loop)
            self._send_all((wire.encode(frame),))
            return
        collected.append(wire.encode(frame))
        if len(collected) >= COLLECT:
            self._send_collected(loop)

    def _send_collected(self, loop: object) -> None:
        if frames := self._soon.get(loop):
            self._soon[loop] = []
            self._send_all(frames)

    def _end_turn(self, loop: object) -> None:
        self._send_collected(loop)
        self._soon.pop(loop, None)

    def _send_all(self, frames: Sequence[bytes]) -> None:
        link = self._link()
        if link is not None:
            try:
                link.send_all(frames)
            except LinkClosed:
                pass
