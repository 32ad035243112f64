"""`Cron` and `Period`: when a deployed function runs by itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from nomadfn_agent import wire
from nomadfn_agent.context import is_container

from nomadfn.exception import InvalidError


class Schedule:
    """What `@app.function(schedule=…)` takes: a `Cron` or a `Period`."""

    _spec: wire.ScheduleSpec

    def __init__(self) -> None:
        raise InvalidError("a schedule is made by Cron(...) or Period(...)")

    def _take(self, spec: wire.ScheduleSpec) -> None:
        self._spec = spec
        if not is_container():  # It was checked where the app was deployed, and containers have no calendar.
            from nomadfn.core import calendar

            if spec.cron:
                calendar.zone(spec.timezone)
            calendar.check(spec)


class Cron(Schedule):
    """`Cron("0 9 * * 1-5", timezone="Europe/Berlin")`: the times of a cron expression of five fields.

    They are times of day in the time zone, UTC unless another one is named, also where the clocks change. Raises
    InvalidError for what is no expression, never comes, or names an unknown time zone.
    """

    def __init__(self, cron_string: str, timezone: str = "UTC") -> None:
        if not isinstance(cron_string, str) or not cron_string.split():
            raise InvalidError(f'Cron needs a cron expression such as "0 9 * * 1-5", not {cron_string!r}')
        if not isinstance(timezone, str):
            raise InvalidError(f"Cron: timezone must be a name such as Europe/Berlin, not {timezone!r}")
        self._take(wire.ScheduleSpec(cron=" ".join(cron_string.split()), timezone=timezone))

    def __repr__(self) -> str:
        return f"Cron({self._spec.cron!r}, timezone={self._spec.timezone!r})"


class Period(Schedule):
    """`Period(hours=4)`: whenever so much time has passed since the deploy, which begins it anew.

    `seconds` may be a fraction, the others are whole numbers. A month ends on the same day, or the month's last. At
    least a second together; else InvalidError.
    """

    def __init__(
        self,
        *,
        years: int = 0,
        months: int = 0,
        weeks: int = 0,
        days: int = 0,
        hours: int = 0,
        minutes: int = 0,
        seconds: float = 0,
    ) -> None:
        whole = {"years": years, "months": months, "weeks": weeks, "days": days, "hours": hours, "minutes": minutes}
        for name, value in whole.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InvalidError(f"Period: {name}={value!r} must be a whole number, 0 or more")
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < 1e11:
            raise InvalidError(f"Period: seconds={seconds!r} must be a number, 0 or more")
        self._shown = {name: value for name, value in {**whole, "seconds": seconds}.items() if value}
        length_s = hours * 3600 + minutes * 60 + seconds
        self._take(wire.ScheduleSpec(months=12 * years + months, days=7 * weeks + days, seconds=float(length_s)))

    def __repr__(self) -> str:
        return f"Period({', '.join(f'{name}={value!r}' for name, value in self._shown.items())})"


def spec_of(value: Any, function: Callable[..., Any], owner: str) -> wire.ScheduleSpec | None:
    """What `schedule=` of function `owner` says. Raises InvalidError."""
    if value is None:
        return None
    if not isinstance(value, Schedule):
        raise InvalidError(f"function {owner}: schedule={value!r} must be Cron(...) or Period(...)")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidError(f"function {owner} has a schedule, so it cannot be a generator; let it return once")
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is inspect.Parameter.empty and parameter.kind not in kinds:
            raise InvalidError(
                f"function {owner} has a schedule, so it must be callable without arguments; give {parameter.name} a "
                "default, or leave it out"
            )
    return value._spec
