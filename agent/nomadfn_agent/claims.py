"""Which inputs a runner has begun, known to its supervisor even while user code keeps the runner from answering.

Both share a page of memory and a lock. The runner claims a delivery before it starts it, and leaves a copy of each
output that it has not sent yet; the supervisor may withdraw whatever is not claimed. Deliveries only grow, and a
runner takes them in order, so one number says it for all of them:

    claimed      the last delivery that was started        written by the runner
    withdrawn    nothing up to here may be started         written by the supervisor

Each side reads the other's number and writes its own in one step under the lock. So a delivery was either claimed
before the withdrawal, and stays, or the runner finds it withdrawn, and drops it. Only the runner's main thread
claims. The lock is a process-shared semaphore: two atomic instructions an input, no call into the kernel.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

HEAD_BYTES = 64
ROOM_BYTES = 256 * 1024
"""For outputs that were not sent yet. A runner sends what it has before there is more."""
LOCK_WAIT_S = 0.001
MAX_NS = (1 << 63) - 1
_SEMAPHORE = 1
_CLAIMED, _WITHDRAWN, _FILLED = range(3)
_RECORD = struct.Struct("=QQIB")
"""Delivery, run time in ns, bytes of the payload, status; the payload follows."""
_pack = _RECORD.pack


class Withdrawal(NamedTuple):
    """Of the deliveries up to `up_to` those beyond `after` will not run here. Outputs are columns, as in `Outputs`."""

    after: int
    up_to: int
    deliveries: list[int]
    statuses: list[int]
    payloads: list[bytes]
    run_ns: int


class Claims:
    """Made by the supervisor before it forks the runner.

    Where the system has no shared semaphores (no /dev/shm), nothing can be withdrawn; all else is the same.
    """

    def __init__(self) -> None:
        lock: Any
        try:
            # What is beneath `multiprocessing.Lock`: importing all of multiprocessing would slow each start down.
            from _multiprocessing import SemLock  # type: ignore[import-not-found]

            lock = SemLock(_SEMAPHORE, 1, 1, f"/nomadfn-{os.urandom(8).hex()}", True)
            self._shared = True
        except (ImportError, OSError):
            lock = threading.Lock()
            self._shared = False
        self._acquire = lock.acquire
        self._release = lock.release
        self._memory = memory = mmap.mmap(-1, HEAD_BYTES + ROOM_BYTES)
        self._words = memoryview(memory)[:HEAD_BYTES].cast("Q")
        memory.seek(HEAD_BYTES)
        self.claim = self._make_claim()

    def close(self) -> None:
        del self.claim
        self._words.release()
        self._memory.close()

    # The runner's side.

    def _make_claim(self) -> Callable[[int], bool]:
        """This runs for every input, so it is a closure: it finds what it needs without looking at `self`."""
        acquire, release, words, filled = self._acquire, self._release, self._words, self._memory.tell

        def claim(delivery: int) -> bool:
            """Whether this delivery may be started; if so, it is this runner's for good. Shows what was put before."""
            acquire()
            words[_FILLED] = filled()
            if mine := delivery > words[_WITHDRAWN]:
                words[_CLAIMED] = delivery
            release()
            return mine

        return claim

    def put(self, delivery: int, status: int, payload: bytes, run_ns: int) -> bool:
        """Leave an output for the supervisor, to be seen from the next claim on. False where there is no room."""
        try:
            self._memory.write(_pack(delivery, run_ns, len(payload), status) + payload)
        except ValueError:
            return False
        return True

    def clear(self) -> None:
        """Every output was sent."""
        if self._memory.tell() > HEAD_BYTES:
            self._acquire()
            self._words[_FILLED] = HEAD_BYTES
            self._release()
            self._memory.seek(HEAD_BYTES)

    def is_withdrawn(self, delivery: int) -> bool:
        """Whether a delivery that has not been claimed was withdrawn."""
        self._acquire()
        withdrawn = self._words[_CLAIMED] < delivery <= self._words[_WITHDRAWN]
        self._release()
        return withdrawn

    # The supervisor's side.

    def withdraw(self, up_to: int) -> Withdrawal | None:
        """Take back every delivery up to this one that is not claimed. None while the runner holds the lock."""
        words = self._words
        if not self._shared or not self._acquire(True, LOCK_WAIT_S):
            return None
        try:
            claimed = words[_CLAIMED]
            words[_WITHDRAWN] = up_to = max(up_to, words[_WITHDRAWN])
            outputs = self._memory[HEAD_BYTES : words[_FILLED]]
        finally:
            self._release()
        return _withdrawal(claimed, up_to, outputs)


def _withdrawal(claimed: int, up_to: int, outputs: bytes) -> Withdrawal:
    """User code can write into its own memory, so what stands there may be anything."""
    found = Withdrawal(claimed, up_to, [], [], [], 0)
    at = run_ns = 0
    while at + _RECORD.size <= len(outputs):
        delivery, took_ns, size, status = _RECORD.unpack_from(outputs, at)
        at += _RECORD.size
        if at + size > len(outputs):
            break
        found.deliveries.append(delivery)
        found.statuses.append(status)
        found.payloads.append(outputs[at : at + size])
        run_ns += took_ns
        at += size
    return found._replace(run_ns=min(run_ns, MAX_NS))
