"""What can be asked of a function's live settings by name: `function.scale`, and what they are."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import msgspec

from nomadfn.control.overrides import SETTINGS, check_layers, entry_of
from nomadfn.control.tokens import Identity
from nomadfn.core import live
from nomadfn.core.model import Function
from nomadfn.exception import InvalidError

if TYPE_CHECKING:
    from nomadfn.control.operations import Operations
    from nomadfn.control.service import Service

LONGEST_S = 30 * 86_400.0
"""A change that is to hold for longer is one until the next deploy."""


class LiveSettings:
    """A part of `Operations`, with the same form of a method."""

    def __init__(self, service: Service, operations: Operations) -> None:
        self._service = service
        self._operations = operations
        operations.add("function.scale", self._scale)
        operations.add("function.settings", self._settings)

    async def _settings(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        function = self._service.core.function(str(body["function_id"]))
        identity.require_app(function.app)
        return in_force(function)

    async def _scale(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        """Change what is named, put `reset` back as it was deployed; all of it only for `for_s` seconds, if given."""
        function = self._service.core.function(str(body["function_id"]))
        identity.require_app(function.app)
        changes = {name: body[name] for name in SETTINGS if name in body}
        reset = _reset(body.get("reset", []), changes)
        until = _until(body.get("for_s"))
        if until is not None and not changes:
            raise InvalidError(f"{function.spec.name}: `for` goes with settings to change, for example min_containers")
        if isinstance(changes.get("scaledown_window_s"), int):
            changes["scaledown_window_s"] = float(changes["scaledown_window_s"])
        check_layers(function, *live.changed(function, changes, until, reset))
        self._service.core.override(function.id, changes, until, reset)
        self._service.poke()
        if not self._service.address.private:
            await self._operations.overrides.keep(self._service.core.state.apps[function.app], function)
        return in_force(function)


def in_force(function: Function) -> dict[str, Any]:
    """The settings in force, and what is changed of them since the deploy."""
    settings: dict[str, Any] = msgspec.to_builtins(function.settings)
    return {**settings, "changed": entry_of(function)}


def _reset(names: Any, changes: dict[str, Any]) -> list[str]:
    if not isinstance(names, list | tuple) or set(names) - set(SETTINGS):
        raise InvalidError(f"reset is a list with some of {', '.join(SETTINGS)}, not {names!r}")
    if both := sorted(set(names) & set(changes)):
        raise InvalidError(f"{both[0]} cannot be changed and reset at once")
    return list(names)


def _until(for_s: Any) -> float | None:
    if for_s is None:
        return None
    if isinstance(for_s, bool) or not isinstance(for_s, int | float) or not 1 <= for_s <= LONGEST_S:
        raise InvalidError(f"a change can be for 1 second to {LONGEST_S / 86_400:g} days, not for {for_s!r} seconds")
    return float(math.ceil(time.time() + for_s))
