"""Functions that run by themselves: once for each due time, whatever becomes of the control service."""

from __future__ import annotations

import random
from typing import Any

import pytest
from nomadfn_agent import wire
from nomadfn_agent.wire import outcome

from nomadfn.core import effects, records, schedules
from nomadfn.core.core import Core
from nomadfn.core.limits import Limits
from nomadfn.core.schedules import MAX_WAITING, NO_ARGUMENTS, SCHEDULER, call_id

APP = "ap-1"
ID = "ap-1/f"
START = 1_800_000_000.0
"""Friday, 2027-01-15, 8:00."""
EVERY_MINUTE = wire.ScheduleSpec(cron="* * * * *")
EVERY_10_S = wire.ScheduleSpec(seconds=10)


class Leaders:
    """One deployed app over several control services, its journal, and what the registry has of it."""

    def __init__(self, schedule: wire.ScheduleSpec | None, limits: Limits | None = None) -> None:
        self.now = START
        self.limits = limits
        self.journal: list[records.Record] = []
        self.fired: list[records.Fired] = []
        self.seen: list[effects.Effect] = []
        self.core = Core(limits)
        self.deploy(schedule)

    def deploy(self, schedule: wire.ScheduleSpec | None) -> None:
        self.spec = wire.AppSpec(name="app", functions=[wire.FunctionSpec(name="f", schedule=schedule)])
        self.core.deploy(self.now, APP, self.spec, 1, self.now)
        self.deployed_at = self.now

    def keep(self, taken: list[records.Record]) -> None:
        self.journal += taken
        self.fired += [one for one in taken if isinstance(one, records.Fired)]

    def write(self) -> None:
        """What the core wants written becomes durable."""
        taken, number = self.core.take_records()
        self.keep(taken)
        self.core.durable(self.now, number)
        self.seen += self.core.settle(self.now)

    def crash(self, lost: int = 0) -> None:
        """The next one leads; `lost` records were not durable yet."""
        taken, _ = self.core.take_records()
        self.keep(taken[: max(0, len(taken) - lost)])
        self.core = Core(self.limits)
        self.core.restore_app(self.now, APP, self.spec, "", True, 1, self.deployed_at)
        self.core.replay(self.journal)
        self.core.end_replay(self.now)

    def compact(self) -> None:
        self.write()
        self.journal = list(self.core.snapshot())

    def pass_time(self, seconds: float, step: float = 0.25) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + step)
            self.core.tick(self.now, self.now)
            self.write()

    @property
    def dues(self) -> list[float]:
        """The due times that were handed in, as the journal has them."""
        ids = [one.call for one in self.journal if isinstance(one, records.Submitted)]
        assert len(ids) == len(set(ids)), "none was handed in twice"
        fired = sorted({one.due for one in self.journal if isinstance(one, records.Fired)})
        assert set(ids) <= {call_id(ID, due) for due in fired}
        return fired

    @property
    def notices(self) -> list[str]:
        return [one.text for one in self.seen if isinstance(one, effects.Notice)]

    def schedule(self) -> Any:
        return self.core.state.schedules[ID]


def test_each_due_time_is_one_spawn_without_arguments() -> None:
    leaders = Leaders(EVERY_MINUTE)
    leaders.pass_time(190)
    assert leaders.dues == [START + 60, START + 120, START + 180]
    submitted = [one for one in leaders.journal if isinstance(one, records.Submitted)]
    assert {(one.function, one.kind, one.caller, *one.payloads, *one.codecs) for one in submitted} == {
        (ID, wire.SPAWN, SCHEDULER, NO_ARGUMENTS, wire.PICKLE)
    }
    assert leaders.core.state.functions[ID].waiting_inputs == 3
    assert "its run of 2027-01-15T08:01:00Z is handed in as fc-" in leaders.notices[0]


def test_it_is_woken_for_the_time_and_not_busy_before() -> None:
    leaders = Leaders(EVERY_MINUTE)
    leaders.core.tick(START + 59.9, START + 59.9)
    assert leaders.core.wake_at == START + 60
    leaders.core.tick(START + 60, START + 60)
    assert leaders.core.wake_at == START + 120
    leaders.core.tick(START + 61, START + 1000)  # A machine that has slept: its own clock stood still.
    assert leaders.core.wake_at == pytest.approx(START + 61 + 20)


def test_an_app_that_is_not_deployed_has_no_schedule() -> None:
    core = Core()
    core.open_session("se-1")
    spec = wire.AppSpec(name="app", functions=[wire.FunctionSpec(name="f", schedule=EVERY_MINUTE)])
    core.start_app(START, APP, spec, "se-1")
    core.tick(START + 600, START + 600)
    assert core.state.calls == {}
    assert core.wake_at == float("inf")


def test_what_was_missed_is_made_up_for_by_one_run() -> None:
    leaders = Leaders(EVERY_MINUTE)
    leaders.pass_time(70)
    leaders.crash()
    leaders.now += 3600
    leaders.pass_time(70)
    assert leaders.dues == [START + 60, START + 120, START + 3720]
    assert "late: it stands for all that were missed" in leaders.notices[1]
    assert "late" not in leaders.notices[2]


def test_a_period_begins_with_the_deploy_keeps_its_beat_and_begins_anew_with_the_next() -> None:
    leaders = Leaders(EVERY_10_S)
    leaders.pass_time(15)
    leaders.crash()
    leaders.now += 27
    leaders.pass_time(20)
    assert leaders.dues == [START + 10, START + 20, START + 50, START + 60]
    leaders.pass_time(4)
    leaders.deploy(EVERY_10_S)
    leaders.pass_time(12)
    assert leaders.dues[-1] == leaders.deployed_at + 10
    assert len(leaders.dues) == 5


def test_a_deploy_leaves_an_unchanged_cron_alone() -> None:
    leaders = Leaders(EVERY_MINUTE)
    leaders.now = START + 60.1
    leaders.deploy(EVERY_MINUTE)
    leaders.write()
    assert leaders.dues == [START + 60], "what was due by the version before"
    leaders.pass_time(60)
    assert leaders.dues == [START + 60, START + 120]


def test_a_deploy_changes_a_schedule_and_takes_it_away() -> None:
    leaders = Leaders(EVERY_MINUTE)
    leaders.pass_time(61)
    leaders.deploy(wire.ScheduleSpec(cron="*/5 * * * *"))
    leaders.pass_time(240)
    assert leaders.dues == [START + 60, START + 300]
    leaders.deploy(None)
    leaders.pass_time(600)
    assert leaders.dues == [START + 60, START + 300]
    assert leaders.core.state.schedules == {}


def test_a_changed_schedule_costs_no_container_its_life() -> None:
    leaders = Leaders(EVERY_MINUTE)
    _, changed = leaders.core.deploy(leaders.now, APP, leaders.spec, 2, leaders.now)
    spec = wire.AppSpec(name="app", functions=[wire.FunctionSpec(name="f", schedule=EVERY_10_S)])
    _, changed_again = leaders.core.deploy(leaders.now, APP, spec, 3, leaders.now)
    assert changed == changed_again == []


def test_it_ends_with_its_app() -> None:
    leaders = Leaders(EVERY_MINUTE)
    leaders.pass_time(61)
    leaders.core.stop_app(leaders.now, APP)
    leaders.pass_time(600)
    assert leaders.dues == [START + 60]
    assert leaders.core.state.schedules == {}


def test_it_ends_with_its_function() -> None:
    leaders = Leaders(EVERY_MINUTE)
    leaders.core.deploy(leaders.now, APP, wire.AppSpec(name="app"), 2, leaders.now)
    leaders.pass_time(120)
    assert leaders.dues == []
    assert leaders.core.state.schedules == {}


def test_a_function_that_does_not_keep_up_has_a_bounded_number_of_runs_waiting() -> None:
    leaders = Leaders(wire.ScheduleSpec(seconds=1))
    leaders.pass_time(MAX_WAITING + 50)
    assert leaders.core.state.functions[ID].waiting_inputs == MAX_WAITING
    assert f"is left out: {MAX_WAITING} earlier ones still wait for a container" in leaders.notices[-1]
    leaders.crash()
    leaders.pass_time(10)
    assert leaders.core.state.functions[ID].waiting_inputs == MAX_WAITING, "also after a takeover"


def test_a_run_that_is_over_a_limit_is_left_out_and_says_so() -> None:
    leaders = Leaders(EVERY_MINUTE, Limits(pending_spawns=1))
    leaders.pass_time(130)
    assert leaders.core.state.functions[ID].waiting_inputs == 1
    assert "was refused" in leaders.notices[1]


def test_a_run_that_fails_says_so() -> None:
    leaders = Leaders(EVERY_MINUTE)
    leaders.pass_time(61)
    [start] = [one for one in leaders.seen if isinstance(one, effects.StartContainer)]
    leaders.core.container_ready(leaders.now, start.container.id)
    leaders.write()
    [deliver] = [one for one in leaders.seen if isinstance(one, effects.Deliver)]
    raised = outcome.encode(outcome.Raised(b"", "ValueError", "no minute", ""))
    leaders.core.outputs(leaders.now, deliver.container, deliver.deliveries, [wire.EXCEPTION], [raised], 0)
    leaders.core.settle(leaders.now)
    leaders.write()
    assert f"its scheduled run {deliver.call} failed: ValueError: no minute" in leaders.notices


def test_a_clock_that_was_a_year_ahead_and_is_set_right_runs_on() -> None:
    leaders = Leaders(EVERY_MINUTE)
    leaders.now += 365 * 86_400
    leaders.pass_time(61)
    leaders.now = START
    leaders.pass_time(61)
    assert START + 60 in leaders.dues
    leaders.now += 365 * 86_400
    leaders.pass_time(61)
    leaders.now = START + 7200
    leaders.crash()
    leaders.pass_time(61)
    assert START + 7260 in leaders.dues


def test_a_clock_that_goes_back_a_little_runs_nothing_twice() -> None:
    leaders = Leaders(EVERY_MINUTE)
    leaders.pass_time(121)
    leaders.now -= 30
    leaders.pass_time(61)
    leaders.now -= 90
    leaders.crash()
    leaders.pass_time(60)
    assert leaders.dues == [START + 60, START + 120]


@pytest.mark.parametrize("seed", range(40))
def test_every_time_is_handed_in_once_over_crashes_losses_and_compactions(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "MAX_WAITING", 10_000)
    rng = random.Random(seed)
    period = rng.choice([3.0, 10.0, 7.25])
    schedule = rng.choice([wire.ScheduleSpec(seconds=period), EVERY_MINUTE])
    leaders = Leaders(schedule)
    away: list[tuple[float, float]] = []
    for _ in range(60):
        match rng.randrange(4):
            case 0:
                gone = leaders.now
                lost = rng.randrange(3)
                if rng.random() < 0.5:  # right at a due time, before anything of it is durable
                    leaders.now = max(leaders.now, leaders.schedule().due)
                    leaders.core.tick(leaders.now, leaders.now)
                leaders.crash(lost)
                leaders.now += rng.choice([0.0, rng.uniform(0, 40)])
                away.append((gone, leaders.now))
            case 1:
                leaders.compact()
            case _:
                leaders.pass_time(rng.uniform(0, 30), step=0.5)
    leaders.pass_time(120, step=0.5)
    assert away
    every = 60.0 if schedule.cron else period
    expected = [START + every * n for n in range(1, int((leaders.now - START) / every) + 1)]
    ids = {call_id(ID, due): due for due in expected}
    calls = {ids[id] for id in leaders.core.state.calls}  # a KeyError is a run at a time that was never due
    for due in set(expected) - calls:
        assert any(one.due in calls and one.due < due <= one.at for one in leaders.fired), f"{due} is not made up for"
    for one in leaders.fired:
        is_late = one.at - one.due > 0.5
        assert not is_late or any(gone <= one.at and back >= one.due for gone, back in away), f"{one} without a reason"
