"""When a schedule is due, over months and where the clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nomadfn_agent.wire import ScheduleSpec

from nomadfn.core.calendar import check, next_after, shown, zone
from nomadfn.exception import InvalidError

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/St_Johns", "Pacific/Apia"]
CRONS = [
    "0 9 * * 1-5",
    "30 2 * * *",
    "*/15 * * * *",
    "0 */6 * * *",
    "45 1 * * 0",
    "0 0 29 2 *",
    "5 4 1,15 * *",
    "0 * * * *",
]
YEAR = 365 * 86_400
TIMES = st.floats(1_500_000_000, 2_200_000_000)
"""From 2017 to 2039."""


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def cron(text: str, timezone: str = "UTC") -> ScheduleSpec:
    return ScheduleSpec(cron=text, timezone=timezone)


def following(spec: ScheduleSpec, after: float, count: int, since: float = 0.0) -> list[str]:
    found = []
    for _ in range(count):
        due = next_after(spec, since, after)
        assert due is not None
        after = due
        found.append(datetime.fromtimestamp(due, UTC).isoformat(timespec="minutes").removesuffix("+00:00"))
    return found


@given(TIMES, st.sampled_from(CRONS), st.sampled_from(ZONES))
def test_a_cron_time_is_later_matches_and_is_the_same_from_any_moment_before_it(
    after: float, text: str, timezone: str
) -> None:
    spec = cron(text, timezone)
    due = next_after(spec, 0.0, after)
    assert due is not None
    assert due > after
    assert due == int(due)
    assert next_after(spec, 0.0, (after + due) / 2) == due, "nothing is due in between"
    assert next_after(spec, 0.0, due - 0.001) == due
    assert next_after(spec, 0.0, due) != due
    # Within the hours of a change of the clocks it may stand for a time that is not there.
    local = datetime.fromtimestamp(due, ZoneInfo(timezone))
    if local.utcoffset() == (local - timedelta(hours=4)).utcoffset() and text == "0 9 * * 1-5":
        assert (local.hour, local.minute) == (9, 0)
        assert local.weekday() < 5


PERIODS = st.builds(
    ScheduleSpec,
    months=st.integers(0, 30),
    days=st.integers(0, 40),
    seconds=st.floats(1, 200_000).map(lambda s: round(s, 3)),
)


@given(TIMES, PERIODS, st.floats(0, 3 * YEAR))
def test_a_period_counts_from_its_start_whenever_it_is_asked(since: float, spec: ScheduleSpec, passed: float) -> None:
    due = next_after(spec, since, since + passed)
    assert due is not None
    assert due > since + passed
    assert next_after(spec, since, (since + passed + due) / 2) == due
    following = next_after(spec, since, due)
    assert following is not None
    length_s = spec.months * 30.436875 * 86_400 + spec.days * 86_400 + spec.seconds
    assert abs(following - due - length_s) < 4 * 86_400 if spec.months else abs(following - due - length_s) < 1e-3


@given(TIMES, st.floats(1, 100_000))
def test_periods_do_not_drift(since: float, seconds: float) -> None:
    spec = ScheduleSpec(seconds=seconds)
    far = next_after(spec, since, since + 10_000 * seconds + seconds / 2)
    assert far is not None
    assert abs(far - (since + 10_001 * seconds)) < 1e-3


def test_a_month_ends_on_the_same_day_or_the_last_one() -> None:
    since = at("2027-10-31T12:00Z")
    expected = ["2027-11-30T12:00", "2027-12-31T12:00", "2028-01-31T12:00", "2028-02-29T12:00", "2028-03-31T12:00"]
    assert following(ScheduleSpec(months=1), since, 5, since) == expected


def test_what_falls_into_the_hour_that_is_left_out_runs_right_after_it() -> None:
    spec = cron("30 2 * * *", "Europe/Berlin")  # On 2027-03-28 the clock goes from 2:00 to 3:00.
    expected = ["2027-03-27T01:30", "2027-03-28T01:00", "2027-03-29T00:30"]
    assert following(spec, at("2027-03-26T12:00Z"), 3) == expected


def test_what_falls_into_the_hour_that_comes_twice_runs_once() -> None:
    spec = cron("30 2 * * *", "Europe/Berlin")  # On 2027-10-31 the clock goes from 3:00 back to 2:00.
    expected = ["2027-10-30T00:30", "2027-10-31T00:30", "2027-11-01T01:30"]
    assert following(spec, at("2027-10-29T12:00Z"), 3) == expected
    assert following(spec, at("2027-10-31T01:10Z"), 1) == ["2027-11-01T01:30"], "also from within its second half"


def test_what_runs_every_hour_or_more_often_goes_on_evenly() -> None:
    spec = cron("*/30 * * * *", "America/New_York")
    for day in ("2027-03-14", "2027-11-07"):
        dues = [at(one + "Z") for one in following(spec, at(f"{day}T03:00Z"), 16)]
        assert {later - earlier for earlier, later in pairwise(dues)} == {1800}


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (cron("0 9 * *"), "has 4 fields; a cron expression has five"),
        (cron("* * * * * *"), "has 6 fields"),
        (cron("61 * * * *"), "'61 [*] [*] [*] [*]' is no cron expression: bad minute"),
        (cron("@daily"), "has 1 fields"),
        (cron("0 0 30 2 *"), "is no cron expression: bad day-of-month"),
        (cron("0 0 * 2 MON#9"), "is no cron expression"),
        (ScheduleSpec(), "a period must be 1 second or more"),
        (ScheduleSpec(seconds=0.5), "a period must be 1 second or more"),
        (ScheduleSpec(days=-1, seconds=90_000), "a period must be 1 second or more"),
        (ScheduleSpec(months=1300), "100 years or less"),
    ],
)
def test_a_schedule_that_means_nothing_is_refused(spec: ScheduleSpec, why: str) -> None:
    with pytest.raises(InvalidError, match=why):
        check(spec)


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "Europe"])
def test_an_unknown_time_zone_is_refused(name: str) -> None:
    with pytest.raises(InvalidError, match=r"there is no time zone .* names are like America/New_York"):
        zone(name)


def test_schedules_are_shown_in_words() -> None:
    assert shown(cron("0 9 * * 1-5", "Europe/Berlin")) == "cron 0 9 * * 1-5 (Europe/Berlin)"
    assert shown(ScheduleSpec(seconds=7200)) == "every 2 hours"
    assert shown(ScheduleSpec(months=1, days=2, seconds=3661.5)) == "every 1 month 2 days 1 hour 1 minute 1.5 seconds"
