"""The verbs that call a function: `.remote`, `.spawn`, `.map` and their kin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from nomadfn_agent import wire

from nomadfn.exception import InvalidError

from . import maps
from .blocking import blocking, in_event_loop, looping
from .call_options import CallSettings, check
from .calls import SingleCall, StreamCall
from .errors import Reader
from .function_call import FunctionCall
from .generators import GeneratorVerb
from .target import Target, packer

SPAWN_WINDOW = 4_096
"""Inputs of one `.spawn_map` that are handed in and not yet safe."""


class CallVerbs:
    """How a `Function` is called. Who inherits says where to, and what it is called."""

    name: str

    @property
    def is_generator(self) -> bool:
        """Whether it is a generator function; False where that is not known yet."""
        raise NotImplementedError

    @property
    def _known(self) -> bool:
        """Whether it is known what the function is."""
        return True

    async def _target(self) -> Target:
        """Whom to ask. Raises InvalidError when its app does not run, or NotFoundError."""
        raise NotImplementedError

    def call_options(self, *, deadline: float | None = None, priority: int | None = None) -> CallVerbs:
        """The same function with the same containers, whose calls have a deadline and a priority.

        `deadline`: seconds from each call on after which its inputs are not started any more; such an input raises
        DeadlineExceededError, which is also a builtin TimeoutError (for a spawn `exception.TimeoutError`). What runs
        by then goes on. `priority`: a whole number from -100 to 100, 0 unless given; higher ones go first, and of
        eight inputs one is of a lower priority, so that none starves. Raises InvalidError.

            f.call_options(deadline=3, priority=5).remote(x)
        """
        return CallsWithOptions(self, check(f"{self.name}.call_options", deadline, 0 if priority is None else priority))

    @blocking
    async def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call it in a container and wait for what it returns. What it raises is raised here, as its own type."""
        target = await self._target_of("remote")
        client = target.client
        data, is_ref = await packer(target, self.name, kwargs, durable=False, once=True).apart(args)
        call = SingleCall(client, target.function_id, wire.REMOTE, data, is_ref, target.options, target.method)
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

    @property
    def remote_gen(self) -> GeneratorVerb:
        """For a generator function: `f.remote_gen(*args)` iterates over what it yields in its container, as it comes.

        Nothing happens before it is iterated. Leaving the loop early closes the generator where it runs.
        """
        return GeneratorVerb(lambda: self._target_of("remote_gen"), self.name)

    @blocking
    async def spawn(self, *args: Any, **kwargs: Any) -> FunctionCall[Any]:
        """Hand in one input and return once it is safe; it runs whatever becomes of this program."""
        target = await self._target_of("spawn")
        data, is_ref = await packer(target, self.name, kwargs, durable=True, once=True).apart(args)
        call = SingleCall(target.client, target.function_id, wire.SPAWN, data, is_ref, target.options, target.method)
        target.client.begin(call)
        call.submit()
        await call.outcome
        return FunctionCall._of(target.client, call.id, self.name)

    @looping
    async def spawn_map(self, *iterables: Any, kwargs: Mapping[str, Any] | None = None) -> FunctionCall[Any]:
        """Hand in one input for each item and return once all are safe. Results: `.iter()`, `.get(index=)`."""
        inputs = maps.Inputs(iterables, spread=False, owner=f"{self.name}.spawn_map")
        target = await self._target_of("spawn_map")
        client = target.client
        call = StreamCall(
            client, target.function_id, self.name, wire.SPAWN_MAP, SPAWN_WINDOW, target.options, target.method
        )
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
        `max_ahead=k` (1 or more; 1,000 unless given, and at the most): so many inputs at the most have been taken
        whose results the loop has not finished with, so that a slow loop keeps few results in memory.
        """
        return maps.MapVerb(self._map_run, f"{self.name}.map", spread=False)

    @property
    def starmap(self) -> maps.MapVerb:
        """As `map`, over one iterable whose items are the arguments of one call each."""
        return maps.MapVerb(self._map_run, f"{self.name}.starmap", spread=True)

    @looping
    async def for_each(
        self,
        *iterables: Any,
        kwargs: Mapping[str, Any] | None = None,
        ignore_exceptions: bool = False,
        max_ahead: int | None = None,
    ) -> None:
        """Run it for each item, in any order, and drop what it returns. `max_ahead` is as for `map`."""
        maps.check_max_ahead(f"{self.name}.for_each", max_ahead)
        inputs = maps.Inputs(iterables, spread=False, owner=f"{self.name}.for_each")
        run = await self._map_run(
            inputs, kwargs or {}, ordered=False, return_exceptions=ignore_exceptions, max_ahead=max_ahead
        )
        try:
            while batch := await run.next_batch():
                run.release(len(batch))
        finally:
            run.close()

    # How a call is made.

    async def _target_of(self, verb: str) -> Target:
        """Whom to ask. Raises InvalidError where the verb is not for what the function is."""
        if self._known:
            self._check_verb(verb)
            return await self._target()
        target = await self._target()
        if self._known:
            self._check_verb(verb)
        return target

    def _check_verb(self, verb: str) -> None:
        if verb == "remote_gen" and not self.is_generator:
            raise InvalidError(f"{self.name} is no generator function: it yields nothing; use {self.name}.remote(...)")
        if verb != "remote_gen" and self.is_generator:
            other = "" if verb == "remote" else ", or return a list instead of yielding"
            raise InvalidError(
                f"{self.name} is a generator function and .{verb} is for functions that return once; iterate over "
                f"{self.name}.remote_gen(...){other}"
            )

    async def _map_run(
        self,
        inputs: maps.Inputs,
        kwargs: Mapping[str, Any],
        *,
        ordered: bool = True,
        return_exceptions: bool = False,
        max_ahead: int | None = None,
    ) -> maps.MapRun:
        """Start one iteration over a map."""
        target = await self._target_of("map")
        client = target.client
        window = client.connect().map_window
        if max_ahead is not None:
            window = min(window, max_ahead)
        call = StreamCall(client, target.function_id, self.name, wire.MAP, window, target.options, target.method)
        if in_event_loop() and not client.blobs.is_here():
            inputs.never_blocks = False  # what is large goes over HTTP, and the loop shall not wait for that
        items = iter(()) if inputs.is_async else inputs.iterator()
        client.begin(call)
        feeder = maps.Feeder(call, items, packer(target, self.name, kwargs, durable=False))
        observer, key = client.observer, id(call)
        client.tell(observer.map_started, key, self.name, inputs.total, target.function_id.partition("/")[2])
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


class CallsWithOptions(CallVerbs):
    """What `call_options` gives: every verb of the function, for calls that say more than their arguments."""

    def __init__(self, function: CallVerbs, settings: CallSettings) -> None:
        self._function = function
        self._settings = settings
        self.name = function.name

    @property
    def is_generator(self) -> bool:
        return self._function.is_generator

    @property
    def _known(self) -> bool:
        return self._function._known

    async def _target(self) -> Target:
        options = self._settings.begin()
        return replace(await self._function._target(), options=options)

    def call_options(self, *, deadline: float | None = None, priority: int | None = None) -> CallVerbs:
        """As that of a function; what is not given stays as it was said before."""
        before = self._settings
        return self._function.call_options(
            deadline=before.deadline_s if deadline is None else deadline,
            priority=before.priority if priority is None else priority,
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._function, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)  # type: ignore[operator]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[CallVerbs, CallSettings]]:
        return CallsWithOptions, (self._function, self._settings)

    def __repr__(self) -> str:
        said = self._settings
        return f"{self._function!r}.call_options(deadline={said.deadline_s}, priority={said.priority})"
