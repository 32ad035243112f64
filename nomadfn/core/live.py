"""Live settings: what was changed of a function's autoscaler since the deploy, and what reverts before the next one.

    in force  =  the decorator's settings  <  overrides, until the next deploy  <  temporary ones, until their time

A plain change takes the place of a temporary one of the same setting. Times here are the wall clock's (`wall`), not
the core's own: they are written down, and outlast the service that was asked for them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from nomadfn_agent import wire

from .effects import FunctionChanged, Notice, SettingsReverted
from .model import Function
from .state import State

Overrides = dict[str, Any]
Temporary = dict[str, tuple[Any, float]]
"""By setting: its value, and until when."""


def changed(
    function: Function, settings: Mapping[str, Any], until: float | None = None, reset: Collection[str] = ()
) -> tuple[Overrides, Temporary]:
    """What would stand after a change: `settings` for good or `until` a time, and `reset` as the deploy has them."""
    overrides = {name: value for name, value in function.overrides.items() if name not in reset}
    temporary = {name: one for name, one in function.temporary.items() if name not in reset}
    for name, value in settings.items():
        if until is None:
            overrides[name] = value
            temporary.pop(name, None)
        else:
            temporary[name] = value, until
    return overrides, temporary


def put(state: State, function: Function, overrides: Overrides, temporary: Temporary, text: str) -> None:
    """Put them in force, in place of those that were; `text` says so to who watches the app."""
    function.overrides, function.temporary = overrides, temporary
    if temporary:
        state.temporary[function.id] = function
    _tell(state, function, text)


def change(
    state: State,
    function: Function,
    settings: Mapping[str, Any],
    until: float | None = None,
    reset: Collection[str] = (),
) -> wire.AutoscalerSettings:
    """Change settings; what is absent stays as it is. Returns those now in force."""
    overrides, temporary = changed(function, settings, until, reset)
    words = [f"{name}={value}" for name, value in sorted(settings.items())]
    words += [f"{name} as deployed" for name in sorted(reset)]
    for_a_time = " for a time" if until is not None else ""
    put(state, function, overrides, temporary, f"autoscaler settings changed{for_a_time}: {', '.join(words)}")
    return function.settings


def expire(state: State, wall: float) -> None:
    """Take back what was changed until a time that has come."""
    for function in list(state.temporary.values()):
        over = {name: value for name, (value, until) in function.temporary.items() if until <= wall}
        if over:
            for name in over:
                del function.temporary[name]
            now_in_force = [f"{name}={getattr(function.settings, name)}" for name in sorted(over)]
            _tell(state, function, f"autoscaler settings reverted, their time is over: {', '.join(now_in_force)}")
            state.effects.append(SettingsReverted(function))
        if not function.temporary or state.functions.get(function.id) is not function:
            del state.temporary[function.id]


def next_end(state: State) -> float:
    """When the next setting reverts (wall clock); infinite while none does."""
    ends = (until for function in state.temporary.values() for _, until in function.temporary.values())
    return min(ends, default=float("inf"))


def _tell(state: State, function: Function, text: str) -> None:
    function.next_decision = 0.0
    state.touch(function)
    state.effects.append(FunctionChanged(function))
    state.effects.append(Notice(function.app, function.spec.name, text))
