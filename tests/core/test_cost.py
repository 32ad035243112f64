"""What one input costs the core, counted and not timed: calls of Python and of C on its way through.

The counts are the same on every machine of one Python version, so a margin of a tenth finds what makes the hot path
longer. They must not grow with what is pending, nor with how many containers there are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from nomadfn_agent import wire
from test_core import SESSION, World, of

from nomadfn.core import effects

FRAME = 256
INPUTS = 4 * FRAME
MARGIN = 1.1


def calls_of(work: Callable[[], object]) -> int:
    """How many calls of Python and of C functions `work` makes."""
    count = 0

    def see(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def ready_world(containers: int = 1, **spec: Any) -> World:
    world = World(capacity=None, autoscaler=wire.AutoscalerSettings(containers, containers), **spec)
    world.settle()
    assert len(world.start(containers)) == containers
    warm_up(world)
    return world


def warm_up(world: World) -> None:
    """Until the run time is known, and with it how much is sent ahead."""
    for _ in range(3):
        world.submit(b"x")
        run_all(world)


def run_all(world: World) -> None:
    """Settle and answer at once until nothing is left, and let the client acknowledge all of it."""
    while delivered := of(world.core.settle(world.now), effects.Deliver):
        for deliver in delivered:
            world.answer(deliver, run_s=1e-6)
        if world.core.state.records:
            world.journal()
    world.core.acknowledge(SESSION, 1 << 60)


def a_map(world: World) -> None:
    call = world.submit(*[b"x"] * FRAME)
    for first in range(FRAME, INPUTS, FRAME):
        world.submit(*[b"x"] * FRAME, call=call, first=first)
    run_all(world)


def spawns(world: World) -> None:
    call = world.submit(*[b"x"] * FRAME, kind=wire.SPAWN_MAP)
    for first in range(FRAME, INPUTS, FRAME):
        world.submit(*[b"x"] * FRAME, kind=wire.SPAWN_MAP, call=call, first=first)
    world.journal()
    run_all(world)


def single_calls(world: World) -> None:
    for _ in range(INPUTS):
        world.submit(b"x", kind=wire.REMOTE)
        run_all(world)


@pytest.mark.parametrize(("work", "before"), [(a_map, 26.2), (spawns, 25.0), (single_calls, 183.0)])
def test_an_input_takes_no_more_calls_than_it_did(work: Callable[[World], None], before: float) -> None:
    world = ready_world()
    count = calls_of(lambda: work(world)) / INPUTS
    assert count <= before * MARGIN, f"{work.__name__}: {count:.1f} calls an input, {before} before"


def test_the_calls_do_not_grow_with_what_is_pending() -> None:
    """Handing in, giving out and taking back, beside 1,000 and beside 100,000 inputs that wait."""

    def cost(pending: int) -> float:
        world = ready_world()
        call = world.submit(*[b"x"] * pending, kind=wire.SPAWN_MAP)
        done = 0

        def work() -> None:
            nonlocal done
            world.submit(*[b"x"] * FRAME, kind=wire.SPAWN_MAP, call=call, first=pending)
            for _ in range(3):
                for deliver in of(world.core.settle(world.now), effects.Deliver):
                    world.answer(deliver, run_s=1e-6)
                    done += len(deliver.deliveries)
                world.journal()

        return calls_of(work) / done

    assert cost(100_000) <= cost(1_000) * MARGIN


def test_the_calls_hardly_grow_with_the_containers() -> None:
    """Short inputs go to as many containers as they have work for, in frames; the others are not looked at."""

    def cost(containers: int) -> float:
        world = ready_world(containers)
        return calls_of(lambda: a_map(world)) / INPUTS

    assert cost(1_000) <= 1.15 * cost(2)


def test_neither_time_nor_decisions_look_at_containers_that_idle() -> None:
    def cost(containers: int) -> int:
        world = ready_world(containers)
        world.wait(1)
        return calls_of(lambda: pass_time(world))

    def pass_time(world: World) -> None:
        for _ in range(100):
            world.now += 0.02
            world.core.tick(world.now)
            world.submit(b"x", kind=wire.REMOTE)
            run_all(world)

    assert cost(1_000) <= 1.05 * cost(10)
