"""An application with ASGI's lifespan: what the application does before its first request, and after its last one."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

from ..code import LoadError

SHUTDOWN_S = 5.0


class LifespanError(LoadError):
    """The application said that it could not start; the text is its own."""


class Lifespan:
    """`state` is what the application has put there for its requests."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.state: dict[str, Any] = {}
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once it is ready; one that knows no lifespan is. Raises what it raised, or LifespanError."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        answer = await self._ask("lifespan.startup")
        if answer is None:
            error = None if self._task.cancelled() else self._task.exception()
            asked = self._events.empty()
            if error is not None and asked and isinstance(error, Exception):
                raise error
            self._task = None
        elif answer["type"] == "lifespan.startup.failed":
            raise LifespanError(answer.get("message") or "the application's startup failed; it did not say why")

    async def stop(self) -> None:
        """Tell it to end; what goes wrong then is printed."""
        if self._task is None or self._task.done():
            return
        try:
            async with asyncio.timeout(SHUTDOWN_S):
                answer = await self._ask("lifespan.shutdown")
            if answer is not None and answer["type"] == "lifespan.shutdown.failed":
                print(answer.get("message") or "the application's shutdown failed", flush=True)
            elif answer is None and self._task.exception() is not None:
                traceback.print_exception(self._task.exception())
        except TimeoutError:
            print(f"nomadfn: the application's shutdown took longer than {SHUTDOWN_S:g} s", flush=True)
        finally:
            self._task.cancel()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        await self.app(scope, self._events.get, self._answers.put)

    async def _ask(self, event: str) -> dict[str, Any] | None:
        """Its answer; None when it ended without one."""
        assert self._task is not None
        self._events.put_nowait({"type": event})
        answer = asyncio.ensure_future(self._answers.get())
        try:
            await asyncio.wait((answer, self._task), return_when=asyncio.FIRST_COMPLETED)
            return answer.result() if answer.done() else None
        finally:
            answer.cancel()
