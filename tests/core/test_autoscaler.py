from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from nomadfn_agent.wire import AutoscalerSettings

from nomadfn.core.autoscaler import Member, Sample, Scale, decide, demand, wanted

DEFAULTS = AutoscalerSettings()


def idle(*seconds: float) -> tuple[Member, ...]:
    return tuple(Member(f"c{index}", index, idle_s) for index, idle_s in enumerate(seconds))


def busy(count: int) -> tuple[Member, ...]:
    return tuple(Member(f"c{index}", index, None) for index in range(count))


def test_a_backlog_gets_one_container_per_target_and_the_reason_has_the_numbers() -> None:
    plan = decide(Sample(AutoscalerSettings(max_containers=12), pending=4_200, running=0))
    assert (plan.count, plan.start, plan.direction) == (12, 12, "up")
    assert plan.reason == "backlog 4,200 / target 1, capped by max_containers=12"


@pytest.mark.parametrize(
    ("pending", "running", "target", "expected"),
    [(0, 0, 1, 0), (1, 0, 1, 1), (3, 4, 1, 7), (11, 0, 10, 2), (10, 10, 10, 2), (1, 9, 10, 1)],
)
def test_demand_is_all_inputs_over_the_target(pending: int, running: int, target: int, expected: int) -> None:
    assert demand(Sample(DEFAULTS, pending, running, target=target)) == expected


def test_a_batched_function_counts_batches() -> None:
    assert demand(Sample(DEFAULTS, pending=65, running=0, batch_size=32)) == 3
    assert demand(Sample(DEFAULTS, pending=65, running=2, batch_size=32)) == 5


def test_fast_inputs_get_no_more_containers_than_drain_them_within_a_second() -> None:
    assert demand(Sample(DEFAULTS, pending=1_000, running=1, mean_run_s=0.001)) == 2
    assert demand(Sample(DEFAULTS, pending=1_000, running=0, mean_run_s=0.001)) == 1
    assert demand(Sample(DEFAULTS, pending=100, running=0, mean_run_s=0.1)) == 10
    assert demand(Sample(DEFAULTS, pending=100, running=0, mean_run_s=5.0)) == 100


def test_slow_inputs_among_fast_ones_hold_their_containers() -> None:
    assert demand(Sample(DEFAULTS, pending=1, running=3, slow=3, mean_run_s=0.001)) == 4
    assert demand(Sample(DEFAULTS, pending=1, running=3, slow=3, mean_run_s=0.001, target=10)) == 1


def test_the_buffer_is_there_only_while_the_function_is_active() -> None:
    settings = AutoscalerSettings(buffer_containers=3)
    assert wanted(Sample(settings, 0, 0)).count == 0
    assert wanted(Sample(settings, 0, 1, ready=busy(1), holding=1)).count == 4
    assert wanted(Sample(settings, 0, 1, ready=busy(1), holding=1)).buffer == 3


def test_the_buffer_is_on_top_of_every_container_that_has_work() -> None:
    settings = AutoscalerSettings(buffer_containers=2)
    assert wanted(Sample(settings, 0, 4, target=10, ready=busy(4), holding=4)).count == 6


def test_min_containers_are_there_without_any_input() -> None:
    plan = decide(Sample(AutoscalerSettings(min_containers=2), 0, 0))
    assert (plan.start, plan.reason) == (2, "no inputs, raised to min_containers=2")


def test_starting_containers_count_so_that_a_burst_is_answered_once() -> None:
    assert decide(Sample(DEFAULTS, 10, 0)).start == 10
    assert decide(Sample(DEFAULTS, 10, 0, starting=10)).start == 0
    assert decide(Sample(DEFAULTS, 12, 0, starting=10)).start == 2


def test_draining_containers_count_towards_the_maximum() -> None:
    assert decide(Sample(AutoscalerSettings(max_containers=5), 9, 0, draining=3)).start == 2


def test_an_idle_container_stops_after_its_window_and_not_before() -> None:
    settings = AutoscalerSettings(scaledown_window_s=60)
    assert decide(Sample(settings, 0, 0, ready=idle(59.9))).stop == ()
    plan = decide(Sample(settings, 0, 0, ready=idle(60.0)))
    assert (plan.stop, plan.direction) == (("c0",), "down")


def test_the_highest_index_stops_first_and_the_minimum_stays() -> None:
    settings = AutoscalerSettings(min_containers=1, scaledown_window_s=60)
    assert decide(Sample(settings, 0, 0, ready=idle(90, 90, 90))).stop == ("c2", "c1")
    assert decide(Sample(settings, 0, 0, ready=idle(90, 10))).stop == ()


def test_the_cluster_limits_and_the_reason_says_so() -> None:
    plan = decide(Sample(DEFAULTS, 9, 0, ceiling=4, ceiling_reason="the capacity of 4 containers (4 cores)"))
    assert plan.start == 4
    assert plan.reason == "backlog 9 / target 1, limited to 4 by the capacity of 4 containers (4 cores)"


def test_containers_that_another_function_needs_stop_early() -> None:
    sample = Sample(DEFAULTS, 0, 0, ready=idle(0.5, 0.5, 0.5), yields=3)
    assert decide(replace(sample, yields=0)).stop == ()
    assert decide(sample).stop == ("c2", "c1")
    assert decide(replace(sample, ready=idle(2.5), yields=1)).stop == ("c0",)


def test_busy_containers_drain_only_where_no_idle_one_can_make_room() -> None:
    sample = Sample(DEFAULTS, 9, 4, ready=busy(4), holding=4, ceiling=2, yields=2)
    plan = decide(sample)
    assert (plan.drain, plan.stop, plan.direction) == (("c3", "c2"), (), "down")
    assert decide(replace(sample, yields=0, ceiling=4)).drain == ()


def test_lowering_the_maximum_stops_idle_ones_at_once_and_drains_busy_ones() -> None:
    settings = AutoscalerSettings(max_containers=2)
    mixed = (Member("c0", 0, None), Member("c1", 1, None), Member("c2", 2, None), Member("c3", 3, 0.0))
    plan = decide(Sample(settings, 5, 3, ready=mixed, holding=3))
    assert (plan.stop, plan.drain) == (("c3",), ("c2",))


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    minimum = draw(st.integers(0, 6))
    settings = AutoscalerSettings(
        min_containers=minimum,
        max_containers=draw(st.none() | st.integers(max(minimum, 1), 20)),
        buffer_containers=draw(st.integers(0, 4)),
        scaledown_window_s=draw(st.floats(2, 3600)),
    )
    ages = draw(st.lists(st.none() | st.floats(0, 4000), max_size=12))
    ready = tuple(Member(f"c{index}", index, age) for index, age in enumerate(ages))
    running = draw(st.integers(0, 60))
    return Sample(
        settings,
        pending=draw(st.integers(0, 3000)),
        running=running,
        slow=draw(st.integers(0, running)),
        mean_run_s=draw(st.none() | st.floats(0, 100)),
        target=draw(st.integers(1, 20)),
        batch_size=draw(st.integers(0, 30)),
        starting=draw(st.integers(0, 8)),
        ready=ready,
        holding=ages.count(None),
        stops=draw(st.booleans()),
        draining=draw(st.integers(0, 4)),
        ceiling=draw(st.none() | st.integers(0, 30)),
        yields=draw(st.integers(0, 5)),
    )


def follow(sample: Sample, plan: Scale) -> Sample:
    """The sample after the plan was carried out, with the same load."""
    gone = {*plan.stop, *plan.drain}
    ready = tuple(member for member in sample.ready if member.container not in gone)
    return replace(
        sample,
        starting=sample.starting + plan.start,
        ready=ready,
        holding=sum(member.idle_s is None for member in ready),
        draining=sample.draining + len(plan.drain),
        yields=max(0, sample.yields - len(gone)),
    )


@given(samples())
def test_no_plan_breaks_the_settings(sample: Sample) -> None:
    plan = decide(sample)
    settings = sample.settings
    after = follow(sample, plan)
    there = after.starting + len(after.ready)
    maximum = settings.max_containers
    if plan.start:
        assert not plan.stop
        assert not plan.drain
        for end in (maximum, sample.ceiling):
            assert end is None or there + sample.draining <= end
    if plan.stop or plan.drain:
        assert there >= min(settings.min_containers, maximum or settings.min_containers)
    if maximum is not None and plan.drain:
        assert len(after.ready) <= max(maximum, len(sample.ready) - len(plan.drain))
    assert not set(plan.stop) & set(plan.drain)


@given(samples())
def test_only_idle_containers_stop_and_only_busy_ones_drain(sample: Sample) -> None:
    plan = decide(sample)
    ages = {member.container: member.idle_s for member in sample.ready}
    assert all(ages[container] is not None for container in plan.stop)
    assert all(ages[container] is None for container in plan.drain)
    there = sample.starting + len(sample.ready)
    over = sample.settings.max_containers is not None and there > sample.settings.max_containers
    if not over and not sample.yields:
        assert plan.drain == ()
        assert all((ages[one] or 0) >= sample.settings.scaledown_window_s for one in plan.stop)


@given(samples())
def test_the_same_load_again_gives_nothing_to_do(sample: Sample) -> None:
    after = follow(sample, decide(sample))
    assert decide(after).direction == "same"


@given(samples())
def test_taking_inputs_up_moves_nothing(sample: Sample) -> None:
    """As pending inputs become running ones the demand stays, so a fast backlog does not creep upwards."""
    taken = min(sample.pending, 5)
    if sample.batch_size == 0 and sample.pending > taken:
        assert demand(replace(sample, pending=sample.pending - taken, running=sample.running + taken)) == demand(sample)


class Trial:
    """A little world: containers that start after a while, inputs that run for a while, one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        rng = self.random
        minimum = rng.choice((0, 0, 0, 1, 3))
        self.settings = AutoscalerSettings(
            min_containers=minimum,
            max_containers=rng.choice((None, minimum + rng.randint(1, 8))),
            buffer_containers=rng.choice((0, 0, 1, 3)),
            scaledown_window_s=rng.choice((2.0, 5.0, 20.0)),
        )
        self.target = rng.choice((1, 1, 1, 4))
        self.run_s = rng.choice((0.001, 0.05, 0.5, 3.0))
        self.now = 0.0
        self.pending = 0
        self.starting: dict[int, float] = {}
        self.ready: dict[int, list[float]] = {}
        """Index → when each of its inputs ends."""
        self.idle_since: dict[int, float] = {}
        self.done = 0
        self.most = 0

    def sample(self) -> Sample:
        held = [ends for ends in self.ready.values() if ends]
        return Sample(
            self.settings,
            pending=self.pending,
            running=sum(map(len, held)),
            slow=sum(end - self.run_s < self.now - 1 for ends in held for end in ends),
            mean_run_s=self.run_s if self.done else None,
            target=self.target,
            starting=len(self.starting),
            holding=len(held),
            ready=[
                Member(str(index), index, None if ends else self.now - self.idle_since[index])
                for index, ends in sorted(self.ready.items())
            ],
        )

    def step(self, seconds: float) -> None:
        self.now += seconds
        for index in [index for index, at in self.starting.items() if at <= self.now]:
            del self.starting[index]
            self.ready[index] = []
            self.idle_since[index] = self.now
        for index, ends in self.ready.items():
            left = [end for end in ends if end > self.now]
            self.done += len(ends) - len(left)
            if ends and not left:
                self.idle_since[index] = self.now
            ends[:] = left
        for _, ends in sorted(self.ready.items()):
            while self.pending and len(ends) < self.target:
                ends.append(self.now + self.run_s)
                self.pending -= 1
        plan = decide(self.sample())
        for container in plan.stop:
            assert not self.ready.pop(int(container)), "a container with work was stopped"
        assert not plan.drain
        for _ in range(plan.start):
            index = next(i for i in range(1000) if i not in self.starting and i not in self.ready)
            self.starting[index] = self.now + self.random.uniform(0, 2)
        there = len(self.starting) + len(self.ready)
        assert self.settings.max_containers is None or there <= self.settings.max_containers
        assert there >= self.settings.min_containers
        self.most = max(self.most, there)

    def until(self, condition: Callable[[], bool], seconds: float) -> None:
        for _ in range(20_000):
            if condition():
                return
            self.step(seconds)
        raise AssertionError(f"never came true: {self.sample()}")


def test_in_a_thousand_trials_every_function_scales_from_zero_and_back_without_interrupting_an_input() -> None:
    for seed in range(1000):
        trial = Trial(seed)
        submitted = trial.random.randint(1, 60)
        trial.pending = submitted
        trial.until(lambda trial=trial, submitted=submitted: trial.done == submitted, 0.1)  # type: ignore[misc]
        demanded = -(-submitted // trial.target) + trial.settings.buffer_containers
        assert 1 <= trial.most <= max(demanded, trial.settings.min_containers)
        idle_at = trial.now
        rest = trial.settings.min_containers
        trial.until(lambda trial=trial, rest=rest: len(trial.ready) + len(trial.starting) == rest, 0.1)  # type: ignore[misc]
        assert trial.now - idle_at <= trial.settings.scaledown_window_s + 2.5
        for _ in range(20):
            trial.step(1.0)
        assert len(trial.ready) + len(trial.starting) == rest
