"""How a runner hears from its agent that another control service leads.

The link to one that is frozen, or whose machine is gone, does not end by itself. The agent notices, because it asks
for signs of life, and finds the next leader; its runners wait for a line on a pipe, on a thread of their own.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable


class Summons:
    """The agent's side: made before the fork, one a runner."""

    def __init__(self) -> None:
        self.inbox, self._outbox = os.pipe()
        """`inbox` is the end that the runner reads."""
        os.set_blocking(self._outbox, False)

    def forked(self) -> None:
        """The runner has its end."""
        os.close(self.inbox)

    def call(self, data_url: str) -> None:
        """The leader is there. A runner that reads nothing, or is gone, needs no summons."""
        with contextlib.suppress(OSError):
            os.write(self._outbox, data_url.encode() + b"\n")

    def close(self) -> None:
        os.close(self._outbox)


def listen(inbox: int, on_leader: Callable[[str], None]) -> None:
    """Have `on_leader` called on a thread, with each address that the agent tells."""

    def read() -> None:
        with open(inbox, encoding="utf-8") as lines:
            for line in lines:
                on_leader(line.strip())

    threading.Thread(target=read, name="nomadfn-summons", daemon=True).start()
