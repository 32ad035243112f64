"""Methods of classes as the command line runs them: their arguments and the class's parameters are options alike."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nomadfn.exception import InvalidError

if TYPE_CHECKING:
    from nomadfn.sdk.app import App
    from nomadfn.sdk.cls import Cls

TYPES = {"str": str, "int": int, "bool": bool}


class Method:
    """`FILE::Model.predict`. `raw_f` has a signature with the parameters of the class in front, by name."""

    def __init__(self, app: App, cls: Cls, name: str) -> None:
        self.app = app
        self.name = f"{cls.name}.{name}"
        self._cls = cls
        self._method = name
        self._parameters = {one.name: one for one in cls.spec.parameters} if cls.spec is not None else {}

    @property
    def answers_http(self) -> bool:
        found = self._cls.spec.method(self._method) if self._cls.spec is not None else None
        return found is not None and found.web is not None

    @property
    def raw_f(self) -> Any:
        """Raises InvalidError where an argument has the name of a parameter."""
        from nomadfn.sdk.class_spec import methods_of

        function = methods_of(self._cls.raw_f)[self._method].raw_f

        def method(*args: Any, **kwargs: Any) -> None:
            """Stands in for the method, for its signature."""

        own = list(inspect.signature(function).parameters.values())[1:]
        if both := [one.name for one in own if one.name in self._parameters]:
            raise InvalidError(
                f"{self.name} cannot be run from the command line: {both[0]} is a parameter of its class and an "
                f"argument of the method; call it from a @app.local_entrypoint()"
            )
        first = [self._option(one.name) for one in self._parameters.values() if one.type in TYPES]
        rest = [one for one in own if one.kind is one.VAR_KEYWORD]
        order = [*(one for one in own if one not in rest), *first, *rest]
        method.__signature__ = inspect.Signature(order)  # type: ignore[attr-defined]
        method.__annotations__ = {**typing.get_type_hints(function), **{one.name: one.annotation for one in first}}
        method.__doc__ = inspect.getdoc(function)
        return method

    def _option(self, name: str) -> inspect.Parameter:
        from nomadfn.sdk.parameters import default_of

        spec = self._parameters[name]
        default = inspect.Parameter.empty if spec.default is None else default_of(spec)
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=TYPES[spec.type])

    @property
    def is_generator(self) -> bool:
        spec = self._cls.spec.method(self._method) if self._cls.spec is not None else None
        return spec is not None and spec.is_generator

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        return self._bound(kwargs).remote(*args, **kwargs)

    def remote_gen(self, *args: Any, **kwargs: Any) -> Any:
        return self._bound(kwargs).remote_gen(*args, **kwargs)

    def _bound(self, kwargs: dict[str, Any]) -> Any:
        """The method of the instance with the parameters that are among `kwargs`, which are taken out."""
        parameters = {name: kwargs.pop(name) for name in self._parameters if name in kwargs}
        return getattr(self._cls(**parameters), self._method)


def methods_of(app: App) -> Iterator[Method]:
    for cls in app.registered_classes.values():
        assert cls.spec is not None
        for one in cls.spec.methods:
            yield Method(app, cls, one.name)
