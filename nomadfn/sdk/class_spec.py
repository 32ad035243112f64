"""What `@app.cls(...)` accepts: a user's class, checked, as the spec of one function with methods."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import msgspec
from nomadfn_agent import instances, wire

from nomadfn.exception import InvalidError

from . import options, web
from .parameters import parameters_of
from .partial import EXIT, METHOD, Partial


def make_spec(user_cls: type, settings: Mapping[str, Any], said: Partial | None) -> wire.FunctionSpec:
    """`said` is what stands between the class and `@app.cls`. Raises InvalidError with the class's name and the fix."""
    owner = f"class {user_cls.__name__}"
    if settings.get("name") is not None:
        raise InvalidError(f"{owner}: @app.cls has no setting 'name'; the class's own name is what it is called by")
    if settings.get("schedule") is not None:
        raise InvalidError(f"{owner}: a class has no schedule; let an @app.function() with schedule= call its method")
    _check_constructor(user_cls, owner)
    marked = _marked(user_cls, owner)
    methods = {name: one for name, one in marked.items() if one.nomadfn_role == METHOD}
    if not methods:
        raise InvalidError(f"{owner} has no method to call; put @nomadfn.method() above at least one")
    batching = _batching(methods, owner)
    spec = options.make_spec(settings, owner)
    specs = [_method_spec(name, one) for name, one in methods.items()]
    if batching and any(one.is_generator for one in specs):
        raise InvalidError(f"{owner}: a generator cannot be @batched; return a list, one result for each input")
    spec = msgspec.structs.replace(
        spec,
        name=options.check_name(user_cls.__name__, "class name"),
        is_async=any(one.is_async for one in specs),
        methods=specs,
        parameters=parameters_of(user_cls),
        has_exit=any(one.nomadfn_role == EXIT for one in marked.values()),
        **batching,
        **(said.fields() if said is not None else {}),
    )
    web.settle_class(spec, owner)
    return spec


def methods_of(user_cls: type) -> dict[str, Partial]:
    """Its methods that can be called from outside, by name."""
    return instances.marked(user_cls, METHOD)


def _method_spec(name: str, partial: Partial) -> wire.MethodSpec:
    function = partial.raw_f
    if partial.web is not None:
        return wire.MethodSpec(name=name, is_async=web.is_stopped_alone(partial.web, function), web=partial.web)
    return wire.MethodSpec(
        name=name,
        is_async=instances.is_asynchronous(function),
        is_generator=inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function),
    )


def _check_constructor(user_cls: type, owner: str) -> None:
    if user_cls.__init__ is not object.__init__:  # type: ignore[misc]
        raise InvalidError(
            f"{owner} has an __init__: declare what it takes as parameters, as in size: str = nomadfn.parameter(), and "
            f"do the rest in a method with @nomadfn.enter()"
        )


def _marked(user_cls: type, owner: str) -> dict[str, Partial]:
    """What of it is decorated, each with a role. Raises InvalidError."""
    found: dict[str, Partial] = {}
    for base in reversed(user_cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Partial):
                if name in found and found[name].nomadfn_role not in ("", value.nomadfn_role):
                    _refuse_override(owner, name, found[name], f"a @{value.nomadfn_role or 'batched'}")
                found[name] = value
            elif name in found and callable(getattr(value, "__func__", value)):
                _refuse_override(owner, name, found[name], "a method without a decorator")
    for name, one in found.items():
        if one.concurrency is not None:
            raise InvalidError(
                f"{owner}: @concurrent is above its method {name}, and is for the whole class: put it above `class`, "
                f"under @app.cls(...)"
            )
        if one.web is not None and one.nomadfn_role not in ("", METHOD):
            raise InvalidError(f"{owner}: {name} is an @{one.nomadfn_role} method, and cannot answer HTTP as well")
        if one.web is not None and one.batching is not None:
            raise InvalidError(f"{owner}: its method {name} is @batched, and cannot answer HTTP as well; make it two")
        if not one.nomadfn_role:
            one.nomadfn_role = METHOD  # @batched alone says it, and so does what answers HTTP
    return found


def _refuse_override(owner: str, name: str, former: Partial, latter: str) -> None:
    role = former.nomadfn_role or "batched"
    raise InvalidError(
        f"{owner}: {name} is {latter}, and overrides a @{role} of a class above it; put @nomadfn.{role}() above it, "
        f"or call it something else"
    )


def _batching(methods: dict[str, Partial], owner: str) -> dict[str, Any]:
    batched = [name for name, one in methods.items() if one.batching is not None]
    if not batched:
        return {}
    if len(batched) > 1:
        raise InvalidError(
            f"{owner} has {len(batched)} @batched methods, {' and '.join(batched)}; a class has one: make another class"
        )
    if len(methods) > 1:
        others = ", ".join(name for name in methods if name not in batched)
        raise InvalidError(
            f"{owner} has the @batched method {batched[0]}, and others beside it: {others}; a class with a batched "
            f"method has no other: move them to another class"
        )
    return methods[batched[0]].fields()
