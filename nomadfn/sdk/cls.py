"""`Cls`: a class whose methods run in containers, and `Obj`: one instance of it with its parameters.

Behind a `Cls` stands one function, the class's own, whose containers have an instance each. An `Obj` with other
parameters, or of a `Cls` with other settings, is a variant of that function.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

from nomadfn_agent import instances, wire

from nomadfn.core import variants
from nomadfn.exception import DeprecationError, InvalidError, NotFoundError, UnsupportedError

from . import class_spec, options, service, web
from .blocking import in_event_loop
from .function import Function, Variant
from .partial import INSTANCE, Partial
from .target import Target
from .variants import Changes, VariantSettings

if TYPE_CHECKING:
    from .app import App

CLS = "_nomadfn_cls"
"""Where a user's class keeps the `Cls` that was made of it."""


class Cls:
    """A class of an app: `Model()` or `Model(size="large")` gives an instance whose methods can be called.

    Made by `@app.cls()` or `Cls.from_name`.
    """

    name: str
    app_name: str
    raw_f: type
    """What the user wrote; absent where only its name is known."""
    _app: App | None
    _function: Function[Any, Any]
    _changes: Changes

    def __init__(self, *misused: Any) -> None:
        raise InvalidError("a Cls is made by @app.cls() or Cls.from_name(app, name)")

    @classmethod
    def _make(cls, function: Function[Any, Any], changes: Changes = Changes()) -> Cls:
        self = cls.__new__(cls)
        self.name, self.app_name, self._app = function.name, function.app_name, function._app
        self._function = function
        self._changes = changes
        if "raw_f" in vars(function):
            user_cls: Any = function.raw_f
            self.raw_f = user_cls
            for name in ("__doc__", "__name__", "__qualname__", "__module__"):
                setattr(self, name, getattr(user_cls, name))
        return self

    @classmethod
    def _define(cls, app: App, target: Any, settings: dict[str, Any]) -> Cls:
        """What `@app.cls(...)` does."""
        said = target if isinstance(target, Partial) else None
        user_cls = said.raw_f if said is not None else target
        if isinstance(target, Cls):
            raise InvalidError(f"class {target.name}: it has @app.cls() twice; leave one out")
        if not inspect.isclass(user_cls):
            name = getattr(user_cls, "__name__", repr(user_cls))
            raise InvalidError(f"function {name}: @app.cls() is for classes; put @app.function() above a function")
        spec = class_spec.make_spec(user_cls, settings, said)
        function: Function[Any, Any] = Function._make(app, app.name, spec.name)
        function._spec = spec
        function._secrets = (*app.secrets, *options.secrets(settings.get("secrets"), f"class {spec.name}"))
        function._image = options.image(settings.get("image"), f"class {spec.name}")
        function.serialized = options.flag(settings.get("serialized"), "serialized", spec.name)
        function.raw_f = user_cls
        made = cls._make(function)
        setattr(user_cls, CLS, made)
        return made

    @classmethod
    def from_name(cls, app_name: str, name: str, **settings: Any) -> Cls:
        """A class of a deployed app. It is looked up at the first use; an unknown one raises NotFoundError then."""
        for key, value in settings.items():
            if value is not None:
                raise UnsupportedError(f"Cls.from_name({key}=...) is not supported by nomadfn; leave it out")
        return cls._make(Function.from_name(app_name, name))

    # What it is.

    @property
    def app(self) -> App | None:
        """The app that it was defined in; None for one from `from_name`."""
        return self._app

    @property
    def spec(self) -> wire.FunctionSpec | None:
        """Its settings; None where only its name is known."""
        return self._function.spec

    def __repr__(self) -> str:
        return f"<Cls {self.app_name}.{self.name}>"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self._changes:
            return Cls._with, (Cls._make(self._function), self._changes)
        if self._app is None:
            return Cls.from_name, (self.app_name, self.name)
        from .app import find_class

        return find_class, (self.app_name, self.name)

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        """A class that is derived from it is derived from what the user wrote."""
        if "raw_f" not in vars(self):
            raise InvalidError(f"{self!r} is known only by its name here; no class can be derived from it")
        return (self.raw_f,)

    # Its variants and instances.

    def with_options(self, **settings: Unpack[VariantSettings]) -> Cls:
        """The same class with other settings, whose instances have containers of their own.

        What it takes and how it adds up is as for `Function.with_options`.

            Model.with_options(gpu="H100")(size="large").predict.remote(x)
        """
        return self._with(Changes.of_options(settings, f"class {self.name}"))

    def with_concurrency(self, *, max_inputs: int, target_inputs: int | None = None) -> Cls:
        """The same class with containers of its own that run so many inputs at once, as `@concurrent` says it."""
        return self._with(Changes.of_concurrency(f"{self.name}.with_concurrency", max_inputs, target_inputs))

    def with_batching(self, *, max_batch_size: int, wait_ms: int) -> Cls:
        """The same class, whose method is `@batched`, with containers of its own and with other batches."""
        return self._with(Changes.of_batching(f"{self.name}.with_batching", max_batch_size, wait_ms))

    def _with(self, changes: Changes) -> Cls:
        return Cls._make(self._function, self._changes.over(changes))

    def __call__(self, *args: Any, **parameters: Any) -> Obj:
        """An instance with these parameters, for its methods to be called in containers or here."""
        if args:
            known = ", ".join(f"{one.name}=..." for one in self.spec.parameters) if self.spec is not None else "…=..."
            raise InvalidError(f"{self.name}({args[0]!r}) says no name: write {self.name}({known})")
        if self.spec is not None:
            variants.arguments(self.spec, parameters)
        return Obj._of(self, parameters)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "raw_f":
            raise AttributeError(f"{self!r} has no attribute {name!r}")
        value = getattr(vars(self).get("raw_f"), name, None)
        if value is not None and not isinstance(value, Partial):
            return value
        if isinstance(value, Partial) or "raw_f" not in vars(self):
            raise AttributeError(
                f"{self.name}.{name} is called on an instance: write {self.name}().{name}, or "
                f"{self.name}(...).{name} with its parameters"
            )
        raise AttributeError(f"class {self.name} has no attribute {name!r}")


class Obj:
    """One instance of a `Cls` as its program sees it: `obj.predict` is a `Function`.

    Where the class is defined in this program, any other attribute is that of an instance made here, and
    `obj.predict.local(...)` runs here, after the class's `@enter` methods have, once.
    """

    _cls: Cls
    _arguments: Mapping[str, Any]
    _owner: Function[Any, Any]
    _user_cls: type | None
    _instance: Any
    _entered: bool
    _methods: dict[str, BoundMethod]

    def __init__(self) -> None:
        raise InvalidError("an instance is made by calling the class: Model() or Model(size=...)")

    @classmethod
    def _of(cls, owner: Cls, arguments: Mapping[str, Any]) -> Obj:
        self = cls.__new__(cls)
        self._cls = owner
        self._arguments = arguments
        self._owner = Variant._of(owner._function, owner._changes, arguments)
        self._user_cls = vars(owner).get("raw_f")
        self._instance = None
        self._entered = False
        self._methods = {}
        return self

    @classmethod
    def _around(cls, owner: Cls, instance: Any) -> Obj:
        """For an instance that is there already, as in a container of the class: its calls go to its own pool."""
        held = vars(instance) if hasattr(instance, "__dict__") else {}
        names = [one.name for one in owner.spec.parameters] if owner.spec is not None else []
        self = cls._of(owner, {name: held[name] for name in names if name in held})
        self._user_cls, self._instance, self._entered = type(instance), instance, True
        here = os.environ.get("NOMADFN_FUNCTION", "")
        if service.in_container() and here.partition("@")[0] == owner.name and owner._app is not None:
            self._owner = Function._refer(owner._app, here)
        return self

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self._arguments.items())
        return f"<{self._cls.name}({said}) of {self._cls.app_name}>"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Obj._of, (self._cls, dict(self._arguments))

    @property
    def update_autoscaler(self) -> Any:
        """As `Function.update_autoscaler`, for the containers of this instance."""
        return self._owner.update_autoscaler

    @property
    def autoscaler(self) -> Any:
        """As `Function.autoscaler`, for the containers of this instance."""
        return self._owner.autoscaler

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_methods" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name in self._methods:
            return self._methods[name]
        if name == "keep_warm":
            raise DeprecationError(f"{self._cls.name}().keep_warm is an old name; use update_autoscaler(...)")
        if self._user_cls is not None:
            partial = class_spec.methods_of(self._user_cls).get(name)
            if partial is None:
                return getattr(self._local_instance(), name)
            found = BoundMethod._bind(self, name, partial)
        else:
            spec = self._owner.spec
            if name.startswith("_") or (spec is not None and spec.method(name) is None):
                raise NotFoundError(
                    f"class {self._cls.name} has no method {name!r}, and other attributes are not known where only its "
                    f"name is"
                )
            found = BoundMethod._bind(self, name, None)
        self._methods[name] = found
        return found

    # The instance of this process.

    def _local_instance(self) -> Any:
        if self._instance is None:
            assert self._user_cls is not None
            spec = self._cls.spec
            assert spec is not None
            closed = variants.arguments(spec, self._arguments)
            values = {one.name: instances.value_of(one.type, closed[one.name]) for one in spec.parameters}
            self._instance = instances.make(self._user_cls, values)
            setattr(self._instance, INSTANCE, self)
        return self._instance

    def _enter(self) -> Any:
        """The instance, entered; for a method that is not async."""
        instance = self._local_instance()
        if not self._entered:
            self._entered = True
            for hook in instances.hooks(instance, instances.ENTER):
                if instances.is_asynchronous(hook) and in_event_loop():
                    raise InvalidError(
                        f"{self._cls.name}: its @enter method {hook.__name__} is async, and cannot be waited for in a "
                        f"running event loop; call an async method first: await {self._cls.name}().….local(...)"
                    )
                result = hook()
                if inspect.isawaitable(result):
                    import asyncio

                    asyncio.run(_wait(result))
        return instance

    async def _enter_async(self) -> Any:
        instance = self._local_instance()
        if not self._entered:
            self._entered = True
            for hook in instances.hooks(instance, instances.ENTER):
                result = hook()
                if inspect.isawaitable(result):
                    await result
        return instance


async def _wait(result: Any) -> Any:
    return await result


class BoundMethod(Function[Any, Any]):
    """One method of one instance, to be called as any function is."""

    _obj: Obj
    _method: str
    _partial: Partial | None

    @classmethod
    def _bind(cls, obj: Obj, method: str, partial: Partial | None) -> BoundMethod:
        owner = obj._owner
        self = cls._make(owner._app, owner.app_name, f"{obj._cls.name}.{method}")
        assert isinstance(self, BoundMethod)
        self._obj, self._method, self._partial = obj, method, partial
        if partial is not None:
            self.raw_f = partial.raw_f
            functools.update_wrapper(self, partial.raw_f, updated=())
        return self

    @property
    def spec(self) -> wire.FunctionSpec | None:
        """The settings of its class; None where only its name is known."""
        return self._obj._owner.spec

    @property
    def is_generator(self) -> bool:
        if self._partial is not None:
            raw = self._partial.raw_f
            return inspect.isgeneratorfunction(raw) or inspect.isasyncgenfunction(raw)
        return super().is_generator

    def local(self, *args: Any, **kwargs: Any) -> Any:
        """Call it in this process, on an instance whose `@enter` methods have run, once."""
        raw = self.raw_f
        if inspect.isasyncgenfunction(raw):
            return self._generate_async(*args, **kwargs)
        if inspect.iscoroutinefunction(raw):
            return self._local_async(*args, **kwargs)
        return raw(self._obj._enter(), *args, **kwargs)

    async def _local_async(self, *args: Any, **kwargs: Any) -> Any:
        return await self.raw_f(await self._obj._enter_async(), *args, **kwargs)

    async def _generate_async(self, *args: Any, **kwargs: Any) -> Any:
        async for one in self.raw_f(await self._obj._enter_async(), *args, **kwargs):
            yield one

    async def _target(self) -> Target:
        target = await self._obj._owner._target()
        spec = self.spec
        if spec is not None and self._partial is None and spec.method(self._method) is None:
            known = ", ".join(one.name for one in spec.methods) or "none: it is a function"
            raise NotFoundError(f"{self._obj._cls.name} has no method {self._method!r}; its methods: {known}")
        url = await self._ask_url(target) if self.answers_http else ""
        return replace(target, method=self._method, web_url=url)

    async def _ask_url(self, target: Target) -> str:
        return await web.ask_url(target.client, target.function_id, self._method)

    @property
    def _is_variant(self) -> bool:
        return bool(self._obj._arguments or self._obj._cls._changes)

    @property
    def answers_http(self) -> bool:
        """Whether it answers HTTP, as far as its class is known here."""
        found = self.spec.method(self._method) if self.spec is not None else None
        return found is not None and found.web is not None

    def _vary(self, changes: Changes) -> NoReturn:
        name = self._obj._cls.name
        raise InvalidError(
            f"{self.name}: variants are made of the class, not of one method: write "
            f"{name}.with_options(...)().{self._method}, and likewise with_concurrency and with_batching"
        )

    def __repr__(self) -> str:
        return f"<Method {self._method} of {self._obj!r}>"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, (self._obj, self._method)


def obj_of(instance: Any) -> Obj | None:
    """The `Obj` through which an instance of a user's class calls its own methods; None for a class of no app."""
    held = getattr(instance, "__dict__", {})
    if INSTANCE in held:
        obj: Obj = held[INSTANCE]
        return obj
    owner = vars(type(instance)).get(CLS)
    if not isinstance(owner, Cls):
        return None
    made = Obj._around(owner, instance)
    if "__dict__" in dir(instance):
        held[INSTANCE] = made
    return made
