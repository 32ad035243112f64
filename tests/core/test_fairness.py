"""One caller's 25,000 inputs beside other callers' single ones, in a world whose clock is a number.

What is compared is the same callers with the same inputs, once alone and once beside the map.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from nomadfn_agent import wire

from nomadfn.core.queue import FunctionQueue
from nomadfn.core.virtual import APP, Call, Conditions, VirtualWorld

MAP_INPUTS = 25_000
SINGLE_CALLS = 120
TIMES = 3.0
"""How much longer a single call may take beside a map, at its 95th percentile."""

Run = Callable[[random.Random], float]

RUNS: dict[str, Run] = {
    "a third of a millisecond": lambda rng: 0.0003,
    "a millisecond": lambda rng: 0.001,
    "around 5 ms": lambda rng: rng.expovariate(200),
    "around 200 ms": lambda rng: rng.uniform(0.1, 0.3),
    "short and long ones": lambda rng: 0.2 if rng.random() < 0.2 else 0.001,
}
FUNCTIONS: dict[str, dict[str, Any]] = {
    "one container": {"autoscaler": wire.AutoscalerSettings(1, 1)},
    "four containers": {"autoscaler": wire.AutoscalerSettings(4, 4)},
    "it scales": {"autoscaler": wire.AutoscalerSettings(0, 8)},
    "ten at once": {"autoscaler": wire.AutoscalerSettings(1, 2), "max_inputs": 10},
    "batches": {"autoscaler": wire.AutoscalerSettings(1, 2), "max_batch_size": 32, "batch_wait_ms": 10},
}


def p95(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.95)]


class Fairness:
    """Closed loops: each caller makes its next call a while after it has the result of the last one."""

    def __init__(self, seed: int, run: Run, **spec: Any) -> None:
        self.random = random.Random(seed)
        self.run_s = run
        self.world = VirtualWorld([wire.FunctionSpec(name="f", **spec)], Conditions(start_s=0.2))
        self.latencies: list[float] = []

    def map(self, caller: str) -> None:
        def again(call: Call) -> None:
            self.world.call(self.world.now, caller, "f", call.runs, on_done=again)

        self.world.call(0.0, caller, "f", [self.run_s(self.random) for _ in range(MAP_INPUTS)], on_done=again)

    def singles(self, caller: str, pause_s: float = 0.006) -> None:
        """From 2 s on, when containers are there."""

        def call(at: float) -> None:
            self.world.call(at, caller, "f", [self.run_s(self.random)], on_done=done)

        def done(made: Call) -> None:
            assert not made.failed
            self.latencies += made.latencies
            call(self.world.now + self.random.expovariate(1 / pause_s))

        call(2.0 + self.random.uniform(0, pause_s))

    def until(self, count: int) -> list[float]:
        while len(self.latencies) < count:
            self.world.run(until=self.world.now + 0.5)
            assert self.world.now < 1_000, f"only {len(self.latencies)} single calls were done"
        return self.latencies

    def done_of(self, caller: str) -> int:
        return sum(len(one.done_at) for one in self.world.calls.values() if one.caller == caller)


@pytest.mark.parametrize("callers", [1, 6])
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_long_map_does_not_starve_another_callers_single_calls(function: str, run: str, callers: int) -> None:
    found: list[float] = []
    for beside_a_map in (False, True):
        world = Fairness(callers, RUNS[run], **FUNCTIONS[function])
        for number in range(callers):
            world.singles(f"single-{number}")
        if beside_a_map:
            world.map("map")
        found.append(p95(world.until(SINGLE_CALLS)[callers:]))
    idle_s, busy_s = found
    assert busy_s <= TIMES * idle_s, f"{busy_s / idle_s:.2f} times the {idle_s * 1000:.2f} ms of an idle function"


@pytest.mark.parametrize("run_s", [0.001, 0.2])
def test_single_calls_do_not_starve_the_map_either(run_s: float) -> None:
    """Whoever comes with one input goes first only once in a round: eight of them leave the map its ninth."""
    world = Fairness(1, lambda rng: run_s, autoscaler=wire.AutoscalerSettings(1, 1))
    world.map("map")
    for number in range(8):
        world.singles(f"single-{number}", pause_s=1e-6)
    world.until(400)
    singles = [world.done_of(f"single-{number}") for number in range(8)]
    since = world.world.now - 2.0
    assert world.done_of("map") >= since / run_s / 9 * 0.9
    assert min(singles) >= 0.8 * max(singles)


def test_no_single_call_is_refused_beside_maps_that_fill_their_limit() -> None:
    world = Fairness(1, RUNS["a millisecond"], autoscaler=wire.AutoscalerSettings(1, 1))
    for number in range(4):
        world.map(f"map-{number}")
    world.singles("single")
    world.until(50)
    function = world.world.core.function(f"{APP}/f")
    assert 0.8 * world.world.limits.pending_inputs < function.pending[0] <= world.world.limits.pending_inputs


def test_who_comes_new_goes_first_and_then_behind_the_others() -> None:
    queue: FunctionQueue[str] = FunctionQueue()

    def take(count: int) -> list[str]:
        return queue.take(count, lambda item: True)

    queue.add("one", 0, ["one"] * 10)
    queue.add("two", 0, ["two"] * 10)
    assert take(2) == ["one", "two"]
    queue.add("new", 0, ["new"])
    assert take(1) == ["new"]
    queue.add("new", 0, ["new"])
    assert take(3) == ["one", "two", "new"], "its turn is behind those that wait"
    queue.add("new", 0, ["new"] * 3)
    assert take(4) == ["one", "two", "new", "one"]
    assert take(30).count("new") == 2


def test_callers_that_are_gone_leave_nothing_behind() -> None:
    queue: FunctionQueue[str] = FunctionQueue()
    queue.add("map", 0, ["map"] * 3_000)
    queue.take(1, lambda item: True)
    for number in range(1_000):
        queue.add(f"caller-{number}", 0, ["x"])
        assert queue.take(2, lambda item: True) == ["x", "map"]
    level = queue._levels[0]
    assert len(level.fresh) + len(level.turns) <= 2
    assert list(queue.callers()) == ["map"]
