"""Sync and async, written once.

Everything in the SDK that waits is one coroutine function which awaits nothing but `Pending` and `pause`.
`run_sync` drives such a coroutine on the caller's thread, where waiting means blocking on a lock; `run_async`
drives the same coroutine inside an event loop, where waiting means a future of that loop. `blocking` makes a
method of it that has both forms: `f.remote(1)` and `await f.remote.aio(1)`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from nomadfn.exception import InvalidError

S = TypeVar("S")
P = ParamSpec("P")
T = TypeVar("T")


class Pending(Generic[T]):
    """A value, or an error, that another thread will give. Once it is given it stays."""

    __slots__ = ("_error", "_lock", "_value", "_wakers", "done", "reader")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._value: T | None = None
        self._error: BaseException | None = None
        self._wakers: list[Callable[[], None]] | None = None
        self.done = False
        self.reader: Callable[[Pending[T], float | None], None] | None = None
        """What a thread that is about to block for this does first: it may be able to fetch it."""

    def set(self, value: T) -> None:
        """Give the value; only the first `set` or `fail` counts."""
        if not self.done:
            self._value = value
            self._finish()

    def fail(self, error: BaseException) -> None:
        if not self.done:
            self._error = error
            self._finish()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the value is there; False when it is not within `timeout_s` (None waits for ever)."""
        if self.reader is not None and not self.done and timeout_s != 0:
            since = time.monotonic()
            self.reader(self, timeout_s)
            if timeout_s is not None:
                timeout_s -= time.monotonic() - since
        if not self.done and self._lock.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s)):
            self._lock.release()
        return self.done

    def result(self) -> T:
        """The value, or the error raised. Only once `done`."""
        if self._error is not None:
            raise self._error
        return cast(T, self._value)

    def within(self, timeout_s: float | None) -> Wait:
        """`await pending.within(2.0)` waits so long at the most and says whether the value is there."""
        return Wait(self, timeout_s)

    def tell(self, waker: Callable[[], None]) -> None:
        """Call `waker` once the value is there, on the thread that gives it; at once if it is there."""
        if self._wakers is None:
            self._wakers = []
        self._wakers.append(waker)
        if self.done:
            waker()

    def __await__(self) -> Generator[Wait, None, T]:
        if not self.done:
            yield Wait(self, None)
        return self.result()

    def _finish(self) -> None:
        self.done = True
        try:
            self._lock.release()
        except RuntimeError:  # two threads finished it at once: the first one's value stands
            return
        for waker in tuple(self._wakers or ()):
            waker()

    async def _in_loop(self, timeout_s: float | None) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            _resolve_in(loop, future)

        if self._wakers is None:
            self._wakers = []
        self._wakers.append(wake)
        try:
            if self.done:
                return
            if timeout_s is None:
                await future
            else:
                await asyncio.wait([future], timeout=timeout_s)
        finally:
            if wake in self._wakers:
                self._wakers.remove(wake)


_resolving: dict[Any, list[Any]] = {}
"""Event loops that have been told to resolve these futures, and have not come to it."""
_telling = threading.Lock()


def _resolve_in(loop: Any, future: Any) -> None:
    """Resolve a future of a loop from another thread. Telling a loop costs a system call: it is told once for many."""
    with _telling:
        futures = _resolving.get(loop)
        if futures is not None:
            futures.append(future)
            return
        for closed in [one for one in _resolving if one.is_closed()]:
            del _resolving[closed]
        _resolving[loop] = [future]
    try:
        loop.call_soon_threadsafe(_resolve_all, loop)
    except RuntimeError:  # the loop was closed; nobody waits any more
        _resolving.pop(loop, None)


def _resolve_all(loop: Any) -> None:
    with _telling:
        futures = _resolving.pop(loop, ())
    for future in futures:
        if not future.done():
            future.set_result(None)


def _begin_anew() -> None:
    """In a forked child: its parent's threads are not here, and whoever had the lock was one of them."""
    global _telling
    _telling = threading.Lock()
    _resolving.clear()


os.register_at_fork(after_in_child=_begin_anew)


def running_loop() -> Any:
    """The event loop that runs on this thread, if one does, without importing asyncio to find out."""
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()


def in_event_loop() -> bool:
    return running_loop() is not None


class _Driver(threading.local):
    loop: Any = None


_driver = _Driver()


def driving_loop() -> Any:
    """The event loop that drives the coroutine of ours which runs on this thread now; None where `run_sync` does."""
    return _driver.loop


class Wait:
    """What a coroutine of ours gives to its driver: wait for this, so long at the most."""

    __slots__ = ("pending", "timeout_s")

    def __init__(self, pending: Pending[Any], timeout_s: float | None) -> None:
        self.pending = pending
        self.timeout_s = timeout_s

    def __await__(self) -> Generator[Wait, None, bool]:
        if not self.pending.done and self.timeout_s != 0:
            yield self
        return self.pending.done


def pause(seconds: float) -> Wait:
    """`await pause(0.5)` waits, in both worlds."""
    return Wait(Pending(), seconds)


def run_sync(coroutine: Coroutine[Any, None, T]) -> T:
    """Run one of our coroutines to its end on this thread."""
    outer, _driver.loop = _driver.loop, None
    try:
        while True:
            wait = coroutine.send(None)
            try:
                if not isinstance(wait, Wait):
                    raise InvalidError("async iterables and awaitables need the async form of this call, `.aio`")
                wait.pending.wait(wait.timeout_s)
            except BaseException as error:  # Ctrl-C, most of all
                coroutine.throw(error)
                raise
    except StopIteration as stop:
        return cast(T, stop.value)
    finally:
        coroutine.close()
        _driver.loop = outer


async def run_async(coroutine: Coroutine[Any, None, T]) -> T:
    """Run one of our coroutines inside the caller's event loop; it may await what belongs to that loop, too."""
    loop = running_loop()
    try:
        while True:
            _driver.loop = loop
            try:
                wait = coroutine.send(None)
            finally:
                _driver.loop = None
            try:
                await (wait.pending._in_loop(wait.timeout_s) if isinstance(wait, Wait) else _Foreign(wait))
            except BaseException as error:  # cancelled
                coroutine.throw(error)
                raise
    except StopIteration as stop:
        return cast(T, stop.value)
    finally:
        coroutine.close()


class _Foreign:
    """What an awaitable of the loop itself has yielded, passed on to the loop."""

    __slots__ = ("_yielded",)

    def __init__(self, yielded: Any) -> None:
        self._yielded = yielded

    def __await__(self) -> Generator[Any, None, None]:
        yield self._yielded


class Verb(Generic[P, T]):
    """A method that blocks when called and has its async form in `.aio`."""

    __slots__ = ("_implementation", "_instance")

    def __init__(self, implementation: Callable[..., Coroutine[Any, Any, T]], instance: Any) -> None:
        self._implementation = implementation
        self._instance = instance

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return run_sync(self._implementation(self._instance, *args, **kwargs))

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return await run_async(self._implementation(self._instance, *args, **kwargs))


class blocking(Generic[S, P, T]):
    """Makes a method with a sync and an async form out of one coroutine function."""

    def __init__(self, implementation: Callable[Concatenate[S, P], Coroutine[Any, Any, T]]) -> None:
        self._implementation = implementation
        self.__doc__ = implementation.__doc__

    @overload
    def __get__(self, instance: None, owner: type[S]) -> blocking[S, P, T]: ...

    @overload
    def __get__(self, instance: S, owner: type[S]) -> Verb[P, T]: ...

    def __get__(self, instance: S | None, owner: type[S]) -> blocking[S, P, T] | Verb[P, T]:
        return self if instance is None else self._bind(instance)

    def _bind(self, instance: S) -> Verb[P, T]:
        return Verb(self._implementation, instance)


class looping(blocking[S, P, T]):
    """As `blocking`, for what takes its time over many inputs: its sync form refuses to stop a running loop."""

    def _bind(self, instance: S) -> Verb[P, T]:
        return _LoopingVerb(self._implementation, instance)


class _LoopingVerb(Verb[P, T]):
    __slots__ = ()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        if in_event_loop():
            name = self._implementation.__name__
            raise InvalidError(f".{name}(...) would stop the running event loop; use `await ….{name}.aio(...)`")
        return super().__call__(*args, **kwargs)


class Scope(Generic[T]):
    """A context manager for `with` and `async with`, out of one `enter` and one `leave` coroutine."""

    def __init__(
        self,
        enter: Callable[[], Coroutine[Any, Any, T]],
        leave: Callable[[BaseException | None], Coroutine[Any, Any, None]],
    ) -> None:
        self._enter = enter
        self._leave = leave

    def __enter__(self) -> T:
        return run_sync(self._enter())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run_sync(self._leave(error))

    async def __aenter__(self) -> T:
        return await run_async(self._enter())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await run_async(self._leave(error))


def off_loop(work: Callable[[], T]) -> Coroutine[Any, Any, T]:
    """Do blocking work; inside an event loop on a thread of its own, so that the loop goes on."""
    return _in_thread(work) if in_event_loop() else _here(work)


async def _here(work: Callable[[], T]) -> T:
    return work()


async def _in_thread(work: Callable[[], T]) -> T:
    pending: Pending[T] = Pending()

    def run() -> None:
        try:
            pending.set(work())
        except BaseException as error:
            pending.fail(error)

    threading.Thread(target=run, name="nomadfn-work", daemon=True).start()
    return await pending
