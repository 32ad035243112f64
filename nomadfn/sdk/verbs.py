"""The verbs that call a function: `.remote`, `.spawn`, `.map` and their kin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nomadfn_agent import wire

from nomadfn.exception import InvalidError

from . import maps
from .blocking import blocking, in_event_loop, looping
from .calls import SingleCall, StreamCall
from .errors import Reader
from .function_call import FunctionCall
from .target import Target, packer

SPAWN_WINDOW = 4_096
"""Inputs of one `.spawn_map` that are handed in and not yet safe."""


class CallVerbs:
    """How a `Function` is called. Who inherits says where to, and what it is called."""

    name: str

    @property
    def is_generator(self) -> bool:
        raise NotImplementedError

    async def _target(self) -> Target:
        """Whom to ask. Raises InvalidError when its app does not run, or NotFoundError."""
        raise NotImplementedError

    @blocking
    async def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call it in a container and wait for what it returns. What it raises is raised here, as its own type."""
        self._refuse_generator("remote")
        target = await self._target()
        client = target.client
        data, is_ref = await packer(target, self.name, kwargs, durable=False).apart(args)
        call = SingleCall(client, target.function_id, wire.REMOTE, data, is_ref)
        client.begin(call)
        call.submit()
        try:
            outcome = await call.outcome
        except BaseException:
            client.forget(call.id)
            if not call.outcome.done:
                client.cancel(call.id)
            raise
        assert outcome is not None
        good, value = await Reader(client.blobs, self.name, owns_blobs=True).read_apart(*outcome)
        if not good:
            raise value
        return value

    @blocking
    async def spawn(self, *args: Any, **kwargs: Any) -> FunctionCall:
        """Hand in one input and return once it is safe; it runs whatever becomes of this program."""
        self._refuse_generator("spawn")
        target = await self._target()
        data, is_ref = await packer(target, self.name, kwargs, durable=True).apart(args)
        call = SingleCall(target.client, target.function_id, wire.SPAWN, data, is_ref)
        target.client.begin(call)
        call.submit()
        await call.outcome
        return FunctionCall._of(target.client, call.id, self.name)

    @looping
    async def spawn_map(self, *iterables: Any, kwargs: Mapping[str, Any] | None = None) -> FunctionCall:
        """Hand in one input for each item and return once all are safe. Results: `.iter()`, `.get(index=)`."""
        self._refuse_generator("spawn_map")
        inputs = maps.Inputs(iterables, spread=False, owner=f"{self.name}.spawn_map")
        target = await self._target()
        client = target.client
        call = StreamCall(client, target.function_id, self.name, wire.SPAWN_MAP, SPAWN_WINDOW)
        client.begin(call)
        try:
            await maps.put_all(call, inputs, packer(target, self.name, kwargs or {}, durable=True), client.later)
            await client.request("call.close", {"call": call.id, "total": call.submitted})
        except BaseException:
            if call.submitted and not call.closed:
                client.cancel(call.id)
            raise
        finally:
            call.close()
        return FunctionCall._of(client, call.id, self.name, call.submitted)

    @property
    def map(self) -> maps.MapVerb:
        """`f.map(*iterables)`: one input for each item, several iterables zipped; results in the inputs' order.

        `kwargs` goes to every call. `order_outputs=False` gives results as they come, `return_exceptions=True`
        gives exceptions in their place instead of raising the first. Nothing happens before it is iterated.
        """
        return maps.MapVerb(self._map_run, f"{self.name}.map", spread=False)

    @property
    def starmap(self) -> maps.MapVerb:
        """As `map`, over one iterable whose items are the arguments of one call each."""
        return maps.MapVerb(self._map_run, f"{self.name}.starmap", spread=True)

    @looping
    async def for_each(
        self, *iterables: Any, kwargs: Mapping[str, Any] | None = None, ignore_exceptions: bool = False
    ) -> None:
        """Run it for each item, in any order, and drop what it returns."""
        inputs = maps.Inputs(iterables, spread=False, owner=f"{self.name}.for_each")
        run = await self._map_run(inputs, kwargs or {}, ordered=False, return_exceptions=ignore_exceptions)
        try:
            while batch := await run.next_batch():
                run.release(len(batch))
        finally:
            run.close()

    # How a call is made.

    def _refuse_generator(self, verb: str) -> None:
        if self.is_generator:
            raise InvalidError(
                f"{self.name} is a generator function and .{verb} is for functions that return once; "
                f"return a list instead of yielding"
            )

    async def _map_run(
        self,
        inputs: maps.Inputs,
        kwargs: Mapping[str, Any],
        *,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> maps.MapRun:
        """Start one iteration over a map."""
        self._refuse_generator("map")
        target = await self._target()
        client = target.client
        welcome = client.connect()
        call = StreamCall(client, target.function_id, self.name, wire.MAP, welcome.map_window)
        if in_event_loop() and not client.blobs.is_here():
            inputs.never_blocks = False  # what is large goes over HTTP, and the loop shall not wait for that
        items = iter(()) if inputs.is_async else inputs.iterator()
        client.begin(call)
        feeder = maps.Feeder(call, items, packer(target, self.name, kwargs, durable=False))
        observer, key = client.observer, id(call)
        client.tell(observer.map_started, key, self.name, inputs.total)
        task = maps.start_feeding(feeder, inputs, client.later)

        def on_close(unfinished: bool) -> None:
            if task is not None:
                task.cancel()
            client.tell(observer.map_finished, key)
            if unfinished:
                client.cancel(call.id)

        return maps.MapRun(
            call,
            Reader(client.blobs, self.name, owns_blobs=True),
            feeder,
            inline=inputs.never_blocks,
            ordered=ordered,
            return_exceptions=return_exceptions,
            on_progress=lambda submitted, done: client.tell(observer.map_advanced, key, submitted, done),
            on_close=on_close,
        )
