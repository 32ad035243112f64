"""What runs one input: bytes in, user code, bytes out. The loop around it is in `loop`."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from . import context
from .code import Code
from .instances import Instance
from .outcomes import Coder, Outcome, failure

if TYPE_CHECKING:
    import asyncio


class Executor(Protocol):
    """One way to run inputs. `run` is called on the main thread, `interrupt` on any."""

    def run(self, delivery: int, call: str, index: int, data: bytes, codec: int, method: str) -> Outcome:
        """Run one input; returns its status and payload, and raises nothing but Terminated."""
        ...

    def interrupt(self, delivery: int) -> None:
        """Raise InputCancellation in this delivery if it is what runs now."""
        ...


class SyncExecutor:
    """Runs a plain function on the main thread; a signal brings the cancellation to it."""

    def __init__(
        self,
        function: Callable[..., Any],
        code: Code,
        method: str = "",
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._function = function
        self._coder = Coder(code, method)
        self._given_loop = loop
        self._set_input = context.running.set
        self._call = function
        self._running = 0
        self._interrupted = 0
        self._main_thread = threading.get_ident()
        self._install()

    def run(self, delivery: int, call: str, index: int, data: bytes, codec: int, method: str = "") -> Outcome:
        coder = self._coder
        try:
            self._running = delivery
            self._set_input((call, index))
            try:
                args, kwargs = coder.arguments(data, codec)
            except Exception as error:
                outcome = coder.undecodable(error)
            else:
                try:
                    value = self._call(*args, **kwargs)
                except context.Terminated:
                    raise
                except BaseException as error:
                    outcome = coder.raised(error, codec)
                else:
                    del args, kwargs
                    outcome = coder.result(value, codec)
            self._running = 0
        except context.Terminated:
            raise
        except BaseException as error:
            # Only an interrupt that came while an outcome was being packed gets here.
            self._running = 0
            outcome = coder.raised(error, codec)
        return outcome

    def interrupt(self, delivery: int) -> None:
        if self._running == delivery:
            self._interrupted = delivery
            signal.pthread_kill(self._main_thread, signal.SIGUSR1)

    def _install(self) -> None:
        signal.signal(signal.SIGUSR1, self.on_signal)

    def on_signal(self, number: int, frame: Any) -> None:
        """Runs on the main thread, between two steps of whatever runs there now."""
        interrupted, self._interrupted = self._interrupted, 0
        if interrupted and interrupted == self._running:
            raise context.cancellation_type()("the input was cancelled")


class AsyncExecutor(SyncExecutor):
    """Runs a coroutine function on one event loop that lives as long as the container.

    The cancellation is a cancelled task: it arrives where the coroutine awaits.
    """

    def _install(self) -> None:
        import asyncio  # a plain function does without its import

        from .loops import new_event_loop

        self._start_task = asyncio.ensure_future
        self._loop = self._given_loop or new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._task: asyncio.Future[Any] | None = None
        self._call = self._run_task

    def interrupt(self, delivery: int) -> None:
        if self._running == delivery:
            self._interrupted = delivery
            self._loop.call_soon_threadsafe(self._cancel, delivery)

    def _cancel(self, delivery: int) -> None:
        if self._running == delivery and self._task is not None:
            self._task.cancel()

    def _run_task(self, *args: Any, **kwargs: Any) -> Any:
        self._task = task = self._start_task(self._function(*args, **kwargs), loop=self._loop)
        try:
            return self._loop.run_until_complete(task)
        except BaseException:
            if task.cancelled() and self._interrupted == self._running:
                raise context.cancellation_type()("the input was cancelled") from None
            if task.done() and not task.cancelled():
                task.exception()  # Read it: a SystemExit leaves the loop unread, and asyncio would complain.
            raise
        finally:
            self._task = None


class MethodsExecutor:
    """Runs the methods of one instance, each in its own way, one input at a time."""

    def __init__(self, instance: Instance, code: Code) -> None:
        self._code = code
        self._executors: dict[str, SyncExecutor] = {
            name: (AsyncExecutor if instance.is_async.get(name) else SyncExecutor)(method, code, name, instance.loop)
            for name, method in instance.methods.items()
        }
        signal.signal(signal.SIGUSR1, self._on_signal)

    def run(self, delivery: int, call: str, index: int, data: bytes, codec: int, method: str) -> Outcome:
        executor = self._executors.get(method)
        if executor is None:
            return no_method(self._code.bind.spec.program_name, method)
        return executor.run(delivery, call, index, data, codec)

    def interrupt(self, delivery: int) -> None:
        for executor in self._executors.values():
            executor.interrupt(delivery)  # Only the one that runs it cares.

    def _on_signal(self, number: int, frame: Any) -> None:
        for executor in self._executors.values():
            if not isinstance(executor, AsyncExecutor):  # a coroutine is cancelled on its loop
                executor.on_signal(number, frame)


def no_method(name: str, method: str) -> Outcome:
    """The control service knows another revision of the class than this container."""
    return failure("InvalidError", f"class {name} has no method {method!r} in this container; deploy it again")


def make_executor(function: Callable[..., Any] | Instance, code: Code) -> Executor:
    if isinstance(function, Instance):
        return MethodsExecutor(function, code)
    return AsyncExecutor(function, code) if code.bind.spec.is_async else SyncExecutor(function, code)


def flush_streams() -> None:
    """What user code has printed goes out before its result does, whatever it put in place of the streams."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
