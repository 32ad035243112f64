"""User code in threads: how an interruption gets to it, and generators that run there."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable, Container
from typing import Any

from . import context
from .generate import run_generator
from .outcomes import Coder, Outcome
from .streams import Flusher, ThreadStream


class InThreads:
    """The units whose user code runs in a thread now. `changing` is held while units change places; `cancelled` has the
    first deliveries of those that were told to stop.
    """

    def __init__(self, changing: threading.RLock, cancelled: Container[int], main: int = 0) -> None:
        """`main` is the id of the main thread where that one runs user code, too: a signal interrupts it."""
        self._changing = changing
        self._cancelled = cancelled
        self._main = main
        self._threads: dict[int, int] = {}
        """First delivery → the thread that runs it, while user code does."""
        self._flusher = Flusher()

    def call(self, first: int, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call user code, which an interruption of the unit `first` ends."""
        self._threads[first] = threading.get_ident()
        try:
            if first in self._cancelled:
                raise context.cancellation_type()("the input was cancelled")
            return function(*args, **kwargs)
        finally:
            with self._changing:
                self._threads.pop(first, None)

    def generate(
        self,
        first: int,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        stream: ThreadStream,
        coder: Coder,
        codec: int,
    ) -> Outcome:
        """As `call`, for a generator function: what it yields goes into `stream`. The outcome counts it."""
        generator = function(*args, **kwargs)
        self._flusher.watch(stream)
        try:
            work = (generator, stream, coder, codec, self._flusher.look, lambda on: self._shield(first, on))
            outcome: Outcome = self.call(first, run_generator, work, {})
        finally:
            self._flusher.leave(stream)
        return outcome

    def interrupt(self, first: int) -> bool:
        """Raise the cancellation in that unit; False where no user code of it runs in a thread.

        A thread meets it at its next step in Python; what it waits for in C goes on until then.
        """
        with self._changing:
            thread = self._threads.get(first)
            if thread is None:
                return False
            if thread == self._main:
                signal.pthread_kill(thread, signal.SIGUSR1)
            else:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(context.cancellation_type())
                )
            return True

    def on_signal(self, number: int, frame: Any) -> None:
        """On the main thread, between two steps of what runs there."""
        if any(first in self._cancelled for first, thread in list(self._threads.items()) if thread == self._main):
            raise context.cancellation_type()("the input was cancelled")

    def _shield(self, first: int, on: bool) -> None:
        """From here on an interruption of this unit is not raised in its thread, or is again."""
        if not on:
            self._threads[first] = threading.get_ident()
            return
        with self._changing:
            thread = self._threads.pop(first, None)
            if thread is not None and thread != self._main:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)  # one that is on its way
