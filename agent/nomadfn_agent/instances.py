"""One instance of a user's class: made with its parameters, entered before the first input, exited after the last.

The decorators leave a mark on each method, its `nomadfn_role`: `method`, `enter` or `exit`. Nothing else is known of
them here, so that a container needs nothing of nomadfn but what the user's class has imported.
"""

from __future__ import annotations

import base64
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .wire import FunctionSpec

if TYPE_CHECKING:
    import asyncio

ENTER, EXIT, METHOD = "enter", "exit", "method"


def marked(user_cls: type, role: str = "") -> dict[str, Any]:
    """What the class and those above it have decorated, with that role, by name; the base classes' come first."""
    found: dict[str, Any] = {}
    for owner in reversed(user_cls.__mro__):
        for name, value in vars(owner).items():
            if isinstance(getattr(value, "nomadfn_role", None), str):
                found[name] = value
            else:
                found.pop(name, None)
    return {name: value for name, value in found.items() if not role or value.nomadfn_role == role}


def hooks(instance: object, role: str) -> Iterator[Callable[[], Any]]:
    """Its `@enter` or `@exit` methods in the order in which they are to be called."""
    found = list(marked(type(instance), role).values())
    for one in sorted(found, key=lambda one: not one.snap):
        yield one.raw_f.__get__(instance)


def make(user_cls: type, values: Mapping[str, Any]) -> Any:
    """An instance that has its parameters. A class of an app has no constructor of its own."""
    instance: Any = user_cls.__new__(user_cls)  # type: ignore[call-overload]
    for name, value in values.items():
        setattr(instance, name, value)
    return instance


def values_of(spec: FunctionSpec) -> dict[str, Any]:
    """The parameters' values, from the text as which they travel."""
    types = {one.name: one.type for one in spec.parameters}
    texts = {one.name: one.default for one in spec.parameters if one.default is not None} | spec.arguments
    return {name: value_of(types[name], text) for name, text in texts.items() if name in types}


def value_of(type_name: str, text: str) -> Any:
    match type_name:
        case "int":
            return int(text)
        case "bool":
            return text == "true"
        case "bytes":
            return base64.b64decode(text)
    return text


def _make_loop(is_web: bool) -> asyncio.AbstractEventLoop:
    import asyncio  # a class without coroutines does without its import

    from .loops import make_event_loop, new_event_loop

    loop = make_event_loop() if is_web else new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


class Instance:
    """The one of a container."""

    def __init__(self, user_cls: type, spec: FunctionSpec) -> None:
        self.object = make(user_cls, values_of(spec))
        self.methods: dict[str, Callable[..., Any]] = {
            name: one.raw_f.__get__(self.object) for name, one in marked(user_cls, METHOD).items()
        }
        self.is_async = {one.name: one.is_async for one in spec.methods}
        every = marked(user_cls).values()
        is_async = spec.is_web or any(map(is_asynchronous, (one.raw_f for one in every)))
        self.loop = _make_loop(spec.is_web) if is_async else None
        """What runs all coroutines of the class, so that they may share connections and locks."""
        self.has_exit = any(one.nomadfn_role == EXIT for one in every)

    def enter(self) -> None:
        """Raises what an `@enter` method raises."""
        for hook in hooks(self.object, ENTER):
            self._call(hook)

    def exit(self) -> None:
        """Every `@exit` method is called, whatever another one has raised; that is only printed."""
        for hook in hooks(self.object, EXIT):
            try:
                self._call(hook)
            except BaseException:
                print("nomadfn: an @exit method raised:", file=sys.stderr)
                traceback.print_exc()

    def _call(self, hook: Callable[[], Any]) -> None:
        result = hook()
        if inspect.isawaitable(result):
            assert self.loop is not None
            self.loop.run_until_complete(result)


def is_asynchronous(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
