"""`.remote_gen`: the values of a generator function, as its container yields them.

Values come in frames and wait here until they are asked for; what was asked for is *taken*, which the container is told
now and then, so that it runs no further ahead than its window. Leaving the loop cancels the generator where it runs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from functools import partial
from typing import Any

from nomadfn_agent import wire
from nomadfn_agent.wire import payload as payloads

from nomadfn.exception import InternalError, InternalFailure, InvalidError

from .blocking import Pending, in_event_loop, run_async, run_sync
from .calls import Session, SingleCall
from .client import Client
from .errors import Reader
from .target import Target, packer

TAKEN_EVERY_BYTES = wire.STREAM_WINDOW_BYTES // 4

Values = list[tuple[int, bytes]]
"""Statuses and payloads."""


class GeneratorCall(SingleCall):
    """One `.remote_gen`: what has come of it and not been handed out. `outcome` comes behind everything it gave."""

    def __init__(self, session: Session, target: Target, function: str, data: bytes, is_ref: bool) -> None:
        super().__init__(session, target.function_id, wire.REMOTE, data, is_ref, target.options, target.method)
        self.received = 0
        """How many values have come."""
        self._function = function
        self._lock = threading.Lock()
        self._arrived: Values = []
        self._taken = self._told = 0
        self._untold_bytes = 0
        self._signal: Pending[None] | None = None
        self._closed = False

    # The consumer's side

    def arrived(self) -> Values:
        """What has come since the last time."""
        with self._lock:
            arrived, self._arrived = self._arrived, []
        return arrived

    def signal(self) -> Pending[None]:
        """Something to wait for that is set when there is more; look at what there is after this call."""
        self._signal = pending = Pending[None]()
        return pending

    def handed_out(self, size: int) -> None:
        """The next value was asked for, so the one before, of `size` bytes, is done with."""
        self._taken += 1
        self._untold_bytes += size
        if self._untold_bytes >= TAKEN_EVERY_BYTES and not self.outcome.done:
            self._untold_bytes = 0
            self._told = self._taken
            self._session.send(wire.Taken(self.id, 0, self._taken))

    def close(self) -> Values:
        """Nothing more is wanted; gives what has come in vain."""
        with self._lock:
            self._closed = True
        self._session.forget(self.id)
        return self.arrived()

    # What the connection tells

    def take_parts(self, frame: wire.Parts) -> None:
        attempt = self._submit.attempt
        first = frame.number - len(frame.payloads)
        if attempt and frame.delivery != attempt:
            text = f"{self._function} was run again after it had given {self.received:,} values; call it again"
            return self.fail(InternalFailure(text))
        if first > self.received:
            text = f"values {self.received + 1} to {first} of {self._function} have not come"
            return self.fail(InternalError(text))
        twice = self.received - first
        with self._lock:
            if self._closed or twice >= len(frame.payloads):
                return None
            self._submit.attempt = frame.delivery
            self.received = frame.number
            self._arrived += zip(frame.statuses[twice:], frame.payloads[twice:], strict=True)
        return self._wake()

    def take(self, frame: wire.Results) -> None:
        super().take(frame)
        self._wake()

    def fail(self, error: BaseException) -> None:
        super().fail(error)
        self._wake()

    def taken(self) -> wire.Taken:
        """What was said last of what is taken."""
        return wire.Taken(self.id, 0, self._told)

    def _wake(self) -> None:
        signal, self._signal = self._signal, None
        if signal is not None:
            signal.set(None)


class GeneratorRun:
    """One iteration over a generator that runs in a container."""

    def __init__(self, call: GeneratorCall, client: Client, function: str) -> None:
        self.call = call
        self._client = client
        self._function = function
        self._reader = Reader(client.blobs, function, owns_blobs=True)
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._last_bytes = -1
        """Size of the value that was handed out last."""

    async def next(self) -> tuple[Any, ...]:
        """The next value alone in a tuple; an empty one at the end. What the generator raised is raised."""
        if self._last_bytes >= 0:
            self.call.handed_out(self._last_bytes)
            self._last_bytes = -1
        while not self._waiting:
            signal = self.call.signal()
            ended = self.call.outcome.done
            self._waiting.extend(self.call.arrived())
            if self._waiting:
                break
            if ended:
                return await self._end()
            await signal
        status, data = self._waiting.popleft()
        good, value = await self._reader.read_apart(status, data, wire.PICKLE)
        if not good:
            raise value
        self._last_bytes = _size_of(status, data)
        return (value,)

    async def _end(self) -> tuple[()]:
        outcome = self.call.outcome.result()
        assert outcome is not None
        good, value = await self._reader.read_apart(*outcome)
        if not good:
            raise value
        if value != self.call.received:
            raise InternalError(f"{self._function} has given {value} values, and {self.call.received} have come")
        return ()

    def close(self) -> None:
        """Cancel the generator if it has not ended, and drop what was not read."""
        call, client = self.call, self._client
        left = [*self._waiting, *call.close()]
        self._waiting.clear()
        if not call.outcome.done and not client.broken:
            client.cancel(call.id)
        if any(status & wire.REF for status, _ in left):
            client.later(0.0, partial(_drop, client, left))


def _drop(client: Client, values: Values) -> None:
    for status, data in values:
        if status & wire.REF:
            client.blobs.delete(payloads.decode_ref(data))


def _size_of(status: int, data: bytes) -> int:
    return (payloads.decode_ref(data).size if status & wire.REF else len(data)) + wire.PART_EXTRA_BYTES


class GeneratorVerb:
    """`f.remote_gen(*args)` gives an iterator, `f.remote_gen.aio(*args)` an async one. Nothing happens before it is
    iterated; leaving it early cancels the generator in its container, whose `finally` runs.
    """

    def __init__(self, target: Callable[[], Coroutine[Any, Any, Target]], function: str) -> None:
        self._target = target
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        return _iterate(partial(self._start, args, kwargs), self._function)

    def aio(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        return _iterate_async(partial(self._start, args, kwargs))

    async def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> GeneratorRun:
        target = await self._target()
        client = target.client
        data, is_ref = await packer(target, self._function, kwargs, durable=False, once=True).apart(args)
        call = GeneratorCall(client, target, self._function, data, is_ref)
        client.begin_stream(call)
        call.submit()
        return GeneratorRun(call, client, self._function)


def _iterate(start: Callable[[], Coroutine[Any, Any, GeneratorRun]], function: str) -> Generator[Any, None, None]:
    if in_event_loop():
        raise InvalidError(
            f"{function}.remote_gen is iterated inside a running event loop and would stop it; "
            f"use `async for value in {function}.remote_gen.aio(...)`"
        )
    run = run_sync(start())
    try:
        while found := run_sync(run.next()):
            yield found[0]
    finally:
        run.close()


async def _iterate_async(start: Callable[[], Coroutine[Any, Any, GeneratorRun]]) -> AsyncGenerator[Any, None]:
    run = await run_async(start())
    try:
        while found := await run_async(run.next()):
            yield found[0]
    finally:
        run.close()
