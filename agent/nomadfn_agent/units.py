"""A runner's loop where several inputs run at once, or a batch does: coroutines as tasks, plain functions in threads.

A class that has methods of both kinds runs its coroutines as tasks and its other methods in threads beside them.

What takes a slot is a unit: one input, or the inputs of one batch. Units start in the order in which they came.
The main thread runs the coroutines' event loop and reads the link in it; for plain functions a thread of its own
reads, and where there is one slot only, the function runs on the main thread as anywhere else.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import queue
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

from . import context
from .batch import Batch
from .code import Code
from .execute import no_method
from .generate import run_async_generator
from .in_threads import InThreads
from .instances import Instance
from .kept import Item
from .loops import new_event_loop
from .outbox import Outbox
from .outcomes import Coder, Coders, Outcome
from .streams import Stream, TaskStream, ThreadStream
from .wire import (
    Ack,
    Bind,
    Consumed,
    Deliver,
    DeliverBatch,
    Drain,
    Feed,
    Interrupt,
    Returned,
    ToRunnerFrame,
    Withdraw,
    decode_to_runner,
)
from .wire.link import Link, LinkClosed

Unit = list[Item]


class Units:
    """What both kinds of loop share: units that wait and run, and the frames about them."""

    def __init__(
        self,
        link: Link,
        function: Callable[..., Any] | Instance,
        code: Code,
        before_send: Callable[[], None],
        rejoin: Callable[[], Link] | None,
    ) -> None:
        spec = code.bind.spec
        self._instance = function if isinstance(function, Instance) else None
        self._functions = function.methods if isinstance(function, Instance) else {"": function}
        """By method; the empty name is the function itself."""
        self._batched_method = spec.methods[0].name if spec.methods else ""
        self.slots = spec.max_inputs
        self._batched = spec.max_batch_size > 0
        self._streams: dict[int, Stream] = {}
        """Of inputs that wait or run, by delivery."""
        self._bisect = spec.on_batch_error == "bisect"
        self._code = code
        self._before_send = before_send
        self._outbox = Outbox(link, code.bind.code.digest, self.slots, self._held, rejoin)
        self._waiting: deque[Unit] = deque()
        self._running: dict[int, Unit] = {}
        """By first delivery."""
        self._cancelled: set[int] = set()
        """First deliveries of running units that were told to stop."""
        self._batch: Unit = []
        """What has come of a batch that is not whole."""
        self._draining = False
        self._in_child = False
        self._changing = threading.RLock()
        """Held while units change places."""
        self.catches_term = False
        """Whether a signal to end shall be a Terminated out of `serve`."""
        self._terminated = False
        os.register_at_fork(after_in_child=self._become_child)

    def serve(self, messages: Sequence[bytes] = ()) -> None:
        """Run units until the control service says `Drain`; ends the process when the link is lost for good."""
        raise NotImplementedError

    @property
    def link(self) -> Link:
        return self._outbox.link

    def close(self) -> None:
        self._outbox.link.close()

    def _held(self) -> list[Item]:
        with self._changing:
            return [item for unit in (*self._running.values(), *self._waiting, self._batch) for item in unit]

    def _take(self, messages: Sequence[bytes]) -> None:
        """Act on frames from the control service."""
        for message in messages:
            self._on_frame(decode_to_runner(message))
        self._fill()

    def _on_frame(self, frame: ToRunnerFrame) -> None:
        match frame:
            case Deliver(call, deliveries, indexes, payloads, codecs, method):
                each = codecs if len(codecs) == len(deliveries) else codecs * len(deliveries)
                columns = (deliveries, repeat(call), indexes, payloads, each, repeat(method))
                if self._code.bind.spec.gives_parts(method):
                    self._streams.update((one, self._new_stream(one, method)) for one in deliveries)
                self._waiting.extend([item] for item in zip(*columns, strict=False))
            case DeliverBatch(calls, deliveries, indexes, payloads, codecs, last):
                methods = repeat(self._batched_method)
                self._batch.extend(zip(deliveries, calls, indexes, payloads, codecs, methods, strict=False))
                if last:
                    self._waiting.append(self._batch)
                    self._batch = []
            case Consumed(delivery, number):
                if stream := self._streams.get(delivery):
                    stream.on_consumed(number)
            case Feed():
                if stream := self._streams.get(frame.delivery):
                    stream.on_feed(frame)
            case Withdraw(deliveries):
                self._outbox.flush()
                self._outbox.tell(Returned(self._withdraw(frozenset(deliveries))))
            case Interrupt(deliveries):
                self._stop(frozenset(deliveries))
            case Ack(number):
                self._outbox.kept.acknowledge(number)
            case Drain():
                self._draining = True
            case Bind():
                pass  # A container is bound once.

    def _withdraw(self, deliveries: frozenset[int]) -> list[int]:
        """Take those of `deliveries` that have not been started out of what waits; returns which."""
        withdrawn: list[int] = []
        with self._changing:
            for _ in range(len(self._waiting)):
                unit = self._waiting.popleft()
                kept = [item for item in unit if item[0] not in deliveries]
                withdrawn += [item[0] for item in unit if item[0] in deliveries]
                if kept:
                    self._waiting.append(kept)
        for delivery in withdrawn if self._streams else ():
            self._streams.pop(delivery, None)
        return withdrawn

    def _new_stream(self, delivery: int, method: str) -> Stream:
        raise NotImplementedError

    def _stop(self, deliveries: frozenset[int]) -> None:
        """Cancel them: what has not begun is given back, a unit of which nothing else is wanted is interrupted."""
        withdrawn = self._withdraw(deliveries)
        if withdrawn:
            self._outbox.tell(Returned(withdrawn))
        for first, unit in list(self._running.items()):
            if all(item[0] in deliveries for item in unit):
                self._cancelled.add(first)
                if stream := self._streams.get(first):
                    stream.cancel()
                self._interrupt(first)

    def _fill(self) -> None:
        """Start what waits while there are slots."""
        raise NotImplementedError

    def _interrupt(self, first: int) -> None:
        raise NotImplementedError

    def _finish(self, unit: Unit, outcomes: Sequence[Outcome], started_ns: int) -> None:
        if self._streams:
            self._streams.pop(unit[0][0], None)
        took_ns = (time.perf_counter_ns() - started_ns) // len(unit)
        for item, (status, payload) in zip(unit, outcomes, strict=True):
            self._outbox.put(item, status, payload, took_ns)

    def _send(self) -> None:
        self._before_send()
        self._outbox.flush()

    def _become_child(self) -> None:
        """User code has forked: the child keeps nothing of the container but what user code does in it."""
        self._in_child = True
        self._outbox.link.abandon()


class Tasks(Units):
    """For a coroutine function: every unit is a task on one event loop."""

    def serve(self, messages: Sequence[bytes] = ()) -> None:
        """Run units until the control service says `Drain`; ends the process when the link is lost for good."""
        self._coders = Coders(self._code)
        self._loop = loop = self._make_loop()
        asyncio.set_event_loop(loop)
        self._end = loop.create_future()
        if self.catches_term:
            loop.add_signal_handler(signal.SIGTERM, self._terminate)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._flushing = False
        loop.call_soon(self._take, messages)
        self._listen()
        loop.run_until_complete(self._end)
        self._send()
        if self._terminated:
            raise context.Terminated

    def _make_loop(self) -> asyncio.AbstractEventLoop:
        given = self._instance.loop if self._instance is not None else None
        return given or new_event_loop()

    def _terminate(self) -> None:
        self._terminated = True
        if not self._end.done():
            self._end.set_result(None)

    def _listen(self) -> None:
        link = self._outbox.link
        self._loop.add_reader(link.fileno(), self._on_readable, link)
        self._loop.call_soon(self._on_readable, link)

    def _on_readable(self, link: Link) -> None:
        if link is not self._outbox.link:
            return
        try:
            self._take(link.receive(0))
        except LinkClosed as error:
            self._loop.remove_reader(link.fileno())
            threading.Thread(target=self._find_next, args=(link, error), name="nomadfn-rejoin", daemon=True).start()

    def _find_next(self, link: Link, error: LinkClosed) -> None:
        self._outbox.join_next(link, error)
        self._loop.call_soon_threadsafe(self._listen)

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self.slots:
            with self._changing:
                unit = self._waiting.popleft()
                first = unit[0][0]
                self._running[first] = unit
            self._tasks[first] = self._loop.create_task(self._run(unit))
        if self._draining and not self._running and not self._end.done():
            self._end.set_result(None)

    def _interrupt(self, first: int) -> None:
        if (task := self._tasks.get(first)) is not None:
            task.cancel()

    async def _run(self, unit: Unit) -> None:
        first, started_ns = unit[0][0], time.perf_counter_ns()
        try:
            outcomes = await (self._run_batch(unit) if self._batched else self._run_one(unit))
        except BaseException as error:  # cancelled before it began, or while its outcome was packed
            coder = self._coders[unit[0][5]]
            outcomes = [coder.raised(self._as_cancellation(first, error), item[4]) for item in unit]
        if self._in_child:
            self._before_send()
            os._exit(0)
        self._finish(unit, outcomes, started_ns)
        del self._running[first], self._tasks[first]
        self._cancelled.discard(first)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        self._fill()

    def _flush(self) -> None:
        self._flushing = False
        self._send()

    async def _run_one(self, unit: Unit) -> list[Outcome]:
        first, call, index, data, codec, method = unit[0]
        context.running.set((call, index))
        coder, function = self._coders[method], self._functions.get(method)
        if function is None:
            return [no_method(self._code.bind.spec.program_name, method)]
        try:
            args, kwargs = coder.arguments(data, codec)
        except Exception as error:
            return [coder.undecodable(error)]
        try:
            if (stream := self._streams.get(first)) is not None:
                return [await self._generate(unit[0], stream, function, args, kwargs)]
            value = await self._start(first, method, function, args, kwargs)
        except BaseException as error:
            return [coder.raised(self._as_cancellation(first, error), codec)]
        return [coder.result(value, codec)]

    def _start(
        self, first: int, method: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Awaitable[Any]:
        result: Awaitable[Any] = function(*args, **kwargs)
        return result

    async def _generate(
        self, item: Item, stream: Stream, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Outcome:
        assert isinstance(stream, TaskStream)
        return await run_async_generator(function(*args, **kwargs), stream, self._coders[item[5]], item[4])

    def _new_stream(self, delivery: int, method: str) -> Stream:
        return TaskStream(delivery, self._outbox, self._before_send)

    async def _run_batch(self, unit: Unit) -> list[Outcome]:
        method = unit[0][5]
        function = self._functions[method]
        batch = Batch(function, self._coders[method], unit, bisect=self._bisect)
        if not batch.arguments:
            return batch.without_call()
        try:
            value = await function(**batch.arguments)
        except BaseException as error:
            return batch.raised(self._as_cancellation(unit[0][0], error))
        return batch.returned(value)

    def _as_cancellation(self, first: int, error: BaseException) -> BaseException:
        if isinstance(error, asyncio.CancelledError) and first in self._cancelled:
            return context.cancellation_type()("the input was cancelled")
        return error


class Threads(Units):
    """For a plain function: a thread a slot, the main thread where there is one slot."""

    def serve(self, messages: Sequence[bytes] = ()) -> None:
        """Run units until the control service says `Drain`; ends the process when the link is lost for good."""
        self._jobs: queue.SimpleQueue[Unit | None] = queue.SimpleQueue()
        self._user = InThreads(self._changing, self._cancelled, threading.get_ident())
        signal.signal(signal.SIGUSR1, self._user.on_signal)
        workers = [threading.Thread(target=self._work, name=f"input-{n}", daemon=True) for n in range(self.slots)]
        if self.slots == 1:
            workers = []
        for worker in workers:
            worker.start()
        threading.Thread(target=self._read, args=(messages,), name="nomadfn-reader", daemon=True).start()
        if not workers:
            self._work()
        for worker in workers:
            worker.join()
        self._send()

    def _read(self, messages: Sequence[bytes]) -> None:
        try:
            self._take(messages)
            while True:
                link = self._outbox.link
                try:
                    messages = link.receive(None)
                except LinkClosed as error:
                    if self._draining:
                        return
                    self._outbox.join_next(link, error)
                else:
                    self._take(messages)
        except BaseException:
            traceback.print_exc()
            os._exit(70)

    def _fill(self) -> None:
        with self._changing:
            while self._waiting and len(self._running) < self.slots:
                unit = self._waiting.popleft()
                self._running[unit[0][0]] = unit
                self._jobs.put(unit)
            if self._draining and not self._running:
                for _ in range(self.slots):
                    self._jobs.put(None)

    def _work(self) -> None:
        coders, run = Coders(self._code), self._run_batch if self._batched else self._run_one
        while (unit := self._jobs.get()) is not None:
            first, started_ns = unit[0][0], time.perf_counter_ns()
            coder = coders[unit[0][5]]
            try:
                outcomes = run(unit, coder)
            except context.Terminated:
                raise
            except BaseException as error:  # an interrupt that came while the outcome was packed
                outcomes = [coder.raised(error, item[4]) for item in unit]
            if self._in_child:
                self._before_send()
                os._exit(0)
            self._finish(unit, outcomes, started_ns)
            with self._changing:
                del self._running[first]
                self._cancelled.discard(first)
            self._send()
            self._fill()

    def _run_one(self, unit: Unit, coder: Coder) -> list[Outcome]:
        first, call, index, data, codec, method = unit[0]
        context.running.set((call, index))
        function = self._functions.get(method)
        if function is None:
            return [no_method(self._code.bind.spec.program_name, method)]
        try:
            args, kwargs = coder.arguments(data, codec)
        except Exception as error:
            return [coder.undecodable(error)]
        try:
            if isinstance(stream := self._streams.get(first), ThreadStream):
                return [self._user.generate(first, function, args, kwargs, stream, coder, codec)]
            value = self._user.call(first, function, args, kwargs)
        except context.Terminated:
            raise
        except BaseException as error:
            return [coder.raised(error, codec)]
        return [coder.result(value, codec)]

    def _run_batch(self, unit: Unit, coder: Coder) -> list[Outcome]:
        function = self._functions[unit[0][5]]
        batch = Batch(function, coder, unit, bisect=self._bisect)
        if not batch.arguments:
            return batch.without_call()
        try:
            value = self._user.call(unit[0][0], function, (), batch.arguments)
        except context.Terminated:
            raise
        except BaseException as error:
            return batch.raised(error)
        return batch.returned(value)

    def _interrupt(self, first: int) -> None:
        self._user.interrupt(first)

    def _new_stream(self, delivery: int, method: str) -> Stream:
        return ThreadStream(delivery, self._outbox, self._before_send)


class Both(Tasks):
    """For a class that has methods of both kinds: a plain one runs in a thread, and the loop waits for it."""

    def serve(self, messages: Sequence[bytes] = ()) -> None:
        """Run units until the control service says `Drain`; ends the process when the link is lost for good."""
        self._pool = ThreadPoolExecutor(self.slots, thread_name_prefix="input")
        self._user = InThreads(self._changing, self._cancelled)
        super().serve(messages)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(
        self, first: int, method: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Awaitable[Any]:
        assert self._instance is not None
        if self._instance.is_async.get(method):
            return super()._start(first, method, function, args, kwargs)
        inside = contextvars.copy_context()
        return self._loop.run_in_executor(self._pool, inside.run, self._user.call, first, function, args, kwargs)

    def _interrupt(self, first: int) -> None:
        # A generator in a thread that waits for room is ended by its stream, and closed before its task ends.
        if not self._user.interrupt(first) and not isinstance(self._streams.get(first), ThreadStream):
            super()._interrupt(first)

    async def _generate(
        self, item: Item, stream: Stream, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Outcome:
        if not isinstance(stream, ThreadStream):
            return await super()._generate(item, stream, function, args, kwargs)
        inside, coder = contextvars.copy_context(), Coder(self._code, item[5])  # one for this thread
        work = (item[0], function, args, kwargs, stream, coder, item[4])
        return await self._loop.run_in_executor(self._pool, inside.run, self._user.generate, *work)

    def _new_stream(self, delivery: int, method: str) -> Stream:
        assert self._instance is not None
        if self._instance.is_async.get(method):
            return super()._new_stream(delivery, method)
        return ThreadStream(delivery, self._outbox, self._before_send)


def make_loop(
    link: Link,
    function: Callable[..., Any] | Instance,
    code: Code,
    before_send: Callable[[], None],
    rejoin: Callable[[], Link] | None,
) -> Units:
    """The loop for a function, or a class, that runs several inputs at once, or batches."""
    kinds = {one.is_async for one in code.bind.spec.methods} or {code.bind.spec.is_async}
    kind = Both if len(kinds) > 1 else Tasks if True in kinds else Threads
    return kind(link, function, code, before_send, rejoin)
