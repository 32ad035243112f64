"""`Function`: one function of an app, and the verbs that call it."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar

import msgspec
from nomadfn_agent import wire
from nomadfn_agent.wire import bulk
from nomadfn_agent.wire import payload as payloads

from nomadfn.exception import DeprecationError, InvalidError, SerializationError, UnsupportedError

from . import maps, options, service
from .blocking import blocking, in_event_loop, looping
from .calls import SingleCall, StreamCall, store
from .client import Client, default_client
from .errors import Reader
from .function_call import FunctionCall

if TYPE_CHECKING:
    from .app import App
    from .secret import Secret

P = ParamSpec("P")
R = TypeVar("R")

SPAWN_WINDOW = 4_096
"""Inputs of one `.spawn_map` that are handed in and not yet safe."""
_MODAL_ONLY = {
    "remote_gen": "return a list, or call the function once for each part",
    "with_options": "give the settings to @app.function",
    "with_concurrency": "give the settings to @app.function",
    "with_batching": "call the function with lists",
    "autoscaler": "use fn.update_autoscaler(...)",
    "get_web_url": "web functions are planned for a later release; call the function over HTTP with JSON",
    "web_url": "web functions are planned for a later release; call the function over HTTP with JSON",
    "experimental_spawn_map": "use fn.spawn_map(...)",
    "shell": "run a shell on the machine itself",
}


@dataclass(frozen=True)
class FunctionStats:
    """A function's figures at one moment."""

    backlog: int
    """Inputs that wait."""
    num_total_runners: int
    """Containers that are ready."""
    num_running_inputs: int = 0
    input_headroom: int = 0
    """Inputs that the containers could take at once."""


@dataclass(frozen=True)
class AutoscalerSettings:
    """How many containers a function may have; times in seconds."""

    min_containers: int
    max_containers: int | None
    buffer_containers: int
    scaledown_window: float


@dataclass(frozen=True)
class _Target:
    """A function as one control service knows it."""

    client: Client
    function_id: str
    knows_main: bool
    """Whether its containers know this program's `__main__`."""


class Function(Generic[P, R]):
    """A function that runs in containers. Made by `@app.function()` or `Function.from_name`."""

    name: str
    raw_f: Callable[P, R]
    """What the user wrote."""
    app_name: str
    serialized: bool
    """Whether it travels by value, as its settings say."""
    _app: App | None
    _spec: wire.FunctionSpec | None
    _secrets: tuple[Secret, ...]
    _found: _Target | None

    def __init__(self) -> None:
        raise InvalidError("a Function is made by @app.function() or Function.from_name(app, name)")

    @classmethod
    def _make(cls, app: App | None, app_name: str, name: str) -> Function[P, R]:
        self = cls.__new__(cls)
        self._app = app
        self.app_name = app_name
        self.name = name
        self.serialized = False
        self._spec = None
        self._secrets = ()
        self._found = None
        return self

    @classmethod
    def _define(cls, app: App, function: Callable[P, R], settings: dict[str, Any]) -> Function[P, R]:
        """What `@app.function(...)` does."""
        owner = getattr(function, "__name__", repr(function))
        if isinstance(function, Function):
            raise InvalidError(f"function {function.name}: it has @app.function() twice; leave one out")
        if inspect.isclass(function):
            raise InvalidError(f"class {owner}: @app.function() is for functions; classes are not supported yet")
        if not inspect.isfunction(function):
            raise InvalidError(f"@app.function() needs a function that is defined with `def`, not {function!r}")
        qualname = function.__qualname__.rpartition("<locals>.")[2]
        if "." in qualname:
            raise InvalidError(f"function {qualname}: methods are not supported; define it outside of its class")
        self = cls._make(app, app.name, options.check_name(settings.get("name") or owner, "function name"))
        spec = options.make_spec(settings, self.name)
        self._secrets = options.secrets(settings.get("secrets"), self.name)
        self.serialized = bool(settings.get("serialized"))
        self.raw_f = function
        self._spec = msgspec.structs.replace(
            spec,
            is_async=inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function),
            is_generator=inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function),
        )
        functools.update_wrapper(self, function, updated=())
        return self

    @classmethod
    def _refer(cls, app: App, name: str) -> Function[Any, Any]:
        """A function of `app` that this process knows only by its name."""
        return cls._make(app, app.name, name)

    @classmethod
    def from_name(cls, app_name: str, name: str, **settings: Any) -> Function[Any, Any]:
        """A function of a deployed app. It is looked up at the first use; an unknown one raises NotFoundError then."""
        for key, value in settings.items():
            if value is not None:
                raise UnsupportedError(f"Function.from_name({key}=...) is not supported by nomadfn; leave it out")
        return cls._make(None, app_name, name)

    def _complete(self, module: str, qualname: str, serialized_ref: str) -> wire.FunctionSpec:
        assert self._spec is not None
        secrets = [one._spec() for one in self._secrets]
        return msgspec.structs.replace(
            self._spec, module=module, qualname=qualname, serialized_ref=serialized_ref, secrets=secrets
        )

    # What a function is.

    @property
    def app(self) -> App | None:
        """The app that it was defined in; None for one from `from_name`."""
        return self._app

    @property
    def spec(self) -> wire.FunctionSpec | None:
        """Its settings; None where only its name is known."""
        return self._spec

    @property
    def is_generator(self) -> bool:
        return self._spec is not None and self._spec.is_generator

    def get_raw_f(self) -> Callable[P, R]:
        """What the user wrote."""
        return self.raw_f

    def __repr__(self) -> str:
        return f"<Function {self.app_name}.{self.name}>"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        if self._app is None:
            return Function.from_name, (self.app_name, self.name)
        from .app import find_function

        return find_function, (self.app_name, self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise InvalidError(
            f"{self.name}(...) does not say where to run: use {self.name}.remote(...) for a container "
            f"or {self.name}.local(...) for this process"
        )

    def __getattr__(self, name: str) -> Any:
        if name == "raw_f":
            raise InvalidError(f"{self!r} is known only by its name here; its code is not part of this program")
        if name in _MODAL_ONLY:
            raise UnsupportedError(f"Function.{name} is not supported by nomadfn; {_MODAL_ONLY[name]}")
        if name == "keep_warm":
            raise DeprecationError("Function.keep_warm is an old name; use update_autoscaler(min_containers=...)")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # Calling it.

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it in this process, like any function."""
        return self.raw_f(*args, **kwargs)

    @blocking
    async def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call it in a container and wait for what it returns. What it raises is raised here, as its own type."""
        self._refuse_generator("remote")
        target = await self._target()
        client = target.client
        data, is_ref = await self._packer(target, kwargs, durable=False).apart(args)
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
        data, is_ref = await self._packer(target, kwargs, durable=True).apart(args)
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
            await maps.put_all(call, inputs, self._packer(target, kwargs or {}, durable=True), client.later)
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

    # Its containers.

    @blocking
    async def get_current_stats(self) -> FunctionStats:
        """Its backlog and containers now."""
        target = await self._target()
        body = await target.client.request("function.stats", {"function_id": target.function_id})
        return FunctionStats(**body)

    @blocking
    async def update_autoscaler(
        self,
        *,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: float | None = None,
    ) -> AutoscalerSettings:
        """Change how many containers it has, until the next deploy; what is left out stays.

        Returns the settings that are now in force.
        """
        given = options.check_autoscaler(self.name, min_containers, max_containers, buffer_containers, scaledown_window)
        target = await self._target()
        body = await target.client.request("function.scale", {"function_id": target.function_id, **given})
        return AutoscalerSettings(
            body["min_containers"], body["max_containers"], body["buffer_containers"], body["scaledown_window_s"]
        )

    @blocking
    async def hydrate(self) -> Function[P, R]:
        """Look it up now instead of at the first use. Raises NotFoundError."""
        await self._target()
        return self

    # How a call is made.

    async def _target(self) -> _Target:
        """Whom to ask for this function. Raises InvalidError when its app does not run, or NotFoundError."""
        if self._app is None:
            return await self._look_up()
        running = self._app._running
        if running is not None:
            function_id = running.functions.get(self.name)
            if function_id is None:
                raise InvalidError(
                    f"function {self.name} was defined after its app was started; define it before `with app.run():`"
                )
            return _Target(running.client, function_id, running.ships_main)
        if service.in_container():
            return _Target(default_client(), f"{os.environ.get('NOMADFN_APP_ID', '')}/{self.name}", True)
        raise InvalidError(
            f"{self._app!r} does not run, so {self.name} has no containers: call it inside `with app.run():`, start "
            f"the program with `nomadfn run`, or deploy it and use Function.from_name({self.app_name!r}, {self.name!r})"
        )

    async def _look_up(self) -> _Target:
        client = default_client()
        if self._found is None or self._found.client is not client:
            body = {"app": self.app_name, "name": self.name}
            found = await client.request("function.lookup", body)
            self._spec = msgspec.convert(found["spec"], wire.FunctionSpec) if found.get("spec") else None
            self._found = _Target(client, found["function_id"], False)
        return self._found

    def _refuse_generator(self, verb: str) -> None:
        if self.is_generator:
            raise InvalidError(
                f"{self.name} is a generator function and .{verb} is for functions that return once; "
                f"return a list instead of yielding"
            )

    def _packer(self, target: _Target, kwargs: Mapping[str, Any], *, durable: bool) -> maps.Packer:
        """Makes an input's payload out of its arguments: the bytes that travel, and whether they are a reference."""
        dump, by_name, named = bulk.Dumper().dump, target.knows_main, dict(kwargs)

        def pack(args: tuple[Any, ...]) -> list[bytes]:
            try:
                pieces = dump((args, named) if named else (args,))
                if not by_name and bulk.names_main(pieces):
                    pieces = [payloads.cloud_dumps((args, named))]
            except payloads.Unpicklable as error:
                raise SerializationError(_unpicklable_text(self.name, args, kwargs, error)) from None
            return pieces

        def keep(pieces: list[bytes], size: int) -> bytes:
            client = target.client
            maximum = client.connect().max_payload_bytes
            return store(pieces, size, client.blobs, maximum, target.function_id, self.name, durable=durable)

        return maps.Packer(pack, keep)

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
        feeder = maps.Feeder(call, items, self._packer(target, kwargs, durable=False))
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


def _unpicklable_text(
    function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], error: payloads.Unpicklable
) -> str:
    """Which argument cannot be pickled."""
    named = [(f"argument {place}", value) for place, value in enumerate(args, 1)]
    named += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for name, value in named:
        try:
            payloads.dumps(value)
        except payloads.Unpicklable as why:
            return (
                f"{name} of {function}, of type {type(value).__name__}, cannot be sent to a container: {why}; "
                f"pass plain data instead, and make such things inside the function"
            )
    return f"the arguments of {function} cannot be sent to a container: {error}"
