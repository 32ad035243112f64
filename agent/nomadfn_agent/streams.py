"""The streams of the inputs that run here: what they give out in parts, and what they are fed.

Parts are gathered into frames: one goes out when it is full, and FLUSH_S after the one before at the latest, so that
what is given slowly goes out at once. Whoever gives more than the window waits until some of it is taken. What is
not taken is kept, for a control service that takes over. User code on the event loop has a `TaskStream`, user code in a
thread a `ThreadStream`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

from . import context
from .outbox import Outbox
from .wire import (
    MAX_FRAME_BYTES,
    MAX_INPUTS_PER_FRAME,
    OK,
    PART_EXTRA_BYTES,
    REF,
    STREAM_WINDOW_BYTES,
    Fed,
    Feed,
    Part,
)
from .wire.outcome import decode_ref

FLUSH_S = 0.001
QUIET_ROUNDS = 20
"""After so many FLUSH_S without a part the flusher sleeps until the next one."""
FRAME_BYTES = MAX_FRAME_BYTES // 4
"""Enough that a frame's own cost is small, and a small share of the window: a frame is taken when its last part is, and
readers say only now and then what they have taken. The two together must leave room in the window."""
FED_EVERY_BYTES = STREAM_WINDOW_BYTES // 4


class Stream:
    """One input's. Its methods are for whoever runs user code, but for those that say otherwise."""

    def __init__(self, delivery: int, outbox: Outbox, before_send: Callable[[], None]) -> None:
        self.delivery = delivery
        self.number = 0
        """Of the last part that was given."""
        self.cancelled = False
        self._outbox = outbox
        self._before_send = before_send
        self._flushing = threading.Lock()
        self._given: deque[tuple[int, bytes, int]] = deque()
        """Status, payload and size of what is not sent."""
        self._sent_at = 0.0
        self._sent_number = 0
        self._given_bytes = self._sent_bytes = self._taken_bytes = 0
        """Of all parts so far. Each is written by one thread at a time."""
        self._feed: deque[tuple[int, bytes]] = deque()
        self._feed_ended = False
        self._told = False
        self._untold_bytes = 0

    # What it gives

    def put(self, payload: bytes, status: int = OK) -> bool:
        """Give the next part. Says whether `flush` is due now; else something has to call it within FLUSH_S."""
        size = len(payload) + PART_EXTRA_BYTES
        if status & REF:
            size += decode_ref(payload).size
        self._given.append((status, payload, size))
        self.number += 1
        self._given_bytes += size
        return (
            self._given_bytes - self._sent_bytes >= FRAME_BYTES
            or len(self._given) >= MAX_INPUTS_PER_FRAME
            or time.monotonic() - self._sent_at >= FLUSH_S
        )

    @property
    def is_full(self) -> bool:
        """Whether something has to be taken before more is given."""
        return self._given_bytes - self._taken_bytes >= STREAM_WINDOW_BYTES

    @property
    def has_unsent(self) -> bool:
        return bool(self._given)

    @property
    def is_late(self) -> bool:
        """Whether something was put and not sent for long."""
        return bool(self._given) and time.monotonic() - self._sent_at >= FLUSH_S

    def flush(self) -> None:
        """Send what was put. Any thread may."""
        with self._flushing:
            while self._given:
                statuses: list[int] = []
                payloads: list[bytes] = []
                size = 0
                while self._given and size < FRAME_BYTES and len(payloads) < MAX_INPUTS_PER_FRAME:
                    status, payload, counts = self._given.popleft()
                    statuses.append(status)
                    payloads.append(payload)
                    size += counts
                self._sent_number += len(payloads)
                self._sent_bytes += size
                self._sent_at = time.monotonic()
                self._before_send()
                self._outbox.give(Part(self.delivery, self._sent_number, statuses, payloads), size)

    def on_consumed(self, number: int) -> None:
        """The reader's side: everything up to `number` is taken."""
        self._taken_bytes += self._outbox.kept.take_parts(self.delivery, number)
        self._wake()

    # What it is fed

    def begin(self) -> None:
        """User code takes what came with the input itself: from now on it is not run again."""
        if not self._told:
            self._told = True
            self._outbox.tell(Fed(self.delivery, 0))

    def on_feed(self, frame: Feed) -> None:
        """The reader's side."""
        first = frame.number - len(frame.payloads) + 1
        self._feed.extend(enumerate(frame.payloads, first))
        self._feed_ended = self._feed_ended or frame.last
        self._wake()

    def cancel(self) -> None:
        """The reader's side: what waits for room or for a part ends with a cancellation."""
        self.cancelled = True
        self._wake()

    def _next(self) -> bytes:
        number, data = self._feed.popleft()
        self._untold_bytes += len(data) + PART_EXTRA_BYTES
        if not self._told or self._untold_bytes >= FED_EVERY_BYTES:
            self._told = True
            self._untold_bytes = 0
            self._outbox.tell(Fed(self.delivery, number))
        return data

    def _wake(self) -> None:
        raise NotImplementedError


class ThreadStream(Stream):
    """For user code in a thread. What waits raises the cancellation."""

    def __init__(self, delivery: int, outbox: Outbox, before_send: Callable[[], None]) -> None:
        super().__init__(delivery, outbox, before_send)
        self._changed = threading.Event()

    def wait_for_room(self) -> None:
        """Until a part may be given again."""
        self.flush()
        while self.is_full:
            self._wait(lambda: self.is_full)

    def receive(self) -> bytes | None:
        """The next part that the input is fed; None at the end."""
        while not self._feed and not self._feed_ended:
            self._wait(lambda: not self._feed and not self._feed_ended)
        return self._next() if self._feed else None

    def _wait(self, must: Callable[[], bool]) -> None:
        self._changed.clear()
        if must() and not self.cancelled:
            self._changed.wait()
        if self.cancelled:
            raise context.cancellation_type()("the input was cancelled")

    def _wake(self) -> None:
        self._changed.set()


class TaskStream(Stream):
    """For user code in a task of the event loop, which the reader runs in, too. What waits is cancelled as its task."""

    def __init__(self, delivery: int, outbox: Outbox, before_send: Callable[[], None]) -> None:
        super().__init__(delivery, outbox, before_send)
        self._waiters: list[asyncio.Future[None]] = []
        self._flush_soon: asyncio.Handle | None = None

    def send_soon(self, due: bool) -> None:
        """See to the `flush` after a `put`, which says whether it is `due`."""
        if self._flush_soon is None:
            loop = asyncio.get_running_loop()
            flush = self.flush_now
            self._flush_soon = loop.call_soon(flush) if due else loop.call_later(FLUSH_S, flush)

    async def give(self, payload: bytes, status: int = OK) -> None:
        """Put the next part, see to its sending, and wait while the window is full."""
        self.send_soon(self.put(payload, status))
        if self.is_full:
            await self.wait_for_room()

    async def wait_for_room(self) -> None:
        """Until a part may be given again."""
        self.flush_now()
        while self.is_full:
            await self._wait()

    async def receive(self) -> bytes | None:
        """The next part that the input is fed; None at the end."""
        while not self._feed and not self._feed_ended:
            await self._wait()
        return self._next() if self._feed else None

    def flush_now(self) -> None:
        """Send what was put."""
        if self._flush_soon is not None:
            self._flush_soon.cancel()
            self._flush_soon = None
        self.flush()

    async def _wait(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class Flusher:
    """A thread that sends what user code has put and does not send itself, because it is busy with its next part."""

    def __init__(self) -> None:
        self._streams: dict[int, Stream] = {}
        self._parked = False
        self._unpark = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, stream: Stream) -> None:
        self._streams[stream.delivery] = stream
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="nomadfn-flusher", daemon=True)
            self._thread.start()

    def leave(self, stream: Stream) -> None:
        self._streams.pop(stream.delivery, None)

    def look(self) -> None:
        """Something was put that is not sent."""
        if self._parked:
            self._parked = False
            self._unpark.set()

    def _run(self) -> None:
        try:
            while True:
                self._unpark.clear()
                self._parked = True
                if not self._flush_late():
                    self._unpark.wait()
                self._parked = False
                quiet = 0
                while quiet < QUIET_ROUNDS:
                    time.sleep(FLUSH_S)
                    quiet = 0 if self._flush_late() else quiet + 1
        except BaseException:
            traceback.print_exc()
            os._exit(70)

    def _flush_late(self) -> bool:
        """Whether anything was there to send, now or in a moment."""
        some = False
        for stream in list(self._streams.values()):
            some = some or stream.has_unsent
            if stream.is_late:
                stream.flush()
        return some
