"""What runs one input: bytes in, user code, bytes out. The loop around it is in `loop`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

from . import context
from .code import Code
from .wire import DURABLE, EXCEPTION, FAILURE, INLINE_PAYLOAD_BYTES, OK, PICKLE, REF
from .wire.payload import (
    Failure,
    Unpicklable,
    decode_ref,
    dump_result,
    encode,
    load_arguments,
    over_limit,
    safe_str,
)

MAX_PAYLOAD_BYTES = 1 << 30


class Executor(Protocol):
    """One way to run inputs. `run` is called on the main thread, `interrupt` on any."""

    def run(self, delivery: int, call: str, index: int, data: bytes, codec: int) -> tuple[int, bytes]:
        """Run one input; returns its status and payload, and raises nothing."""
        ...

    def interrupt(self, delivery: int) -> None:
        """Raise InputCancellation in this delivery if it is what runs now."""
        ...


class SyncExecutor:
    """Runs a plain function on the main thread; a signal brings the cancellation to it."""

    def __init__(self, function: Callable[..., Any], code: Code) -> None:
        self._function = function
        self._name = code.bind.spec.name
        self._code = code
        self._blobs = code.blobs
        self._max_payload_bytes = int(os.environ.get("NOMADFN_MAX_PAYLOAD_BYTES", MAX_PAYLOAD_BYTES))
        self._set_input = context.running.set
        self._durable = False
        """Whether the result of what runs is kept for days."""
        self._running = 0
        self._interrupted = 0
        self._main_thread = threading.get_ident()
        self._install()

    def run(self, delivery: int, call: str, index: int, data: bytes, codec: int) -> tuple[int, bytes]:
        try:
            self._running = delivery
            self._set_input((call, index))
            outcome = self._run(data, codec)
            self._running = 0
        except BaseException as error:
            # Only an interrupt that came while an outcome was being packed gets here.
            self._running = 0
            outcome = self._raised(error)
        return outcome

    def interrupt(self, delivery: int) -> None:
        if self._running == delivery:
            self._interrupted = delivery
            signal.pthread_kill(self._main_thread, signal.SIGUSR1)

    def _install(self) -> None:
        signal.signal(signal.SIGUSR1, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        """Runs on the main thread, between two steps of whatever runs there now."""
        interrupted, self._interrupted = self._interrupted, 0
        if interrupted and interrupted == self._running:
            raise context.cancellation_type()("the input was cancelled")

    def _run(self, data: bytes, codec: int) -> tuple[int, bytes]:
        try:
            if codec >= REF:
                self._durable = bool(codec & DURABLE)
                if codec & REF:
                    data = self._blobs.read(decode_ref(data))
                codec &= ~(REF | DURABLE)
            else:
                self._durable = False
            args, kwargs = load_arguments(data, codec)
        except Exception as error:
            return self._undecodable(error)
        del data
        try:
            value = self._call(args, kwargs)
        except BaseException as error:
            return self._raised(error)
        del args, kwargs
        try:
            payload = dump_result(value, codec)
        except Exception as error:
            return self._unpicklable(value, codec, error)
        return (OK, payload) if len(payload) <= INLINE_PAYLOAD_BYTES else self._store(OK, payload)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._function(*args, **kwargs)

    def _store(self, status: int, payload: bytes) -> tuple[int, bytes]:
        """A large payload as a blob, its reference in its place."""
        if len(payload) > self._max_payload_bytes:
            return _failure(
                "RequestSizeError",
                f"the result of {self._name} has {len(payload):,} bytes, "
                f"{over_limit(self._max_payload_bytes)}, or store it elsewhere and return where it is",
            )
        try:
            ref = self._blobs.write(payload, self._code.bind.app, sync=self._durable)
        except OSError as error:
            return _failure("InternalError", f"the result of {self._name} could not be stored: {error}")
        return status | REF, encode(ref)

    def _raised(self, error: BaseException) -> tuple[int, bytes]:
        if isinstance(error, (context.cancellation_type(), context.InputCancellation)):
            return _failure("InputCancellation", f"the input was cancelled while {self._name} ran")
        payload = encode(self._code.describe(error))
        return (EXCEPTION, payload) if len(payload) <= INLINE_PAYLOAD_BYTES else self._store(EXCEPTION, payload)

    def _undecodable(self, error: Exception) -> tuple[int, bytes]:
        return _failure(
            "DeserializationError",
            f"the arguments of {self._name} could not be read in the container: "
            f"{type(error).__name__}: {safe_str(error)}",
        )

    def _unpicklable(self, value: Any, codec: int, error: Exception) -> tuple[int, bytes]:
        why = str(error) if isinstance(error, Unpicklable) else f"{type(error).__name__}: {safe_str(error)}"
        form = "pickled" if codec == PICKLE else "made into JSON"
        return _failure(
            "SerializationError",
            f"the result of {self._name}, of type {type(value).__name__}, could not be {form}: {why}",
        )


class AsyncExecutor(SyncExecutor):
    """Runs a coroutine function on one event loop that lives as long as the container.

    The cancellation is a cancelled task: it arrives where the coroutine awaits.
    """

    def _install(self) -> None:
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._task: asyncio.Future[Any] | None = None

    def interrupt(self, delivery: int) -> None:
        if self._running == delivery:
            self._interrupted = delivery
            self._loop.call_soon_threadsafe(self._cancel, delivery)

    def _cancel(self, delivery: int) -> None:
        if self._running == delivery and self._task is not None:
            self._task.cancel()

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._task = task = asyncio.ensure_future(self._function(*args, **kwargs), loop=self._loop)
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


def make_executor(function: Callable[..., Any], code: Code) -> Executor:
    return AsyncExecutor(function, code) if code.bind.spec.is_async else SyncExecutor(function, code)


def flush_streams() -> None:
    """What user code has printed goes out before its result does, whatever it put in place of the streams."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def _failure(error: str, message: str) -> tuple[int, bytes]:
    return FAILURE, encode(Failure(error, message))
