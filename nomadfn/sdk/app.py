"""`App`: functions and entrypoints under one name, and running or deploying them together."""

from __future__ import annotations

import inspect
import os
import secrets
import string
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack, dataclass_transform

from nomadfn_agent import wire

from nomadfn.exception import Error, InvalidError, ServiceError, UnsupportedError

from . import code, options, service, web
from .blocking import Scope, blocking, off_loop
from .calls import storing
from .client import Client, activate, deactivate
from .cls import Cls
from .function import Function
from .parameters import parameter
from .progress import LogPrinter, Observer
from .unsupported import ON_APP

if TYPE_CHECKING:
    from typing import Self

    from .image import Image
    from .secret import Secret

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)

STOP_TIMEOUT_S = 30.0
LOST_STOP_TIMEOUT_S = 3.0
"""While there is no connection. A control service that comes back later ends the app by itself."""
_ID_ALPHABET = string.ascii_letters + string.digits
_apps: weakref.WeakValueDictionary[str, App] = weakref.WeakValueDictionary()

as_modal = False
"""Whether this program was loaded with `import modal` standing for nomadfn; containers do the same then."""


@dataclass(frozen=True)
class Running:
    """An app that runs, or is deployed: whom to ask and what its functions are called there."""

    client: Client
    app_id: str
    functions: dict[str, str]
    ships_main: bool
    """Whether the containers know this program's `__main__`."""
    web_urls: dict[str, str]
    """Of the web functions, by name."""


@dataclass(frozen=True)
class Deployment:
    """What a deploy did: which revision it made, and the functions whose definition changed."""

    app_id: str
    version: int
    functions: dict[str, str]
    changed: list[str]
    target: str
    web_urls: dict[str, str]


class LocalEntrypoint:
    """A function of the program that runs here, started by `nomadfn run`. Calling it calls the function."""

    def __init__(self, function: Callable[..., Any], name: str, app: App) -> None:
        self.raw_f = function
        self.name = name
        self.app = app
        self.is_async = inspect.iscoroutinefunction(function)
        self.__doc__ = function.__doc__
        self.__name__ = name
        self.__wrapped__ = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.raw_f(*args, **kwargs)


class App:
    """Functions that are run or deployed together, under one name.

    `app = App("thumbs")`, then `@app.function()` above each function. `image` is for those that have none of their
    own, and `secrets` come before their own. Other arguments of Modal's App raise UnsupportedError.
    """

    image: Image | None
    secrets: tuple[Secret, ...]

    def __init__(
        self,
        name: str | None = None,
        *,
        image: Image | None = None,
        secrets: Collection[Secret] | None = None,
        **settings: Any,
    ) -> None:
        for key, value in settings.items():
            if value is not None and value != {} and value != []:
                raise UnsupportedError(
                    f"App({key}=...) is not supported by nomadfn; give the settings to each @app.function instead"
                )
        self.name = options.check_name("app" if name is None else name, "app name")
        self.image = options.image(image, f"{self.name!r} of App")
        self.secrets = options.secrets(secrets, f"app {self.name}")
        self.registered_functions: dict[str, Function[Any, Any]] = {}
        self.registered_classes: dict[str, Cls] = {}
        self.registered_entrypoints: dict[str, LocalEntrypoint] = {}
        self.deployment: Deployment | None = None
        self._running: Running | None = None
        _apps[self.name] = self

    def __getattr__(self, name: str) -> Any:
        if name in ON_APP:
            raise UnsupportedError(f"App.{name} is not supported by nomadfn; {ON_APP[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"App({self.name!r})"

    def __reduce__(self) -> tuple[Callable[[str], App], tuple[str]]:
        return find_app, (self.name,)

    @property
    def app_id(self) -> str | None:
        """Id of the running or deployed app; None before that."""
        if self._running is not None:
            return self._running.app_id
        return self.deployment.app_id if self.deployment else os.environ.get("NOMADFN_APP_ID")

    @property
    def registered_web_endpoints(self) -> list[str]:
        """The names of its functions and classes that answer HTTP."""
        parts = {**self.registered_functions, **{name: one._function for name, one in self.registered_classes.items()}}
        return [name for name, one in parts.items() if one.spec is not None and one.spec.web is not None]

    def function(
        self, *misplaced: Any, **settings: Unpack[options.FunctionSettings]
    ) -> Callable[[Callable[P, R]], Function[P, R]]:
        """Make a function of this app. The settings are those of `FunctionSettings`.

        Raises InvalidError for a wrong value, DeprecationError for an old name, and UnsupportedError for a
        setting that only Modal has.
        """
        if misplaced:
            what = f"@app.function above {getattr(misplaced[0], '__name__', misplaced[0])!s}"
            raise InvalidError(f"{what} needs parentheses: write @app.function()")

        def decorate(function: Callable[P, R]) -> Function[P, R]:
            made = Function._define(self, function, dict(settings))
            self._register(made)
            return made

        return decorate

    @dataclass_transform(kw_only_default=True, field_specifiers=(parameter,))
    def cls(self, *misplaced: Any, **settings: Unpack[options.FunctionSettings]) -> Callable[[C], C]:
        """Make a class of this app, whose `@method()`s run in containers. The settings are those of `FunctionSettings`.

        What it gives is a `Cls`, and it is typed as the class itself, so that type checkers know its methods. Raises
        InvalidError for a class or a setting that cannot be, DeprecationError for an old name, and UnsupportedError
        for a setting that only Modal has.
        """
        if misplaced:
            what = f"@app.cls above {getattr(misplaced[0], '__name__', misplaced[0])!s}"
            raise InvalidError(f"{what} needs parentheses: write @app.cls()")

        def decorate(target: C) -> C:
            made = Cls._define(self, target, dict(settings))
            self._register(made)
            return made  # type: ignore[return-value]

        return decorate

    def local_entrypoint(
        self, *misplaced: Any, name: str | None = None
    ) -> Callable[[Callable[..., Any]], LocalEntrypoint]:
        """Make a function the one that `nomadfn run` starts, here, with arguments from the command line."""
        if misplaced:
            raise InvalidError("@app.local_entrypoint needs parentheses: write @app.local_entrypoint()")

        def decorate(function: Callable[..., Any]) -> LocalEntrypoint:
            if isinstance(function, Function):
                raise InvalidError(f"{function.name} is a function of the app; an entrypoint cannot be one as well")
            if not inspect.isfunction(function):
                raise InvalidError(f"@app.local_entrypoint() needs a function, not {function!r}")
            called = options.check_name(name or function.__name__, "entrypoint")
            entrypoint = LocalEntrypoint(function, called, self)
            known = self.registered_entrypoints.setdefault(called, entrypoint)
            if known is not entrypoint and not _same_place(known.raw_f, function):
                raise InvalidError(f"{self!r} has two entrypoints called {called!r}; give one of them name='...'")
            self.registered_entrypoints[called] = entrypoint
            return entrypoint

        return decorate

    def run(self, *, detach: bool = False, observer: Observer | None = None, **settings: Any) -> Scope[Self]:
        """`with app.run():` or `async with app.run():`; inside, the app's functions can be called.

        Attaches to the control service that `nomadfn up` keeps, else starts a private one. At the end the app
        stops and what is unfinished is cancelled; with `detach` it goes on until its spawns are done. What the
        containers print appears here, unless another `observer` is given.
        """
        for key, value in settings.items():
            if value is not None and key not in ("show_progress", "interactive"):
                raise UnsupportedError(f"app.run({key}=...) is not supported by nomadfn; leave it out")
        watcher = observer or LogPrinter()
        owner = os.getpid()

        async def enter() -> Self:
            await self._start(detach, watcher)
            return self

        async def leave(error: BaseException | None) -> None:
            if os.getpid() == owner:
                await self._stop(detach, watcher)

        return Scope(enter, leave)

    @blocking
    async def deploy(self, name: str | None = None) -> App:
        """Make this app's functions callable by name from any program, under its own name or `name`.

        Needs the control service that `nomadfn up` keeps. What it did stands in `app.deployment`.
        """
        if name is not None:
            self.name = options.check_name(name, "app name")
        handle = service.attach()
        if handle is None:
            raise ServiceError("deploy needs a control service that stays; start one with `nomadfn up`")
        client = Client(handle)
        try:
            welcome = await off_loop(client.connect)
            spec = await off_loop(lambda: self._spec(client, welcome))
            body = await client.request("app.deploy", {"spec": to_builtins(spec)})
            self.deployment = Deployment(
                body["app_id"],
                body["version"],
                body["functions"],
                body["changed"],
                welcome.target or handle.target,
                body.get("web_urls", {}),
            )
        finally:
            client.close()
        return self

    async def _start(self, detach: bool, observer: Observer) -> None:
        if service.in_container():
            raise InvalidError(
                "app.run() was reached inside a container, which imports the program's file to find its functions; "
                "put it under `if __name__ == '__main__':`"
            )
        if self._running is not None:
            raise InvalidError(f"{self!r} runs already; call its functions inside that `with app.run():`")
        if not (self.registered_functions or self.registered_classes):
            raise InvalidError(f"{self!r} has no functions; put @app.function() above one")
        if detach and (await off_loop(service.attach)) is None:
            raise InvalidError("a detached run needs a control service that stays; start one with `nomadfn up`")
        handle = await off_loop(service.attach_or_start)
        client = Client(handle, observer)
        app_id = "ap-" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(22))
        try:
            running = await self._put_in_force(client, app_id)
        except BaseException:
            client.close()
            await off_loop(handle.close)
            raise
        activate(client)
        self._running = running
        observer.running(self.name, app_id, (await off_loop(client.connect)).target or handle.target)
        observer.web_functions(running.web_urls)
        scheduled = [name for name, one in self.registered_functions.items() if one.spec and one.spec.schedule]
        if scheduled:
            observer.notice(f"schedules begin when the app is deployed, and not here: {', '.join(scheduled)}")

    async def _replace(self, former: App, observer: Observer) -> None:
        """Take the place of `former`, which runs: by its connection and under its id."""
        assert former._running is not None
        if not (self.registered_functions or self.registered_classes):
            raise InvalidError(f"{self!r} has no functions any more; put @app.function() above one")
        before = former._running
        self._running = await self._put_in_force(before.client, before.app_id)
        former._running = None
        if self._running.web_urls != before.web_urls:
            observer.web_functions(self._running.web_urls)

    async def _put_in_force(self, client: Client, app_id: str) -> Running:
        """Have the control service run this app under `app_id`, and again whenever another one leads."""
        welcome = await off_loop(client.connect)
        spec = await off_loop(lambda: self._spec(client, welcome))
        client.drop_standing(app_id)
        start = {"app_id": app_id, "ephemeral": True, "spec": to_builtins(spec)}
        body = await client.start_request("app.start", start, standing=True)
        watch = {"app_id": app_id, "logs": True, "stats": True}
        await client.start_request("app.watch", watch, standing=True)
        ships_main = spec.code.main_module == code.alias_main() != ""
        return Running(client, app_id, body["functions"], ships_main, body.get("web_urls", {}))

    async def _stop(self, detach: bool, observer: Observer) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        client = running.client
        client.drop_standing(running.app_id)
        deactivate(client)
        cancelled = 0
        try:
            operation = "app.detach" if detach else "app.stop"
            timeout_s = STOP_TIMEOUT_S if client.connected else LOST_STOP_TIMEOUT_S
            body = await client.request(operation, {"app_id": running.app_id}, timeout_s)
            cancelled = int((body or {}).get("cancelled", 0))
        except Error as error:
            observer.notice(f"the app could not be stopped in good order: {error}")
        finally:
            client.close()
            await off_loop(client.handle.close)
        observer.stopped(self.name, cancelled)

    def _register(self, one: Function[Any, Any] | Cls) -> None:
        known = self.registered_functions.get(one.name) or self.registered_classes.get(one.name)
        if known is not None and not _same_place(known.raw_f, one.raw_f):
            if isinstance(known, Cls) or isinstance(one, Cls):
                raise InvalidError(
                    f"{self!r} has two things called {one.name!r}, and one is a class; call one of them something else"
                )
            raise InvalidError(
                f"{self!r} has two functions called {one.name!r}; give one of them @app.function(name='...')"
            )
        if isinstance(one, Cls):
            self.registered_classes[one.name] = one
        else:
            self.registered_functions[one.name] = one

    def _spec(self, client: Client, welcome: wire.Welcome) -> wire.AppSpec:
        """The app as the control service knows it; its code is put into the blob store."""
        functions: list[wire.FunctionSpec] = []
        modules: list[str] = []
        parts = [*self.registered_functions.values(), *(one._function for one in self.registered_classes.values())]
        for function in parts:
            origin = code.origin_of(function.raw_f, serialized=function.serialized)
            digest = ""
            if origin.module:
                modules.append(origin.module)
            else:
                data = code.pickle_function(function.raw_f, function.name, welcome.max_function_bytes)
                with storing(f"function {function.name}", len(data)):
                    digest = client.blobs.write_code(data)
            functions.append(function._complete(origin.module, origin.qualname, digest))
        images = [one.image for one in parts if one.image is not None]
        named = [name for image in images for name in image._modules]
        archive, ref = code.pack(modules, named, as_modal=as_modal)
        if archive:
            with storing("the program's source", len(archive)):
                client.blobs.write_code(archive)
        web.check_addresses(self.name, functions)
        return wire.AppSpec(name=self.name, functions=functions, code=ref)


def find_app(name: str) -> App:
    """The app of that name in this process, made if there is none; what a pickled app becomes."""
    return _apps.get(name) or App(name)


def find_function(app: str, name: str) -> Function[Any, Any]:
    """What a pickled function of an app becomes: the function itself where it is known, else a reference to it."""
    owner = find_app(app)
    return owner.registered_functions.get(name) or Function._refer(owner, name)


def find_class(app: str, name: str) -> Cls:
    """As `find_function`, for a class."""
    owner = find_app(app)
    return owner.registered_classes.get(name) or Cls._make(Function._refer(owner, name))


def to_builtins(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


def _same_place(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether a definition only replaces itself: a cell run again, a module loaded again."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
