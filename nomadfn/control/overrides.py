"""Autoscaler settings that were changed since the deploy: in the registry, under names that people know.

They change by `update_autoscaler`, and where the registry is one that others write, by them: what it shows holds. What
reverts by itself stands there with its time, so that it does under any control service:

    {"min_containers": 2, "temporary": {"max_containers": {"value": 20, "until": "2026-11-27T09:00:00Z"}}}
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from nomadfn.core import live, variants
from nomadfn.core.model import App, Function
from nomadfn.exception import InvalidError

if TYPE_CHECKING:
    from nomadfn.control.service import Service

PREFIX = "overrides/"
SETTINGS = ("min_containers", "max_containers", "buffer_containers", "scaledown_window_s")
TEMPORARY = "temporary"


class Overrides:
    """Between the core and the registry."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._own_writes = 0
        """Those under way from here: what the registry shows meanwhile is older."""
        self._refused: dict[str, str] = {}
        """Why what now stands under a key is not in force."""

    async def keep(self, app: App, function: Function) -> None:
        entry = entry_of(function)
        if entry:
            await self._write(self._service.registry.put, _key(app, function), entry)
        else:
            await self.drop(app, function)

    async def drop(self, app: App, function: Function) -> None:
        await self._write(self._service.registry.delete, _key(app, function))

    async def forget(self, app: App, name: str) -> None:
        """The app has no function of that name any more."""
        await self._write(self._service.registry.delete, _key_of(app, name))

    async def reverted(self, function: Function) -> None:
        """The time of some settings is over."""
        app = self._service.core.state.apps.get(function.app)
        if app is not None and not self._service.address.private:
            await self.keep(app, function)

    async def _write(self, write: Callable[..., None], *what: Any) -> None:
        self._own_writes += 1
        try:
            await asyncio.to_thread(write, *what)
        finally:
            self._own_writes -= 1

    def restore(self) -> None:
        """After a restart: what the registry has. What somebody has broken in it keeps nobody from being served.

        What was to revert meanwhile does so at the first tick, which writes that down, too.
        """
        self._take(self._service.registry.list(PREFIX, self._service.log), 0.0)

    def take(self, entries: dict[str, Any]) -> None:
        """All that the registry has now, whoever wrote it. What is wrong is logged once, and changes nothing."""
        if not self._own_writes:
            self._take(entries, time.time())

    def _take(self, entries: dict[str, Any], wall: float) -> None:
        refused, self._refused = self._refused, {}
        for app in list(self._service.core.state.apps.values()):
            for function in app.functions.values():
                key = _key(app, function)
                if why := self._put_in_force(function, entries.get(key, {}), wall):
                    self._refused[key] = why
                    if refused.get(key) != why:
                        self._service.log(f"{key} in the registry is not taken, and changes nothing: {why}")

    def _put_in_force(self, function: Function, entry: Any, wall: float) -> str:
        """Returns why not, where it must not be."""
        try:
            overrides, temporary = _parse(entry)
            temporary = {name: one for name, one in temporary.items() if one[1] > wall}
            if (overrides, temporary) == (function.overrides, function.temporary):
                return ""
            check_layers(function, overrides, temporary)
        except InvalidError as error:
            return str(error)
        words = [f"{name}={value}" for name, value in sorted(overrides.items())]
        words += [f"{name}={value} for a time" for name, (value, _) in sorted(temporary.items())]
        text = f"autoscaler settings changed: {', '.join(words) or 'all as deployed'}"
        live.put(self._service.core.state, function, overrides, temporary, text)
        self._service.poke()
        return ""


def _key(app: App, function: Function) -> str:
    return _key_of(app, function.spec.name)


def _key_of(app: App, name: str) -> str:
    return f"{PREFIX}{app.name if app.deployed else app.id}/{name}"


def entry_of(function: Function) -> dict[str, Any]:
    """What is changed of a function, as it stands in the registry; empty where nothing is."""
    temporary = {
        name: {"value": value, "until": shown_time(until)} for name, (value, until) in function.temporary.items()
    }
    return {**function.overrides, TEMPORARY: temporary} if temporary else dict(function.overrides)


def shown_time(at: float) -> str:
    """A time of day for people and for JSON, to the second."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _parse(entry: Any) -> tuple[live.Overrides, live.Temporary]:
    """Raises `InvalidError`. Also takes what people wrote before there was `temporary`."""
    if not isinstance(entry, dict) or set(entry) - {*SETTINGS, TEMPORARY}:
        raise InvalidError(f"overrides are an object with some of {', '.join((*SETTINGS, TEMPORARY))}, not {entry!r}")
    overrides = {name: entry[name] for name in SETTINGS if name in entry}
    timed = entry.get(TEMPORARY, {})
    if not isinstance(timed, dict) or set(timed) - set(SETTINGS):
        raise InvalidError(f"{TEMPORARY} is an object with some of {', '.join(SETTINGS)}, not {timed!r}")
    return overrides, {name: _parse_temporary(name, one) for name, one in timed.items()}


def _parse_temporary(name: str, one: Any) -> tuple[Any, float]:
    try:
        value, until = one["value"], one["until"]
        at = until if isinstance(until, int | float) else datetime.fromisoformat(until).timestamp()
        return value, float(at)
    except (TypeError, KeyError, ValueError):
        example = '{"value": 20, "until": "2026-11-27T09:00:00Z"}'
        raise InvalidError(f"{TEMPORARY} {name} must be like {example}, not {one!r}") from None


def check_layers(function: Function, overrides: live.Overrides, temporary: live.Temporary) -> None:
    """Both what is in force now and what will be when all that is temporary has reverted must be sound."""
    base = msgspec.structs.asdict(function.spec.autoscaler) | overrides
    now = base | {name: value for name, (value, _) in temporary.items()}
    check_settings(function.spec.name, now)
    if variants.is_open(function.spec) and (base["min_containers"] or now["min_containers"]):
        name = function.spec.name
        raise InvalidError(
            f"class {name} has parameters without a default, and keeps no containers without them; change the "
            f"settings of one with parameters: {name}(...).update_autoscaler(...)"
        )
    if temporary:
        check_settings(f"{function.spec.name}, when what is temporary has reverted", base)


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
