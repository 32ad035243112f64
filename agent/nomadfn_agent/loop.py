"""A runner's loop: inputs in, outputs out, over one link.

User code runs on the main thread, and while there is none to run that thread also reads the link, so that
an input meets no change of thread. When one input runs for longer than WATCH_S, a second thread takes the
reading over: recalls, interrupts and inputs to come are then dealt with beside the running function. The
right to read is a lock; `_current` (the delivery that runs, or 0) and `_watched` (the second thread reads)
are each written by one thread before it looks at the other's, so that one of the two always sees the other.

The queue needs no lock: the main thread takes from its left, a recall empties it from its right and puts
back what stays, and each of these steps is atomic.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import NoReturn

from .wire import (
    MAX_FRAME_BYTES,
    MAX_INPUTS_PER_FRAME,
    Bind,
    Deliver,
    Drain,
    Interrupt,
    Outputs,
    Recall,
    Returned,
    decode_to_runner,
    encode,
)
from .wire.link import Link, LinkClosed

WATCH_S = 0.005
"""A function that runs longer than this no longer keeps the loop from reading."""
QUIET_ROUNDS = 20
"""After so many WATCH_S without an input the watcher sleeps until the next one."""
FLUSH_NS = 1_000_000
"""The longest that an output waits for others while more inputs run."""
LINK_LOST = 1
"""Exit code of a runner whose control service is gone."""

Run = Callable[[int, str, int, bytes, int], tuple[int, bytes]]
Item = tuple[int, str, int, bytes, int]


class Loop:
    """`run(delivery, call, index, payload, codec)` runs one input, `interrupt(delivery)` stops it.

    `before_send` is called on the main thread before outputs go out.
    """

    def __init__(self, link: Link, run: Run, interrupt: Callable[[int], None], before_send: Callable[[], None]) -> None:
        self._link = link
        self._run = run
        self._interrupt = interrupt
        self._before_send = before_send
        self._queue: deque[Item] = deque()
        self._done: list[tuple[int, int, bytes, int]] = []
        self._done_bytes = 0
        self._draining = False
        self._in_child = False
        self._current = 0
        self._reading = threading.Lock()
        self._sending = threading.Lock()
        self._watched = False
        self._parked = False
        self._unpark = threading.Event()
        self._wake_read, self._wake_write = os.pipe()
        os.register_at_fork(after_in_child=self._become_child)
        threading.Thread(target=self._watch, name="nomadfn-watcher", daemon=True).start()

    def serve(self, messages: Sequence[bytes] = ()) -> None:
        """Run inputs until the control service says `Drain`; ends the process when the link is lost.

        `messages` have been received already.
        """
        try:
            self._take(messages)
            while not self._draining:
                with self._reading:
                    self._take(self._link.receive())
                while self._queue:
                    self._run_queue()
                    self._end_watch()
        except LinkClosed as error:
            self._lost(error)

    def _run_queue(self) -> None:
        """Run what is queued, in order, and send the outputs: now and then on the way, all at the end."""
        take, run, done, clock = self._queue.popleft, self._run, self._done, time.perf_counter_ns
        first_ns = start_ns = clock()
        while self._queue:
            try:
                item = take()
            except IndexError:  # A recall on the other thread has just emptied the queue.
                break
            self._current = item[0]
            if self._parked:
                self._parked = False
                self._unpark.set()
            status, payload = run(*item)
            self._current = 0
            if self._in_child:
                self._before_send()
                os._exit(0)
            end_ns = clock()
            done.append((item[0], status, payload, end_ns - start_ns))
            self._done_bytes += len(payload)
            start_ns = end_ns
            if (
                end_ns - first_ns >= FLUSH_NS
                or len(done) >= MAX_INPUTS_PER_FRAME
                or self._done_bytes >= MAX_FRAME_BYTES
            ):
                self._before_send()
                self._flush()
                self._glance()
                first_ns = start_ns = clock()
        self._before_send()
        self._flush()

    def _flush(self) -> None:
        """Send the outputs that are there. Any thread may."""
        with self._sending:
            batch = self._done[:]
            if not batch:
                return
            del self._done[: len(batch)]
            self._done_bytes = 0
            deliveries, statuses, payloads, times_ns = zip(*batch, strict=True)
            self._link.send(encode(Outputs(list(deliveries), list(statuses), list(payloads), sum(times_ns))))

    def _glance(self) -> None:
        """Between two short inputs: see to what has arrived, unless the watcher does."""
        if self._reading.acquire(blocking=False):
            try:
                self._take(self._link.receive(0))
            finally:
                self._reading.release()

    def _take(self, messages: Sequence[bytes]) -> None:
        """Act on frames from the control service. Only for the thread that holds the right to read."""
        for message in messages:
            match decode_to_runner(message):
                case Deliver(call, deliveries, indexes, payloads, codecs):
                    each = codecs if len(codecs) == len(deliveries) else repeat(codecs[0])
                    self._queue.extend(zip(deliveries, repeat(call), indexes, payloads, each, strict=False))
                case Recall(deliveries):
                    self._flush()
                    self._link.send(encode(Returned(self._withdraw(frozenset(deliveries)))))
                case Interrupt(deliveries):
                    withdrawn = self._withdraw(frozenset(deliveries))
                    if withdrawn:
                        self._link.send(encode(Returned(withdrawn)))
                    running = self._current
                    if running in deliveries:
                        self._interrupt(running)
                case Drain():
                    self._draining = True
                case Bind():
                    pass  # A container is bound once.

    def _withdraw(self, deliveries: frozenset[int]) -> list[int]:
        """Take those of `deliveries` that have not been started out of the queue; returns which."""
        kept: list[Item] = []
        withdrawn: list[int] = []
        while self._queue:
            try:
                item = self._queue.pop()
            except IndexError:
                break
            if item[0] in deliveries:
                withdrawn.append(item[0])
            else:
                kept.append(item)
        self._queue.extend(reversed(kept))
        return withdrawn

    def _watch(self) -> None:
        """The second thread: looks whether an input runs long, and takes the reading over when it does."""
        try:
            while True:
                self._parked = True
                if not self._current:
                    self._unpark.wait()
                self._unpark.clear()
                self._parked = False
                quiet = 0
                while quiet < QUIET_ROUNDS:
                    seen = self._current
                    time.sleep(WATCH_S)
                    if not seen:
                        quiet += 1
                    elif seen == self._current:
                        self._read_beside(seen)
                        quiet = 0
        except LinkClosed as error:
            self._lost(error)
        except BaseException:
            traceback.print_exc()
            os._exit(70)

    def _read_beside(self, seen: int) -> None:
        """Read the link until the main thread wants it back."""
        with self._reading:
            self._watched = True
            poll = select.poll()
            poll.register(self._link.fileno(), select.POLLIN)
            poll.register(self._wake_read, select.POLLIN)
            if self._current == seen:
                self._flush()
                while not any(ready == self._wake_read for ready, _ in poll.poll()):
                    self._take(self._link.receive(0))
                os.read(self._wake_read, 1)
            self._watched = False

    def _end_watch(self) -> None:
        """Get the reading back from the watcher, if it has it."""
        if self._watched:
            os.write(self._wake_write, b"\0")
            with self._reading:
                pass

    def _lost(self, error: LinkClosed) -> NoReturn:
        print(
            f"nomadfn: this container ends, because its control service is gone: {error}", file=sys.stderr, flush=True
        )
        os._exit(LINK_LOST)

    def _become_child(self) -> None:
        """User code has forked: the child keeps nothing of the container but what user code does in it."""
        self._in_child = True
        self._link.abandon()
