"""A runner's outputs on their way, over one link after another.

On a cluster a lost link is not the end: `rejoin` gives one to the next leader, which is told by `Attach` what is
held here, and given again what the one before may have lost (`kept`).
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from .kept import Done, Item, Kept
from .wire import MAX_FRAME_BYTES, MAX_INPUTS_PER_FRAME, Attach, Fed, Outputs, Part, Returned, encode
from .wire.link import Link, LinkClosed

LINK_LOST = 1
"""Exit code of a runner whose control service is gone."""


class Outbox:
    """Any thread may use it. `held` says which inputs are here and not done; `rejoin` blocks until a link is there."""

    def __init__(
        self, link: Link, code: str, slots: int, held: Callable[[], Iterable[Item]], rejoin: Callable[[], Link] | None
    ) -> None:
        self.link = link
        self._code = code
        self._slots = slots
        self._held = held
        self._rejoin = rejoin
        self._done: deque[Done] = deque()
        self.kept = Kept()
        self._sending = threading.Lock()
        self._relinking = threading.Lock()

    def put(self, item: Item, status: int, payload: bytes, run_ns: int) -> None:
        """It goes out with the next `flush`."""
        self._done.append((item, status, payload, run_ns))

    def flush(self) -> None:
        """Send what is there. A thread that finds another one sending leaves it to that one."""
        while self._done and self._sending.acquire(blocking=False):
            try:
                lost = self._send_some()
            finally:
                self._sending.release()
            if lost is not None:
                self.join_next(*lost)

    def give(self, part: Part, size: int) -> None:
        """Send a part of a delivery's stream, after all of its parts before; `size` is what it counts for."""
        self.kept.add_part(part, size)
        data = encode(part)
        while True:
            link = self.link
            try:
                return link.send(data)
            except LinkClosed as error:
                # The next leader may get it twice, and sees that by its number.
                self.join_next(link, error)

    def tell(self, frame: Returned | Fed | Part) -> None:
        """Send what no next leader has to know."""
        link = self.link
        try:
            link.send(encode(frame))
        except LinkClosed as error:
            self.join_next(link, error)

    def join_next(self, lost: Link, error: LinkClosed) -> None:
        """Go on with the next leader, unless another thread has seen to that; ends the process where there is none."""
        if self._rejoin is None:
            _end(error)
        with self._relinking:
            while self.link is lost:
                try:
                    link = self._rejoin()
                except LinkClosed as last:
                    _end(last)
                with self._sending:
                    try:
                        self._attach(link)
                    except LinkClosed:
                        continue
                    self.link = link

    def _send_some(self) -> tuple[Link, LinkClosed] | None:
        batch: list[Done] = []
        size_bytes = 0
        while self._done and len(batch) < MAX_INPUTS_PER_FRAME and size_bytes < MAX_FRAME_BYTES:
            batch.append(self._done.popleft())
            size_bytes += len(batch[-1][2])
        if self._rejoin is not None:
            self.kept.add(batch)
        else:
            self.kept.forget_parts(batch)
        link = self.link
        try:
            link.send(_outputs(batch))
        except LinkClosed as error:
            return link, error
        return None

    def _attach(self, link: Link) -> None:
        """Say what is held and what was finished a moment ago. While this sends, nothing else does.

        An input is held until it is put here; looked at in this order, none is missed.
        """
        sent, here = self.kept.start_again(), list(self._held())
        held = {item[0]: item for item in (*(one[0] for one in (*sent, *list(self._done))), *here)}
        items = list(held.values())
        calls, indexes = [item[1] for item in items], [item[2] for item in items]
        link.send(encode(Attach(self._code, self._slots, list(held), calls, indexes)))
        for part in self.kept.parts():
            link.send(encode(part))
        if sent:
            link.send(_outputs(sent))


def _end(error: LinkClosed) -> NoReturn:
    print(f"nomadfn: this container ends, because its control service is gone: {error}", file=sys.stderr, flush=True)
    os._exit(LINK_LOST)


def _outputs(batch: Sequence[Done]) -> bytes:
    items, statuses, payloads, times_ns = zip(*batch, strict=True)
    return encode(Outputs([item[0] for item in items], list(statuses), list(payloads), sum(times_ns)))
