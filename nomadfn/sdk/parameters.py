"""`parameter()`: what an instance of a class is made with, instead of a constructor."""

from __future__ import annotations

import typing
from typing import Any

from nomadfn_agent import instances, wire

from nomadfn.core import variants
from nomadfn.exception import InvalidError

TYPES: dict[object, str] = {str: "str", int: "int", bool: "bool", bytes: "bytes"}


class _NoDefault:
    def __repr__(self) -> str:
        return "no default"


NO_DEFAULT = _NoDefault()


class Parameter:
    """One declared parameter; on an instance its value stands in its place."""

    def __init__(self, default: Any, init: bool) -> None:
        self.default = default
        self.init = init
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        if self.default is NO_DEFAULT:
            raise AttributeError(f"{type(instance).__name__}.{self.name} has no value yet, and no default")
        return self.default


def parameter(*misplaced: Any, default: Any = NO_DEFAULT, init: bool = True) -> Any:
    """Declare a parameter of a class: `size: str = nomadfn.parameter(default="small")`, then `Model(size="large")`.

    Its type is str, int, bool or bytes. Without a default each instance has to be given a value. With `init=False` it
    is no parameter: it only names an attribute, for type checkers, that an `@enter` method sets.
    """
    if misplaced:
        raise InvalidError(f"parameter takes its settings by name: write parameter(default={misplaced[0]!r})")
    if not isinstance(init, bool):
        raise InvalidError(f"parameter(init={init!r}): init must be True or False")
    return Parameter(default, init)


def parameters_of(user_cls: type) -> list[wire.ParameterSpec]:
    """The parameters of a class and of those above it, in the order of their definition. Raises InvalidError."""
    declared: dict[str, Parameter] = {}
    for owner in reversed(user_cls.__mro__):
        for name, value in vars(owner).items():
            if isinstance(value, Parameter):
                declared[name] = value
            else:
                declared.pop(name, None)
    wanted = {name: one for name, one in declared.items() if one.init}
    if not wanted:
        return []
    hints = _hints(user_cls)
    return [_spec(user_cls.__name__, name, one, hints) for name, one in wanted.items()]


def _hints(user_cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(user_cls)
    except Exception as error:
        raise InvalidError(
            f"class {user_cls.__name__}: the annotations of its parameters cannot be read ({error}); use str, int, "
            f"bool or bytes"
        ) from None


def _spec(cls: str, name: str, one: Parameter, hints: dict[str, Any]) -> wire.ParameterSpec:
    if name not in hints:
        raise InvalidError(f"class {cls}: parameter {name} needs a type: write {name}: str = nomadfn.parameter(...)")
    kind = TYPES.get(hints[name])
    if kind is None:
        shown = getattr(hints[name], "__name__", None) or str(hints[name])
        raise InvalidError(
            f"class {cls}: parameter {name} is of type {shown}, and may be str, int, bool or bytes: pass other "
            f"things to the methods, or as text"
        )
    if one.default is NO_DEFAULT:
        return wire.ParameterSpec(name=name, type=kind)
    default = variants.as_text(f"class {cls}: the default of parameter {name}", kind, one.default)
    return wire.ParameterSpec(name=name, type=kind, default=default)


def default_of(spec: wire.ParameterSpec) -> Any:
    """Its default as a value; there has to be one."""
    return instances.value_of(spec.type, spec.default or "")
