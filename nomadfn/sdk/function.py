"""`Function`: one function of an app, and the verbs that call it."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar

import msgspec
from nomadfn_agent import wire

from nomadfn.exception import DeprecationError, InvalidError, UnsupportedError

from . import options, service, web
from .blocking import blocking
from .client import default_client
from .partial import Partial
from .pools import PoolVerbs
from .target import Target
from .verbs import CallVerbs

if TYPE_CHECKING:
    from .app import App
    from .image import Image
    from .secret import Secret

P = ParamSpec("P")
R = TypeVar("R")

_MODAL_ONLY = {
    "with_options": "give the settings to @app.function",
    "with_concurrency": "give the settings to @app.function",
    "with_batching": "call the function with lists",
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
        return self

    @classmethod
    def _define(cls, app: App, function: Callable[P, R], settings: dict[str, Any]) -> Function[P, R]:
        """What `@app.function(...)` does."""
        said: dict[str, Any] = {}
        if isinstance(function, Partial):
            said, function = function.fields(), function.raw_f
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
        self._image = options.image(settings.get("image"), self.name)
        self.serialized = bool(settings.get("serialized"))
        self.raw_f = function
        spec = msgspec.structs.replace(
            spec,
            is_async=inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function),
            is_generator=inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function),
            **said,
        )
        options.check_generator(spec)
        self._spec = web.settle(spec, function, f"function {self.name}")
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
        return self._spec is not None and self._spec.is_generator

    @property
    def _known(self) -> bool:
        return self._spec is not None

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
        if name == "web_url":
            raise DeprecationError("Function.web_url is an old name; use get_web_url()")
        if name == "keep_warm":
            raise DeprecationError("Function.keep_warm is an old name; use update_autoscaler(min_containers=...)")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

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
            self._found = Target(client, found["function_id"], False, web_url=found.get("web_url", ""))
        return self._found
