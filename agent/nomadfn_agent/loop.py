"""A runner's loop: inputs in, outputs out, over one link.

User code runs on the main thread, and while there is none to run that thread also reads the link, so that
an input meets no change of thread. When one input runs for longer than WATCH_S, a second thread takes the
reading over: interrupts and inputs to come are then dealt with beside the running function. The
right to read is a lock; `_current` (the input that runs, or None) and `_watched` (the second thread reads)
are each written by one thread before it looks at the other's, so that one of the two always sees the other.

On a cluster a lost link is not the end: `rejoin` gives one to the next leader, which is told by `Attach` what is
held here, and given again what the one before may have lost (`kept`).

An input is claimed before it starts (`claims`). One that the supervisor has withdrawn by then is passed over, and
named in a `Returned`, in case that what the supervisor said of it was lost on its way.

The queue needs no lock: the main thread takes from its left, an interrupt empties it from its right and puts
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

from .claims import Claims
from .kept import Done, Item, Kept
from .wire import (
    REF,
    Ack,
    Attach,
    Bind,
    Deliver,
    Drain,
    Interrupt,
    Outputs,
    Returned,
    decode_to_runner,
    encode,
)
from .wire.link import Link, LinkClosed

WATCH_S = 0.005
"""A function that runs longer than this no longer keeps the loop from reading."""
WATCH_NS = int(WATCH_S * 1e9)
STARVED_S = 0.02
"""Where the watcher wakes as late as this, the input has held the GIL and may be about to end: it gets WATCH_S more."""
QUIET_ROUNDS = 20
"""After so many WATCH_S without an input the watcher sleeps until the next one."""
FLUSH_NS = 1_000_000
"""The longest that an output waits for others while more inputs run. One with a blob waits for none: who gets it twice
takes the second for one that nobody needs."""
LINK_LOST = 1
"""Exit code of a runner whose control service is gone."""

Run = Callable[[int, str, int, bytes, int, str], tuple[int, bytes]]


class Loop:
    """`run(delivery, call, index, payload, codec, method)` runs one input, `interrupt(delivery)` stops it.

    `before_send` is called on the main thread before outputs go out. `rejoin` blocks until another control service
    takes this container on, whose code has the digest `code`; it raises LinkClosed when none does.
    """

    def __init__(
        self,
        link: Link,
        claims: Claims,
        run: Run,
        interrupt: Callable[[int], None],
        before_send: Callable[[], None],
        rejoin: Callable[[], Link] | None = None,
        code: str = "",
    ) -> None:
        self._link = link
        self._claims = claims
        self._rejoin = rejoin
        self._code = code
        self._relinking = threading.Lock()
        self._kept = Kept()
        self._run = run
        self._interrupt = interrupt
        self._before_send = before_send
        self._queue: deque[Item] = deque()
        self._done: list[Done] = []
        self._passed_over: list[int] = []
        self._draining = False
        self._in_child = False
        self._current: Item | None = None
        self._taking = False
        """The main thread has an input in its hands that is neither in the queue nor the current one."""
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
        self._take(messages)
        while not self._draining:
            with self._reading:
                self._receive(None)
            while self._queue:
                self._run_queue()
                self._end_watch()

    @property
    def link(self) -> Link:
        return self._link

    def close(self) -> None:
        self._link.close()

    def _receive(self, timeout_s: float | None) -> None:
        """Act on what the link has. Only for the thread that holds the right to read."""
        link = self._link
        try:
            self._take(link.receive(timeout_s))
        except LinkClosed as error:
            self._join_next(link, error)

    def _run_queue(self) -> None:
        """Run what is queued, in order, and send the outputs: now and then on the way, all at the end."""
        queue, run, done, clock = self._queue, self._run, self._done, time.perf_counter_ns
        take, claim, put = queue.popleft, self._claims.claim, self._claims.put
        first_ns = start_ns = clock()
        while queue:
            self._taking = True
            try:
                item = take()
            except IndexError:  # An interrupt on the other thread has just emptied the queue.
                break
            delivery = item[0]
            if not claim(delivery):
                self._passed_over.append(delivery)
                continue
            self._current = item
            self._taking = False
            if self._parked:
                self._parked = False
                self._unpark.set()
            status, payload = run(*item)
            if self._in_child:
                self._before_send()
                os._exit(0)
            end_ns = clock()
            took_ns = end_ns - start_ns
            done.append((item, status, payload, took_ns))
            self._current = None
            start_ns = end_ns
            late = end_ns - first_ns >= FLUSH_NS or status >= REF
            if late or not queue or not put(delivery, status, payload, took_ns):
                self._send_done()
                if queue:  # Else `serve` reads next, without asking first.
                    self._glance()
                first_ns = start_ns = clock()
        self._taking = False
        self._send_done()

    def _send_done(self) -> None:
        """Send what is there. Only for the main thread."""
        self._before_send()
        self._flush()
        self._claims.clear()
        if self._passed_over:
            returned, self._passed_over = self._passed_over, []
            self._tell(Returned(returned))

    def _tell(self, frame: Returned) -> None:
        """Send what no next leader has to know."""
        link = self._link
        try:
            link.send(encode(frame))
        except LinkClosed as error:
            self._join_next(link, error)

    def _flush(self, stuck_ns: int = 0) -> None:
        """Send the outputs that are there. Any thread may; `stuck_ns` is how long the next input runs already."""
        with self._sending:
            batch = self._done[:]
            if not batch:
                return
            if self._rejoin is not None:
                self._kept.add(batch)
            del self._done[: len(batch)]
            link = self._link
            try:
                link.send(_outputs(batch, stuck_ns))
                return
            except LinkClosed as error:
                lost = error
        self._join_next(link, lost)

    def _join_next(self, lost: Link, error: LinkClosed) -> None:
        """Go on with the next leader, unless another thread has seen to that; ends the process where there is none."""
        if self._rejoin is None:
            self._lost(error)
        with self._relinking:
            while self._link is lost:
                try:
                    link = self._rejoin()
                except LinkClosed as last:
                    self._lost(last)
                with self._sending:
                    try:
                        self._attach(link)
                    except LinkClosed:
                        continue
                    self._link = link

    def _attach(self, link: Link) -> None:
        """Say what is held and what was finished a moment ago. While this sends, nothing else does.

        An input goes from the queue to what runs to what is done; looked at in this order, none is missed.
        """
        sent = self._kept.start_again()
        queued = [item for item in list(self._queue) if not self._claims.is_withdrawn(item[0])]
        while self._taking:
            time.sleep(0)
        running = [item] if (item := self._current) is not None else []
        held = {item[0]: item for item in (*(one[0] for one in (*sent, *self._done)), *running, *queued)}
        items = list(held.values())
        link.send(encode(Attach(self._code, 1, list(held), [item[1] for item in items], [item[2] for item in items])))
        if sent:
            link.send(_outputs(sent))

    def _glance(self) -> None:
        """Between two short inputs: see to what has arrived, unless the watcher does."""
        if self._reading.acquire(blocking=False):
            try:
                self._receive(0)
            finally:
                self._reading.release()

    def _take(self, messages: Sequence[bytes]) -> None:
        """Act on frames from the control service. Only for the thread that holds the right to read."""
        for message in messages:
            match decode_to_runner(message):
                case Deliver(call, deliveries, indexes, payloads, codecs, method):
                    each = codecs if len(codecs) == len(deliveries) else repeat(codecs[0])
                    columns = (deliveries, repeat(call), indexes, payloads, each, repeat(method))
                    self._queue.extend(zip(*columns, strict=False))
                case Interrupt(deliveries):
                    withdrawn = self._withdraw(frozenset(deliveries))
                    if withdrawn:
                        self._tell(Returned(withdrawn))
                    running = self._current
                    if running is not None and running[0] in deliveries:
                        self._interrupt(running[0])
                case Ack(number):
                    self._kept.acknowledge(number)
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
        spared: Item | None = None
        try:
            while True:
                self._parked = True
                if self._current is None:
                    self._unpark.wait()
                self._unpark.clear()
                self._parked = False
                quiet = 0
                while quiet < QUIET_ROUNDS:
                    seen, since = self._current, time.monotonic()
                    time.sleep(WATCH_S)
                    if seen is None:
                        quiet += 1
                    elif seen is not spared and time.monotonic() - since > STARVED_S:
                        spared = seen
                    elif seen is self._current:
                        self._read_beside(seen)
                        quiet = 0
        except BaseException:
            traceback.print_exc()
            os._exit(70)

    def _read_beside(self, seen: Item) -> None:
        """Read the link until the main thread wants it back."""
        with self._reading:
            self._watched = True
            if self._current is seen:
                self._flush(WATCH_NS)
                link, poll = self._link, self._poll()
                while not any(ready == self._wake_read for ready, _ in poll.poll()):
                    self._receive(0)
                    if self._link is not link:
                        link, poll = self._link, self._poll()
                os.read(self._wake_read, 1)
            self._watched = False

    def _poll(self) -> select.poll:
        """For what the link has, and for the main thread's wish to read."""
        poll = select.poll()
        poll.register(self._link.fileno(), select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        return poll

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


def _outputs(batch: Sequence[Done], stuck_ns: int = 0) -> bytes:
    if len(batch) == 1:  # After a sleep every step counts: nothing is in the processor's caches.
        ((item, status, payload, took_ns),) = batch
        return encode(Outputs([item[0]], [status], [payload], took_ns, stuck_ns))
    items, statuses, payloads, times_ns = zip(*batch, strict=True)
    return encode(Outputs([item[0] for item in items], list(statuses), list(payloads), sum(times_ns), stuck_ns))
