"""Autoscaler settings that were changed since the deploy: in the registry, under names that people know.

They change by `update_autoscaler`, and where the registry is one that others write, by them: what it shows holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from nomadfn.core.model import App, Function
from nomadfn.exception import InvalidError

if TYPE_CHECKING:
    from nomadfn.control.service import Service

PREFIX = "overrides/"
SETTINGS = ("min_containers", "max_containers", "buffer_containers", "scaledown_window_s")


class Overrides:
    """Between the core and the registry."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._own_writes = 0
        """Those under way from here: what the registry shows meanwhile is older."""
        self._refused: dict[str, str] = {}
        """Why what now stands under a key is not in force."""

    async def keep(self, app: App, function: Function) -> None:
        await self._write(self._service.registry.put, _key(app, function), function.overrides)

    async def drop(self, app: App, function: Function) -> None:
        await self._write(self._service.registry.delete, _key(app, function))

    async def _write(self, write: Callable[..., None], *what: Any) -> None:
        self._own_writes += 1
        try:
            await asyncio.to_thread(write, *what)
        finally:
            self._own_writes -= 1

    def restore(self) -> None:
        """After a restart: what the registry has. What somebody has broken in it keeps nobody from being served."""
        self.take(self._service.registry.list(PREFIX, self._service.log))

    def take(self, entries: dict[str, Any]) -> None:
        """All that the registry has now, whoever wrote it. What is wrong is logged once, and changes nothing."""
        if self._own_writes:
            return
        refused, self._refused = self._refused, {}
        for app in list(self._service.core.state.apps.values()):
            for function in app.functions.values():
                key = _key(app, function)
                wanted = entries.get(key, {})
                if function.overrides == wanted:
                    continue
                if why := self._put_in_force(function, wanted):
                    self._refused[key] = why
                    if refused.get(key) != why:
                        self._service.log(f"{key} in the registry is not taken, and changes nothing: {why}")

    def _put_in_force(self, function: Function, wanted: Any) -> str:
        """Returns why not, where it must not be."""
        try:
            if not isinstance(wanted, dict) or set(wanted) - set(SETTINGS):
                raise InvalidError(f"overrides are an object with some of {', '.join(SETTINGS)}, not {wanted!r}")
            check_settings(function.spec.name, {**msgspec.structs.asdict(function.spec.autoscaler), **wanted})
        except InvalidError as error:
            return str(error)
        function.overrides = {}
        self._service.core.override(function.id, dict(wanted))
        self._service.poke()
        return ""


def _key(app: App, function: Function) -> str:
    return f"{PREFIX}{app.name if app.deployed else app.id}/{function.spec.name}"


def check_settings(function: str, settings: dict[str, Any]) -> None:
    """The rules of the decorator, for settings that change while the function runs. Raises `InvalidError`."""
    low, high = settings["min_containers"], settings["max_containers"]
    for name in ("min_containers", "buffer_containers"):
        if type(settings[name]) is not int or settings[name] < 0:
            raise InvalidError(f"{function}: {name} must be a whole number of 0 or more, not {settings[name]!r}")
    if high is not None and (type(high) is not int or high < 1):
        raise InvalidError(f"{function}: max_containers must be a whole number of 1 or more, or none, not {high!r}")
    if high is not None and low > high:
        raise InvalidError(f"{function}: min_containers={low} is more than max_containers={high}")
    window = settings["scaledown_window_s"]
    if type(window) not in (int, float) or not 2 <= window <= 3600:
        raise InvalidError(f"{function}: scaledown_window must be between 2 and 3600 seconds, not {window!r}")
