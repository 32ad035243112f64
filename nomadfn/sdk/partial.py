"""The decorators that stand under `@app.function(...)` or in a class: `@concurrent`, `@batched`, `@method`, …

Each leaves a `Partial` around the function, with what it says; `@app.function` or `@app.cls` takes it from there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from nomadfn_agent import wire

from nomadfn.exception import InvalidError

if TYPE_CHECKING:
    from .function import Function

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

MAX_BATCH_SIZE = 1_000
MAX_WAIT_MS = 600_000
BATCH_ERRORS = ("fail", "bisect")
_ABOVE = "put it between `def` and @app.function(...), under the latter"
METHOD, ENTER, EXIT = "method", "enter", "exit"
INSTANCE = "_nomadfn_obj"
"""Where an instance of a user's class keeps the `Obj` that gives its methods."""


class Partial:
    """A function with what was said of it before `@app.function` came."""

    def __init__(self, raw_f: Callable[..., Any]) -> None:
        self.raw_f = raw_f
        self.concurrency: tuple[int, int | None] | None = None
        """`max_inputs` and `target_inputs`."""
        self.batching: tuple[int, int] | None = None
        """`max_batch_size` and `wait_ms`."""
        self.on_batch_error = BATCH_ERRORS[0]
        self.web: wire.WebSpec | None = None
        self.nomadfn_role = ""
        """In a class: `method`, `enter` or `exit`; a container knows it by this name."""
        self.snap = False

    @property
    def name(self) -> str:
        return getattr(self.raw_f, "__name__", repr(self.raw_f))

    def fields(self) -> dict[str, Any]:
        """Its part of a `FunctionSpec`."""
        fields: dict[str, Any] = {}
        if self.concurrency is not None:
            fields["max_inputs"], fields["target_inputs"] = self.concurrency
        if self.batching is not None:
            fields["max_batch_size"], fields["batch_wait_ms"] = self.batching
            fields["on_batch_error"] = self.on_batch_error
        if self.web is not None:
            fields["web"] = self.web
        return fields

    @property
    def kind(self) -> str:
        return "class" if self.is_class else "function"

    @property
    def is_class(self) -> bool:
        return inspect.isclass(self.raw_f)

    def refuse_outside_class(self) -> None:
        """What `@app.function` says to a decorator that is for methods. Raises InvalidError."""
        if self.nomadfn_role:
            raise InvalidError(
                f"function {self.name}: @{self.nomadfn_role} is for methods of a class with @app.cls(); leave it out"
            )

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """On an instance of a class of an app a method can be called as from outside, `self.f.remote(...)`."""
        if instance is None:
            return self
        if self.nomadfn_role == METHOD:
            from .cls import obj_of

            if (obj := obj_of(instance)) is not None:
                return getattr(obj, self.name)
        return self.raw_f.__get__(instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise InvalidError(f"{self.name} is no function of an app yet: put @app.function() above its other decorators")


def concurrent(*misplaced: Any, max_inputs: int | None = None, target_inputs: int | None = None) -> Callable[[F], F]:
    """Let each container run up to `max_inputs` inputs at once: plain functions in threads, coroutines as tasks.

    The autoscaler aims at `target_inputs` a container (`max_inputs` unless given) and fills containers up to
    `max_inputs` while new ones start. Stands under `@app.function(...)` or `@app.cls(...)`. Raises InvalidError.
    """
    _needs_parentheses("concurrent", "max_inputs=10", misplaced)
    check_concurrency("@concurrent", max_inputs, target_inputs)

    def decorate(function: F) -> F:
        partial = _partial(function, "concurrent", for_classes=True)
        if partial.concurrency is not None:
            raise InvalidError(f"{partial.kind} {partial.name}: it has @concurrent twice; leave one out")
        partial.concurrency = (max_inputs, target_inputs)  # type: ignore[assignment]
        return partial  # type: ignore[return-value]

    return decorate


def batched(
    *misplaced: Any, max_batch_size: int | None = None, wait_ms: int | None = None, on_batch_error: str = "fail"
) -> Callable[[F], F]:
    """Run inputs in batches: callers pass single items, the function gets a list for each parameter.

    It returns a list of the same length, whose items are the results; an exception in it is raised for that caller
    alone. A batch has at most `max_batch_size` inputs (1 to 1,000) and runs once it is full, or `wait_ms`
    milliseconds (0 to 600,000) after its first input came. Where the function raises, all inputs of the batch fail;
    with `on_batch_error="bisect"` it is called again with each half, and so on, until the inputs that fail alone have
    failed alone. Stands under `@app.function(...)`, or above a method of a class, which has no other one then. Raises
    InvalidError.
    """
    _needs_parentheses("batched", "max_batch_size=32, wait_ms=100", misplaced)
    check_batching("@batched", max_batch_size, wait_ms)
    if on_batch_error not in BATCH_ERRORS:
        raise InvalidError(f"@batched: on_batch_error={on_batch_error!r} must be 'fail' or 'bisect'")

    def decorate(function: F) -> F:
        partial = _partial(function, "batched")
        if partial.batching is not None:
            raise InvalidError(f"function {partial.name}: it has @batched twice; leave one out")
        if partial.web is None:
            _check_batched_signature(partial)
        partial.batching = (max_batch_size, wait_ms)  # type: ignore[assignment]
        partial.on_batch_error = on_batch_error
        return partial  # type: ignore[return-value]

    return decorate


def method(*misplaced: Any, is_generator: bool | None = None) -> Callable[[Callable[..., R]], Function[..., R]]:
    """Make a method of a class with `@app.cls()` callable from outside: `Model().predict.remote(...)`."""
    _needs_parentheses("method", "", misplaced)

    def decorate(function: Callable[..., R]) -> Function[..., R]:
        partial = _lifecycle(function, METHOD)
        generates = inspect.isgeneratorfunction(partial.raw_f) or inspect.isasyncgenfunction(partial.raw_f)
        if is_generator is not None and bool(is_generator) != generates:
            raise InvalidError(
                f"method {partial.name}: is_generator={is_generator!r}, and it {'yields' if generates else 'returns'}; "
                f"leave is_generator out"
            )
        return partial  # type: ignore[return-value]

    return decorate


def enter(*misplaced: Any, snap: bool = False) -> Callable[[F], F]:
    """Call this method of a class once in each container, before its first input; it may be async.

    Those with `snap=True` are called before the others. Should one raise, another container is tried, and after
    three of them the inputs that wait fail with what was raised.
    """
    _needs_parentheses("enter", "", misplaced)
    if not isinstance(snap, bool):
        raise InvalidError(f"@enter(snap={snap!r}): snap must be True or False")

    def decorate(function: F) -> F:
        partial = _lifecycle(function, ENTER)
        partial.snap = snap
        return partial  # type: ignore[return-value]

    return decorate


def exit(*misplaced: Any) -> Callable[[F], F]:
    """Call this method of a class once in each container, when it ends; it may be async, and has 20 seconds."""
    _needs_parentheses("exit", "", misplaced)

    def decorate(function: F) -> F:
        return _lifecycle(function, EXIT)  # type: ignore[return-value]

    return decorate


def _lifecycle(function: Any, role: str) -> Partial:
    """A method with its role. Raises InvalidError for what cannot have it."""
    if isinstance(function, (staticmethod, classmethod)):
        kind = type(function).__name__
        raise InvalidError(f"method {function.__name__}: @{role} is for methods with self, and it is a @{kind}")
    partial = _partial(function, role)
    former = partial.nomadfn_role
    if former == role:
        raise InvalidError(f"method {partial.name}: it has @{role} twice; leave one out")
    if former:
        raise InvalidError(f"method {partial.name}: it has @{former} and @{role}; a method is one of them")
    if role != METHOD and (partial.batching or partial.concurrency):
        raise InvalidError(f"method {partial.name}: @{role} cannot be combined with @batched or @concurrent")
    if role != METHOD:
        if inspect.isgeneratorfunction(partial.raw_f) or inspect.isasyncgenfunction(partial.raw_f):
            raise InvalidError(f"method {partial.name}: @{role} is for methods that return, and it yields")
        taken = list(inspect.signature(partial.raw_f).parameters.values())[1:]
        if any(one.default is one.empty and one.kind is not one.VAR_KEYWORD for one in taken):
            raise InvalidError(
                f"method {partial.name}: @{role} calls it without arguments, and it takes {taken[0].name}; give the "
                f"class a parameter instead: {taken[0].name}: str = nomadfn.parameter()"
            )
    partial.nomadfn_role = role
    return partial


def check_concurrency(owner: str, max_inputs: object, target_inputs: object) -> None:
    """Raises InvalidError unless 1 <= target_inputs <= max_inputs, or no target is given."""
    if max_inputs is None:
        raise InvalidError(f"{owner} needs max_inputs=, how many inputs a container runs at once")
    for name, value in (("max_inputs", max_inputs), ("target_inputs", target_inputs)):
        if value is not None and (not _is_int(value) or value < 1):  # type: ignore[operator]
            raise InvalidError(f"{owner}: {name}={value!r} must be a whole number, 1 or more")
    if target_inputs is not None and target_inputs > max_inputs:  # type: ignore[operator]
        raise InvalidError(
            f"{owner}: target_inputs={target_inputs} is more than max_inputs={max_inputs}; "
            f"raise max_inputs or lower target_inputs"
        )


def check_batching(owner: str, max_batch_size: object, wait_ms: object) -> None:
    """Raises InvalidError unless both are given and within their ranges."""
    for name, value, low, high in (
        ("max_batch_size", max_batch_size, 1, MAX_BATCH_SIZE),
        ("wait_ms", wait_ms, 0, MAX_WAIT_MS),
    ):
        if value is None:
            raise InvalidError(f"{owner} needs {name}=, from {low} to {high:,}")
        if not _is_int(value) or not low <= value <= high:  # type: ignore[operator]
            raise InvalidError(f"{owner}: {name}={value!r} must be a whole number from {low} to {high:,}")


def _check_batched_signature(partial: Partial) -> None:
    """Every parameter becomes a list, so each has to be given by every caller."""
    function = partial.raw_f
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidError(
            f"function {partial.name}: a generator cannot be @batched; return a list, one result for each input"
        )
    parameters = list(inspect.signature(function).parameters.values())
    if "." in function.__qualname__.rpartition("<locals>.")[2]:
        del parameters[:1]  # self
    if not parameters:
        raise InvalidError(f"function {partial.name}: a @batched function needs a parameter, the list of its inputs")
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise InvalidError(
                f"function {partial.name}: a @batched function cannot have {parameter}; name each parameter, "
                f"which gets a list"
            )
        if parameter.default is not parameter.empty:
            raise InvalidError(
                f"function {partial.name}: a @batched function cannot have a default for {parameter.name!r}; "
                f"leave it out and let callers give the value"
            )


def _partial(function: Any, decorator: str, *, for_classes: bool = False) -> Partial:
    from .cls import Cls
    from .function import Function

    if isinstance(function, Partial):
        if function.is_class and not for_classes:
            raise InvalidError(f"class {function.name}: @{decorator} is for a method; put it above one of the class")
        if function.nomadfn_role in (ENTER, EXIT) and decorator in ("batched", "concurrent"):
            raise InvalidError(
                f"method {function.name}: @{function.nomadfn_role} cannot be combined with @{decorator}; leave one out"
            )
        return function
    if isinstance(function, Cls):
        raise InvalidError(
            f"class {function.name}: @{decorator} stands above @app.cls(...); put it between `class` and @app.cls(...)"
        )
    if isinstance(function, Function):
        raise InvalidError(f"function {function.name}: @{decorator} stands above @app.function(...); {_ABOVE}")
    if inspect.isclass(function):
        if for_classes:
            return Partial(function)
        raise InvalidError(f"class {function.__name__}: @{decorator} is for a method; put it above one of the class")
    if not inspect.isfunction(function):
        raise InvalidError(f"@{decorator} needs a function that is defined with `def`, not {function!r}")
    return Partial(function)


def _needs_parentheses(decorator: str, example: str, misplaced: tuple[Any, ...]) -> None:
    if not misplaced:
        return
    if len(misplaced) == 1 and callable(misplaced[0]):
        name = getattr(misplaced[0], "__name__", "f")
        raise InvalidError(f"function {name}: @{decorator} needs parentheses: write @{decorator}({example})")
    raise InvalidError(f"@{decorator} takes its settings by name: write @{decorator}({example})")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
