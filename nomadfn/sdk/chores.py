"""Small things that a client does a little later."""

from __future__ import annotations

import heapq
import itertools
import sys
import threading
import time
from collections.abc import Callable


class Chores:
    """One thread, started at the first use, that runs small things later: stragglers' frames, new tries."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, delay_s: float, chore: Callable[[], None]) -> None:
        with self._condition:
            if self._stopped:
                return
            heapq.heappush(self._heap, (time.monotonic() + delay_s, next(self._order), chore))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nomadfn-chores", daemon=True)
                self._thread.start()
            self._condition.notify()

    def stop(self) -> None:
        with self._condition:
            self._stopped = True
            self._heap.clear()
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._heap or self._heap[0][0] > time.monotonic():
                    if self._stopped:
                        return
                    self._condition.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
                chore = heapq.heappop(self._heap)[2]
            try:
                chore()
            except Exception as error:
                sys.stderr.write(f"nomadfn: {error!r}\n")
