"""When a function that runs by itself is due: the next time after a given one, in unix seconds of the wall clock.

A cron expression means the times of day of its time zone, also where the clocks change: what would fall into the hour
that is left out runs right after it, and what falls into the hour that comes twice runs once; an expression for every
hour or less goes on evenly. A period counts from its start, so that what runs late moves nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import inf
from typing import TYPE_CHECKING

from nomadfn_agent.wire.specs import ScheduleSpec

from ..exception import InvalidError

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from .model import Function

MIN_PERIOD_S = 1.0
MONTH_S = 30.436875 * 86_400
"""Of the average month."""
FAR = 253_402_214_400.0
"""The end of the calendar, nearly: nothing is due after it."""


class Schedule:
    """A deployed function that runs by itself. Times are the wall clock's."""

    __slots__ = ("after", "due", "function", "since", "spec")

    def __init__(self, function: Function, spec: ScheduleSpec, since: float) -> None:
        self.function = function
        self.spec = spec
        self.since = since
        """When a period began to count."""
        self.after = since
        """Up to then everything that was due is done."""
        self.due = inf


def check(spec: ScheduleSpec) -> None:
    """Raises `InvalidError` for a schedule that means nothing, or never comes."""
    if not spec.cron:
        _check_period(spec)
        return
    from cronsim import CronSimError

    fields = spec.cron.split()
    if len(fields) != 5:
        raise InvalidError(
            f"{spec.cron!r} has {len(fields)} fields; a cron expression has five: minute, hour, day of the month, "
            'month, day of the week, such as "0 9 * * 1-5"'
        )
    try:
        due = next_after(spec, 0.0, 1_700_000_000.0)
    except CronSimError as error:
        raise InvalidError(f"{spec.cron!r} is no cron expression: {str(error).lower()}") from None
    if due is None:
        raise InvalidError(f"{spec.cron!r} never comes: there is no such day")


def _check_period(spec: ScheduleSpec) -> None:
    length_s = spec.months * MONTH_S + spec.days * 86_400 + spec.seconds
    if min(spec.months, spec.days, spec.seconds) < 0 or not length_s >= MIN_PERIOD_S:
        raise InvalidError(f"a period must be {MIN_PERIOD_S:g} second or more, such as Period(minutes=5)")
    if length_s > 1200 * MONTH_S:
        raise InvalidError("a period must be 100 years or less")


def zone(name: str) -> ZoneInfo:
    """Raises `InvalidError` for a time zone that is not known here."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        raise InvalidError(
            f"there is no time zone {name!r} on this machine; names are like America/New_York and Europe/Berlin. "
            "Should it have no time zones at all, install the package tzdata"
        ) from None


def next_after(spec: ScheduleSpec, since: float, after: float) -> float | None:
    """The first due time after `after`, or None where there is none. A period counts from `since`."""
    return _next_cron(spec, after) if spec.cron else _next_period(spec, since, after)


def _next_cron(spec: ScheduleSpec, after: float) -> float | None:
    from cronsim import CronSim

    for due in CronSim(spec.cron, datetime.fromtimestamp(after, zone(spec.timezone))):
        # In the hour that comes twice the first one is meant, which may be over.
        if due.timestamp() > after:
            return due.timestamp()
    return None


def _next_period(spec: ScheduleSpec, since: float, after: float) -> float | None:
    length_s = spec.months * MONTH_S + spec.days * 86_400 + spec.seconds
    # A month is up to three days shorter or longer than the average, however many there are.
    count = max(1, int((after - since - 4 * 86_400 * (spec.months > 0)) / length_s))
    while (due := _step(spec, since, count)) <= after:
        count += 1
    return due if due < FAR else None


def _step(spec: ScheduleSpec, since: float, count: int) -> float:
    """The end of the period with this number."""
    rest_s = count * (spec.days * 86_400 + spec.seconds)
    if not spec.months:
        return since + rest_s
    start = datetime.fromtimestamp(since, UTC)
    years, month = divmod(start.month - 1 + count * spec.months, 12)
    if start.year + years > 9998:
        return FAR
    first = start.replace(year=start.year + years, month=month + 1, day=1)
    last_day = (first.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
    whole = first.replace(day=min(start.day, last_day.day))
    return whole.timestamp() + rest_s


def shown(spec: ScheduleSpec) -> str:
    """`cron 0 9 * * 1-5 (UTC)`, `every 2 hours`."""
    if spec.cron:
        return f"cron {spec.cron} ({spec.timezone})"
    parts = [_count(spec.months, "month"), _count(spec.days, "day")]
    rest_s = spec.seconds
    for size_s, unit in ((3600, "hour"), (60, "minute")):
        parts.append(_count(int(rest_s // size_s), unit))
        rest_s %= size_s
    parts.append(_count(round(rest_s, 6), "second"))
    return "every " + " ".join(part for part in parts if part)


def _count(number: float, unit: str) -> str:
    return "" if not number else f"{number:g} {unit}{'s' if number != 1 else ''}"


def shown_time(at: float) -> str:
    """A time of day to the second, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
