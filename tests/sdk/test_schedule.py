"""What a schedule may be, and on which functions: refused where it is written, with what to do."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from nomadfn_agent.wire import ScheduleSpec

import nomadfn
from nomadfn.exception import InvalidError


def spec(schedule: Any) -> ScheduleSpec:
    found: ScheduleSpec = schedule._spec
    return found


def test_schedules_are_made_as_modals_are() -> None:
    assert spec(nomadfn.Cron("0  9 * * 1-5 ")) == ScheduleSpec(cron="0 9 * * 1-5", timezone="UTC")
    assert spec(nomadfn.Cron("0 6 * * *", timezone="America/New_York")).timezone == "America/New_York"
    assert spec(nomadfn.Cron("5 4 * * *", "Europe/Berlin")).timezone == "Europe/Berlin"
    assert spec(nomadfn.Period(seconds=math.pi)).seconds == math.pi
    assert spec(nomadfn.Period(years=1, months=2)) == ScheduleSpec(months=14)
    everything = nomadfn.Period(weeks=1, days=1, hours=1, minutes=1, seconds=1)
    assert spec(everything) == ScheduleSpec(days=8, seconds=3661)
    assert repr(everything) == "Period(weeks=1, days=1, hours=1, minutes=1, seconds=1)"
    assert repr(nomadfn.Cron("* * * * *")) == "Cron('* * * * *', timezone='UTC')"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: nomadfn.Cron("0 9 * *"), "has 4 fields; a cron expression has five"),
        (lambda: nomadfn.Cron("every day"), "has 2 fields"),
        (lambda: nomadfn.Cron("0 25 * * *"), "is no cron expression: bad hour"),
        (lambda: nomadfn.Cron("0 0 31 2 *"), "bad day-of-month"),
        (lambda: nomadfn.Cron(""), 'Cron needs a cron expression such as "0 9'),
        (lambda: nomadfn.Cron(5), "Cron needs a cron expression"),  # type: ignore[arg-type]
        (lambda: nomadfn.Cron("* * * * *", timezone="Berlin"), "there is no time zone 'Berlin'"),
        (lambda: nomadfn.Period(), "a period must be 1 second or more"),
        (lambda: nomadfn.Period(seconds=0.2), "a period must be 1 second or more"),
        (lambda: nomadfn.Period(minutes=0.5), "minutes=0.5 must be a whole number"),  # type: ignore[arg-type]
        (lambda: nomadfn.Period(hours=-1), "hours=-1 must be a whole number, 0 or more"),
        (lambda: nomadfn.Period(seconds=math.inf), "seconds=inf must be a number"),
        (lambda: nomadfn.Period(seconds=math.nan), "seconds=nan must be a number"),
        (lambda: nomadfn.Period(years=101), "100 years or less"),
    ],
)
def test_a_wrong_schedule_is_refused(make: Any, why: str) -> None:
    with pytest.raises(InvalidError, match=why):
        make()


def define(function: Any, **settings: Any) -> Any:
    return nomadfn.App("a").function(schedule=nomadfn.Period(hours=1), **settings)(function)


def test_a_function_with_a_schedule_needs_no_arguments() -> None:
    def plain() -> None: ...
    def optional(a: int = 1, *more: int, b: int = 2, **named: int) -> None: ...
    async def coroutine() -> None: ...

    for function in (plain, optional, coroutine):
        assert define(function).spec.schedule == ScheduleSpec(seconds=3600)


def test_a_function_that_needs_arguments_or_is_a_generator_is_refused_with_a_schedule() -> None:
    def needs(day: str, hour: int = 1) -> None: ...
    def keyword(*, day: str) -> None: ...
    def generator() -> Any:
        yield 1

    for function in (needs, keyword):
        with pytest.raises(InvalidError, match=f"function {function.__name__} has a schedule.*give day a default"):
            define(function)
    with pytest.raises(InvalidError, match="function generator has a schedule, so it cannot be a generator"):
        define(generator)
    with pytest.raises(InvalidError, match=r"schedule='\* \* \* \* \*' must be Cron"):
        nomadfn.App("a").function(schedule="* * * * *")(keyword)  # type: ignore[arg-type]


def test_a_web_function_cannot_have_a_schedule() -> None:
    def page() -> Any: ...

    with pytest.raises(InvalidError, match="function page: a web function takes requests and cannot have a schedule"):
        define(nomadfn.asgi_app()(page))


def test_a_class_has_no_schedule() -> None:
    class Model:
        @nomadfn.method()
        def run(self) -> None: ...

    with pytest.raises(
        InvalidError, match=r"class Model: a class has no schedule; let an @app.function\(\) with schedule="
    ):
        nomadfn.App("a").cls(schedule=nomadfn.Period(hours=1))(Model)


def test_a_container_needs_no_calendar_for_them() -> None:
    """The image of a container has nomadfn's agent, and no cron library."""
    program = (
        "import sys; sys.modules['cronsim'] = sys.modules['zoneinfo'] = None\n"
        "import nomadfn\n"
        "print(nomadfn.Cron('0 9 * * 1-5', timezone='Europe/Berlin'), 'nomadfn.core' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"NOMADFN_CONTAINER_ID": "ct-1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "Cron('0 9 * * 1-5', timezone='Europe/Berlin') False\n", done.stderr


def test_a_program_without_schedules_loads_nothing_for_them() -> None:
    program = "import sys, nomadfn\ndef f(): ...\nnomadfn.App('a').function()(f)\n"
    program += "print({'cronsim', 'zoneinfo'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr
