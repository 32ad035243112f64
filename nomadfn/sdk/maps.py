"""The two ends of a map: feeding inputs from iterators, and handing out results as they come.

At most `window` inputs of one map are between "pulled from the iterator" and "handed to the consumer", so an
endless generator costs constant memory. Iterators that cannot block (lists, ranges, …) are read by the consumer
itself each time it has room; any other iterator is read by a thread of its own, so that a slow one holds up
nobody and may even wait for the map's own results; an async iterator is read by a task on the caller's loop.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sized,
)
from functools import partial
from itertools import islice
from pickle import loads
from typing import TYPE_CHECKING, Any

from nomadfn_agent.wire import MAX_INPUTS_PER_FRAME, PICKLE, REF

from nomadfn.exception import InvalidError

from .blocking import Pending, in_event_loop, off_loop, run_async, run_sync
from .calls import CHUNK, FRAME_BYTES, StreamCall
from .errors import Reader
from .packing import Packer

if TYPE_CHECKING:
    import asyncio

READY_TYPES = (list, tuple, range, str, bytes, dict, set, frozenset)
_END = object()

Later = Callable[[float, Callable[[], None]], None]
"""Runs a chore on another thread after so many seconds."""


class Feeder:
    """Pulls inputs from an iterator and puts them into a call, as far as there is room."""

    def __init__(self, call: StreamCall, items: Iterator[tuple[Any, ...]], pack: Packer) -> None:
        self.finished = False
        self.error: BaseException | None = None
        """What the iterator raised, or why an input could not be packed."""
        self._call = call
        self._items = items
        self._pack = pack

    def pull(self) -> None:
        """Put inputs until there is no more room, or no more input, and send them."""
        call, pack = self._call, self._pack
        if self.finished or call.closed:
            return
        packed: list[bytes] = []
        refs: list[int] = []
        size = 0
        try:
            for item in islice(self._items, call.room()):
                data, is_ref = pack(item)
                if is_ref:  # What was packed before does not wait for what may take its time to store.
                    refs.append(len(packed))
                    size = FRAME_BYTES
                packed.append(data)
                size += len(data)
                if len(packed) >= MAX_INPUTS_PER_FRAME or size >= FRAME_BYTES:
                    call.put_many(packed, refs)
                    if refs:
                        call.flush()
                    packed, refs, size = [], [], 0
            self.finished = call.room() > len(packed)
        except Exception as error:
            self.error = error
            self.finished = True
        if packed:
            call.put_many(packed, refs)
        call.flush()

    def pull_in_thread(self, later: Later) -> None:
        """Start a thread that pulls all inputs; what it has put is sent while its iterator keeps it waiting."""
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._pull_all, later), name="nomadfn-map", daemon=True).start()

    async def pull_async(self, items: AsyncIterator[tuple[Any, ...]], later: Later) -> None:
        """Pull all inputs from an async iterator, as a task of the caller's loop."""
        call = self._call
        try:
            async for item in items:
                if call.put(*await run_async(self._pack.apart(item))):
                    later(0.0, call.flush)
                if call.room() <= 0:
                    await run_async(_until_room(call))
                if call.closed:
                    break
        except Exception as error:
            self.error = error
        self._finish()

    def _pull_all(self, later: Later) -> None:
        call = self._call
        try:
            while not call.closed:
                if call.room() <= 0:
                    run_sync(_until_room(call))
                item = next(self._items, _END)
                if item is _END or call.closed:
                    break
                if call.put(*self._pack(item)):  # type: ignore[arg-type]
                    later(0.0, call.flush)
        except BaseException as error:
            self.error = error
        self._items = iter(())
        self._finish()

    def _finish(self) -> None:
        self._call.flush()
        self.finished = True
        self._call.wake()


async def put_all(call: StreamCall, inputs: Inputs, pack: Packer, later: Later) -> None:
    """Hand in every input, on the caller's own thread, and wait until all of them are safe."""

    async def put(item: tuple[Any, ...]) -> None:
        if call.room() <= 0:
            await _until_room(call)
        if call.error is not None:
            raise call.error
        if call.put(*await pack.apart(item)):
            later(0.0, call.flush)

    if inputs.is_async:
        async for item in inputs.async_iterator():
            await put(item)
    else:
        for item in inputs.iterator():
            await put(item)
    call.flush()
    while call.done < call.submitted:
        signal = call.signal()
        if call.error is not None:
            raise call.error
        if call.done < call.submitted:
            await signal


async def _until_room(call: StreamCall) -> None:
    """Wait until something may be put; what was put before goes out first."""
    if call.room() > 0:
        return
    call.flush()
    while not call.closed:
        signal = call.room_signal()
        if call.wants_more():
            return
        await signal


class MapRun:
    """One iteration over one map. `next_batch` gives results; `close` cancels whatever is left."""

    def __init__(
        self,
        call: StreamCall,
        reader: Reader,
        feeder: Feeder,
        *,
        inline: bool,
        ordered: bool,
        return_exceptions: bool,
        on_progress: Callable[[int, int], None],
        on_close: Callable[[bool], None],
    ) -> None:
        self.chunk = max(1, min(CHUNK, call.window // 3))
        """Results that are handed out before their room is given back."""
        self._call = call
        self._read = reader.read
        self._feeder = feeder
        self._inline = inline
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._on_progress = on_progress
        self._on_close = on_close
        self._waiting: dict[int, tuple[bool, Any]] = {}
        self._next = 0
        self._error: BaseException | None = None
        self._given = 0
        self._closed = False

    async def next_batch(self) -> list[Any]:
        """Results to hand out, at least one; empty at the end. Raises what an input raised, in its place."""
        call = self._call
        while True:
            if self._error is not None:
                raise self._error
            if self._inline and call.wants_more():
                self._feeder.pull()
            signal: Pending[None] = call.signal()
            finished = self._feeder.finished  # before looking for results: the last ones may come in between
            batch = await off_loop(self._collect) if self._is_slow() else self._collect()
            self._on_progress(call.submitted, call.done)
            if batch:
                return batch
            if self._error is not None:
                continue
            if call.error is not None:
                raise call.error
            if finished and self._given == call.submitted:
                if self._feeder.error is not None:
                    raise self._feeder.error
                return []
            await signal

    def release(self, count: int) -> None:
        """So many results of the batch were handed out."""
        self._call.release(count)
        if self._inline and self._call.wants_more():
            self._feeder.pull()

    def close(self) -> None:
        """End the map; cancels what has no result yet. More than once is no error."""
        if self._closed:
            return
        self._closed = True
        unfinished = not self._feeder.finished or self._call.done < self._call.submitted
        self._on_progress(self._call.submitted, self._call.done)
        self._call.close()
        self._on_close(unfinished and self._call.submitted > 0)

    def _is_slow(self) -> bool:
        """Whether an event loop runs here, and something that has arrived must be fetched from the blob store."""
        return in_event_loop() and any(max(statuses) >= REF for _, statuses, _, _ in tuple(self._call.arrived))

    def _collect(self) -> list[Any]:
        """Unpickle what has arrived; the values that are next in turn, up to the first error."""
        arrived, read, ordered = self._call.arrived, self._read, self._ordered
        batch: list[Any] = []
        while arrived and self._error is None:
            indexes, statuses, results, codec = arrived.popleft()
            values = [] if codec != PICKLE or any(statuses) else _unpickled(results)
            first, count = self._next, len(values)
            if not ordered or indexes[:count] == list(range(first, first + count)):
                batch += values
                self._next += count
            else:
                self._waiting |= zip(indexes, ((True, value) for value in values), strict=False)
            for index, status, data in zip(indexes[count:], statuses[count:], results[count:], strict=True):
                outcome = read(status, data, codec)
                if ordered and index != self._next:
                    self._waiting[index] = outcome
                    continue
                self._next += 1
                if outcome[0] and self._error is None:
                    batch.append(outcome[1])
                else:
                    self._give(outcome[1], batch)
            if self._waiting:
                self._give_waiting(batch)
        self._given += len(batch)
        return batch

    def _give_waiting(self, batch: list[Any]) -> None:
        """Those whose turn has come, of the results that came before their turn."""
        while (outcome := self._waiting.pop(self._next, None)) is not None:
            self._next += 1
            if outcome[0] and self._error is None:
                batch.append(outcome[1])
            else:
                self._give(outcome[1], batch)

    def _give(self, value: Any, batch: list[Any]) -> None:
        """An exception in its place, or the end of the map; what comes behind that end is dropped."""
        if self._error is not None:
            return
        if self._return_exceptions:
            batch.append(value)
        else:
            self._error = value


def _unpickled(results: list[bytes]) -> list[Any]:
    """Their values, up to the first that cannot be unpickled."""
    values: list[Any] = []
    with contextlib.suppress(Exception):
        values.extend(map(loads, results))
    return values


class MapVerb:
    """`f.map` and `f.starmap`: a plain generator when called, an async one by `.aio`."""

    __slots__ = ("_name", "_spread", "_start")

    def __init__(self, start: Callable[..., Coroutine[Any, Any, MapRun]], name: str, *, spread: bool) -> None:
        self._start = start
        self._name = name
        self._spread = spread

    def __call__(
        self,
        *iterables: Iterable[Any],
        kwargs: Mapping[str, Any] | None = None,
        order_outputs: bool = True,
        return_exceptions: bool = False,
        max_ahead: int | None = None,
        **unknown: Any,
    ) -> Generator[Any, None, None]:
        start = self._prepare(iterables, kwargs, order_outputs, return_exceptions, max_ahead, unknown)
        return iterate(start, self._name)

    def aio(
        self,
        *iterables: Iterable[Any] | AsyncIterable[Any],
        kwargs: Mapping[str, Any] | None = None,
        order_outputs: bool = True,
        return_exceptions: bool = False,
        max_ahead: int | None = None,
        **unknown: Any,
    ) -> AsyncGenerator[Any, None]:
        return iterate_async(self._prepare(iterables, kwargs, order_outputs, return_exceptions, max_ahead, unknown))

    def _prepare(
        self,
        iterables: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        ordered: bool,
        return_exceptions: bool,
        max_ahead: int | None,
        unknown: Mapping[str, Any],
    ) -> Callable[[], Coroutine[Any, Any, MapRun]]:
        for key in unknown.keys() - {"wrap_returned_exceptions"}:
            raise InvalidError(
                f"{self._name} has no option {key!r}; it takes kwargs, order_outputs, return_exceptions and max_ahead, "
                f"and arguments for every call go into kwargs={{...}}"
            )
        check_max_ahead(self._name, max_ahead)
        if self._spread and len(iterables) != 1:
            raise InvalidError(f"{self._name} takes one iterable of argument tuples, not {len(iterables)}")
        inputs = Inputs(iterables, spread=self._spread, owner=self._name)
        return partial(
            self._start,
            inputs,
            kwargs or {},
            ordered=ordered,
            return_exceptions=return_exceptions,
            max_ahead=max_ahead,
        )


def check_max_ahead(owner: str, max_ahead: object) -> None:
    """Raises InvalidError unless it is None or a whole number, 1 or more."""
    good = isinstance(max_ahead, int) and not isinstance(max_ahead, bool) and max_ahead >= 1
    if max_ahead is not None and not good:
        raise InvalidError(
            f"{owner}: max_ahead={max_ahead!r} must be a whole number, 1 or more: how many inputs may be taken "
            f"before their results are read"
        )


def iterate(start: Callable[[], Coroutine[Any, Any, MapRun]], verb: str) -> Generator[Any, None, None]:
    """The results of a map, for a plain `for`. Nothing happens before the first one is asked for."""
    if in_event_loop():
        raise InvalidError(
            f"{verb} is iterated inside a running event loop and would stop it; "
            f"use `async for result in {verb}.aio(...)`"
        )
    run = run_sync(start())
    try:
        while batch := run_sync(run.next_batch()):
            for first in range(0, len(batch), run.chunk):
                chunk = batch[first : first + run.chunk]
                yield from chunk
                run.release(len(chunk))
    finally:
        run.close()


async def iterate_async(start: Callable[[], Coroutine[Any, Any, MapRun]]) -> AsyncGenerator[Any, None]:
    """The results of a map, for an `async for`."""
    run = await run_async(start())
    try:
        while batch := await run_async(run.next_batch()):
            for first in range(0, len(batch), run.chunk):
                chunk = batch[first : first + run.chunk]
                for value in chunk:
                    yield value
                run.release(len(chunk))
    finally:
        run.close()


class Inputs:
    """The iterables of one map: how many inputs they give, and how they are read."""

    def __init__(self, iterables: tuple[Any, ...], *, spread: bool, owner: str) -> None:
        """With `spread` there is one iterable, and each of its items is the arguments of one input."""
        if not iterables:
            raise InvalidError(f"{owner} needs at least one iterable of inputs")
        self.is_async = any(isinstance(one, AsyncIterable) for one in iterables)
        for one in iterables:
            if not isinstance(one, (AsyncIterable, Iterable)) and not hasattr(one, "__getitem__"):
                raise InvalidError(f"{owner} needs iterables; {type(one).__name__} is none, wrap it in a list")
        self.never_blocks = all(type(one) in READY_TYPES for one in iterables)
        self.total = min(map(len, iterables)) if all(isinstance(one, Sized) for one in iterables) else None
        self._iterables = iterables
        self._spread = spread

    def iterator(self) -> Iterator[tuple[Any, ...]]:
        if self._spread:
            return map(tuple, self._iterables[0])
        return zip(*self._iterables, strict=False)

    async def async_iterator(self) -> AsyncIterator[tuple[Any, ...]]:
        """The inputs where at least one iterable is async; the sync ones are read on the loop."""
        sources = [_as_async(one) for one in self._iterables]
        while True:
            item = []
            for source in sources:
                try:
                    item.append(await source.__anext__())
                except StopAsyncIteration:
                    return
            yield tuple(item[0]) if self._spread else tuple(item)


async def _steps(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


def _as_async(items: Any) -> AsyncIterator[Any]:
    return items.__aiter__() if isinstance(items, AsyncIterable) else _steps(items)


def start_feeding(feeder: Feeder, inputs: Inputs, later: Later) -> asyncio.Task[None] | None:
    """Begin to read inputs where the consumer does not do it itself."""
    if inputs.is_async:
        if not in_event_loop():
            raise InvalidError("an async iterable needs the async form of this call: `async for ... in ….map.aio(...)`")
        import asyncio

        return asyncio.get_running_loop().create_task(feeder.pull_async(inputs.async_iterator(), later))
    if not inputs.never_blocks:
        feeder.pull_in_thread(later)
    return None
