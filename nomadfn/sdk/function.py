"""`Function`: one function of an app, and the verbs that call it."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar, Unpack

import msgspec
from nomadfn_agent import wire

from nomadfn.exception import DeprecationError, InvalidError, UnsupportedError

from . import options, service, web
from .blocking import blocking
from .client import default_client
from .partial import Partial
from .pools import PoolVerbs
from .target import Target
from .variants import Asked, Changes, VariantSettings, ask
from .verbs import CallVerbs

if TYPE_CHECKING:
    from .app import App
    from .image import Image
    from .secret import Secret

P = ParamSpec("P")
R = TypeVar("R")

MODAL_ONLY = {
    "experimental_spawn_map": "use fn.spawn_map(...)",
    "shell": "run a shell on the machine itself",
}


class Function(CallVerbs, PoolVerbs, web.WebVerbs, Generic[P, R]):
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
    _image: Image | None
    _found: Target | None
    _method: str
    """Of a class that is known by the name of one of its methods."""
    _variants: dict[bytes, Asked]
    """What was asked for of late, see `variants`."""

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
        self._image = None
        self._found = None
        self._variants = {}
        self._method = ""
        return self

    @classmethod
    def _define(cls, app: App, function: Callable[P, R], settings: dict[str, Any]) -> Function[P, R]:
        """What `@app.function(...)` does."""
        said: dict[str, Any] = {}
        from .cls import Cls

        if isinstance(function, Partial):
            function.refuse_outside_class()
            said, function = function.fields(), function.raw_f
        owner = getattr(function, "__name__", repr(function))
        if isinstance(function, Function):
            raise InvalidError(f"function {function.name}: it has @app.function() twice; leave one out")
        if inspect.isclass(function) or isinstance(function, Cls):
            raise InvalidError(f"class {owner}: @app.function() is for functions; put @app.cls() above a class")
        if not inspect.isfunction(function):
            raise InvalidError(f"@app.function() needs a function that is defined with `def`, not {function!r}")
        qualname = function.__qualname__.rpartition("<locals>.")[2]
        if "." in qualname:
            raise InvalidError(
                f"function {qualname}: it is in a class: put @nomadfn.method() above it instead, and @app.cls() above "
                f"the class"
            )
        self = cls._make(app, app.name, options.check_name(settings.get("name") or owner, "function name"))
        spec = options.make_spec(settings, self.name)
        self._secrets = (*app.secrets, *options.secrets(settings.get("secrets"), self.name))
        self._image = options.image(settings.get("image"), self.name)
        self.serialized = options.flag(settings.get("serialized"), "serialized", self.name)
        self.raw_f = function
        spec = msgspec.structs.replace(
            spec,
            is_async=inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function),
            is_generator=inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function),
            schedule=_schedule(settings, function, self.name),
            **said,
        )
        options.check_generator(spec)
        self._spec = web.settle(spec, function, f"function {self.name}")
        if self._spec.web is not None and self._spec.schedule is not None:
            raise InvalidError(
                f"function {self.name}: a web function takes requests and cannot have a schedule; let another function "
                "run by itself"
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
        image = self.image
        secrets = [] if image is None else image._variables_spec()
        return msgspec.structs.replace(
            self._spec,
            module=module,
            qualname=qualname,
            serialized_ref=serialized_ref,
            secrets=[*secrets, *(one._spec() for one in self._secrets)],
            image=None if image is None else image._spec(f"function {self.name}"),
        )

    # What a function is.

    @property
    def app(self) -> App | None:
        """The app that it was defined in; None for one from `from_name`."""
        return self._app

    @property
    def image(self) -> Image | None:
        """What its containers run in: its own image, else the app's."""
        return self._image or (self._app.image if self._app is not None else None)

    @property
    def spec(self) -> wire.FunctionSpec | None:
        """Its settings; None where only its name is known."""
        return self._spec

    @property
    def is_generator(self) -> bool:
        spec = self.spec
        if spec is None or not spec.methods:
            return spec is not None and spec.is_generator
        found = spec.method(self._method)
        return found is not None and found.is_generator

    @property
    def _known(self) -> bool:
        return self.spec is not None

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
        if name in MODAL_ONLY:
            raise UnsupportedError(f"Function.{name} is not supported by nomadfn; {MODAL_ONLY[name]}")
        if name == "web_url":
            raise DeprecationError("Function.web_url is an old name; use get_web_url()")
        if name == "keep_warm":
            raise DeprecationError("Function.keep_warm is an old name; use update_autoscaler(min_containers=...)")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # Variants of it.

    def with_options(self, **settings: Unpack[VariantSettings]) -> Function[P, R]:
        """The same function with other settings, which has containers of its own. None leaves a setting as it is.

        What a later call says takes the place of what an earlier one said; `env` is added to the function's own, and
        `secrets` take the place of its. `min_containers` is 0 unless it is given here. Raises InvalidError, or
        UnsupportedError for what only Modal has.

            f.with_options(memory=4096, timeout=600).remote(x)
        """
        return self._vary(Changes.of_options(settings, self.name))

    def with_concurrency(self, *, max_inputs: int, target_inputs: int | None = None) -> Function[P, R]:
        """The same function with containers of its own that run so many inputs at once, as `@concurrent` says it."""
        return self._vary(Changes.of_concurrency(f"{self.name}.with_concurrency", max_inputs, target_inputs))

    def with_batching(self, *, max_batch_size: int, wait_ms: int) -> Function[P, R]:
        """The same `@batched` function with containers of its own, and with other batches."""
        return self._vary(Changes.of_batching(f"{self.name}.with_batching", max_batch_size, wait_ms))

    def _vary(self, changes: Changes) -> Function[P, R]:
        return Variant._of(self, changes, {})

    # Calling it.

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it in this process, like any function."""
        return self.raw_f(*args, **kwargs)

    @blocking
    async def hydrate(self) -> Function[P, R]:
        """Look it up now instead of at the first use. Raises NotFoundError."""
        await self._target()
        return self

    # How a call is made.

    async def _target(self) -> Target:
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
            return Target(running.client, function_id, running.ships_main, web_url=running.web_urls.get(self.name, ""))
        if service.in_container():
            function_id = f"{os.environ.get('NOMADFN_APP_ID', '')}/{self.name}"
            url = await web.ask_url(default_client(), function_id) if self._spec and self._spec.web else ""
            return Target(default_client(), function_id, True, web_url=url)
        raise InvalidError(
            f"{self._app!r} does not run, so {self.name} has no containers: call it inside `with app.run():`, start "
            f"the program with `nomadfn run`, or deploy it and use Function.from_name({self.app_name!r}, {self.name!r})"
        )

    async def _look_up(self) -> Target:
        client = default_client()
        if self._found is None or self._found.client is not client:
            body = {"app": self.app_name, "name": self.name}
            found = await client.request("function.lookup", body)
            self._spec = msgspec.convert(found["spec"], wire.FunctionSpec) if found.get("spec") else None
            self._method = found.get("method", "")
            url = found.get("web_url", "")
            self._found = Target(client, found["function_id"], False, web_url=url, method=self._method)
        return self._found


class Variant(Function[P, R]):
    """A function with other settings or, of a class, with the parameters of one instance."""

    _base: Function[P, R]
    _changes: Changes
    _arguments: Mapping[str, Any]
    _asked: Asked | None

    @classmethod
    def _of(cls, base: Function[P, R], changes: Changes, arguments: Mapping[str, Any]) -> Variant[P, R]:
        self = cls._make(base._app, base.app_name, base.name)
        assert isinstance(self, Variant)
        self._base = base
        self._changes = changes
        self._arguments = arguments
        self._asked = None
        self.serialized = base.serialized
        if "raw_f" in vars(base):
            self.raw_f = base.raw_f
            functools.update_wrapper(self, base.raw_f, updated=())
        return self

    @property
    def spec(self) -> wire.FunctionSpec | None:
        """The settings of what it is a variant of; None where only its name is known."""
        return self._base.spec

    @property
    def is_generator(self) -> bool:
        return self._base.is_generator

    @property
    def _is_variant(self) -> bool:
        return bool(self._changes or self._arguments)

    def _vary(self, changes: Changes) -> Function[P, R]:
        return Variant._of(self._base, self._changes.over(changes), self._arguments)

    async def _target(self) -> Target:
        base = await self._base._target()
        if not self._changes and not self._arguments:
            return base
        if self._asked is None or not self._asked.answers(base):
            self._asked = await ask(base, self._base._variants, self._changes, self._arguments)
        id = self._asked.function_id
        return replace(base, function_id=id, web_url=await web.ask_url(base.client, id) if base.web_url else "")

    def __repr__(self) -> str:
        said = "".join(f", {name}={value!r}" for name, value in self._arguments.items())
        return f"<Variant {self.app_name}.{self.name}{said}>"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Variant._of, (self._base, self._changes, dict(self._arguments))


def _schedule(settings: dict[str, Any], function: Callable[..., Any], owner: str) -> wire.ScheduleSpec | None:
    if settings.get("schedule") is None:
        return None
    from .schedule import spec_of

    return spec_of(settings["schedule"], function, owner)
