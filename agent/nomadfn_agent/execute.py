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
from .wire.bulk import Dumper, load_large_arguments, size_of
from .wire.payload import (
    Failure,
    Unpicklable,
    decode_ref,
    dump_json,
    dumps,
    encode,
    load_arguments,
    loads,
    over_limit,
    safe_str,
    split_arguments,
)

MAX_PAYLOAD_BYTES = 1 << 30
CODEC_MASK = REF - 1
NOTHING = OK, dumps(None)
"""What a function gives that returns nothing."""


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
        self._dump = Dumper().dump
        self._call = function
        self._codec = PICKLE
        """Of the arguments of what runs."""
        self._running = 0
        self._interrupted = 0
        self._main_thread = threading.get_ident()
        self._install()

    def run(self, delivery: int, call: str, index: int, data: bytes, codec: int) -> tuple[int, bytes]:
        try:
            self._running = delivery
            self._codec = codec
            self._set_input((call, index))
            try:
                args, kwargs = self._load(data) if codec else split_arguments(loads(data))
            except Exception as error:
                outcome = self._undecodable(error)
            else:
                try:
                    value = self._call(*args, **kwargs)
                except BaseException as error:
                    outcome = self._raised(error)
                else:
                    del args, kwargs
                    outcome = NOTHING if value is None and not codec else self._pack(value)
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

    def _load(self, data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        codec = self._codec & CODEC_MASK
        if not self._codec & REF:
            return load_arguments(data, codec)
        return load_large_arguments(self._blobs, decode_ref(data), codec)

    def _pack(self, value: Any) -> tuple[int, bytes]:
        try:
            pieces = self._dump(value) if self._codec & CODEC_MASK == PICKLE else [dump_json(value)]
        except Exception as error:
            return self._unpicklable(value, error)
        if len(pieces) == 1 and len(pieces[0]) <= INLINE_PAYLOAD_BYTES:
            return OK, pieces[0]
        return self._store(OK, pieces)

    def _store(self, status: int, pieces: list[bytes]) -> tuple[int, bytes]:
        """A large payload as a blob, its reference in its place."""
        size = size_of(pieces)
        if size <= INLINE_PAYLOAD_BYTES:
            return status, b"".join(pieces)
        if size > self._max_payload_bytes:
            return _failure(
                "RequestSizeError",
                f"the result of {self._name} has {size:,} bytes, "
                f"{over_limit(self._max_payload_bytes)}, or store it elsewhere and return where it is",
            )
        try:
            ref = self._blobs.write_pieces(pieces, size, self._code.bind.app, durable=bool(self._codec & DURABLE))
        except OSError as error:
            return _failure("InternalError", f"the result of {self._name} could not be stored: {error}")
        return status | REF, encode(ref)

    def _raised(self, error: BaseException) -> tuple[int, bytes]:
        if isinstance(error, (context.cancellation_type(), context.InputCancellation)):
            return _failure("InputCancellation", f"the input was cancelled while {self._name} ran")
        return self._store(EXCEPTION, [encode(self._code.describe(error))])

    def _undecodable(self, error: Exception) -> tuple[int, bytes]:
        return _failure(
            "DeserializationError",
            f"the arguments of {self._name} could not be read in the container: "
            f"{type(error).__name__}: {safe_str(error)}",
        )

    def _unpicklable(self, value: Any, error: Exception) -> tuple[int, bytes]:
        why = str(error) if isinstance(error, Unpicklable) else f"{type(error).__name__}: {safe_str(error)}"
        form = "pickled" if self._codec & CODEC_MASK == PICKLE else "made into JSON"
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
        self._call = self._run_task

    def interrupt(self, delivery: int) -> None:
        if self._running == delivery:
            self._interrupted = delivery
            self._loop.call_soon_threadsafe(self._cancel, delivery)

    def _cancel(self, delivery: int) -> None:
        if self._running == delivery and self._task is not None:
            self._task.cancel()

    def _run_task(self, *args: Any, **kwargs: Any) -> Any:
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
