"""Batches and concurrent inputs in the core, by example."""

from __future__ import annotations

from typing import Any

import pytest
from nomadfn_agent import wire
from nomadfn_agent.wire import payload
from test_core import World, of

from nomadfn.core import effects
from nomadfn.core.watch import INTERRUPTED_S


def batched(size: int = 4, wait_ms: int = 100, **more: Any) -> World:
    """A world whose one container has the size of batches that the test asks for, and is up."""
    world = World(max_batch_size=size, batch_wait_ms=wait_ms, autoscaler=wire.AutoscalerSettings(1, 1), **more)
    start(world, more.get("max_inputs", 1))
    return world


def start(world: World, slots: int) -> str:
    world.settle()
    container = of(world.seen, effects.StartContainer)[-1].container.id
    world.core.container_ready(world.now, container, slots)
    world.settle()
    return container


def batches(found: list[effects.Effect]) -> list[effects.DeliverBatch]:
    return of(found, effects.DeliverBatch)


def done(world: World, batch: effects.DeliverBatch) -> None:
    count = len(batch.deliveries)
    world.core.outputs(world.now, batch.container, batch.deliveries, [wire.OK] * count, [b"r"] * count, 5_000_000)


def errors_of(found: list[effects.Effect]) -> list[str]:
    sent = of(found, effects.SendResults)
    return [
        payload.decode_failure(data).error
        for one in sent
        for status, data in zip(one.statuses, one.payloads, strict=True)
        if status == wire.FAILURE
    ]


def test_a_full_batch_goes_out_at_once() -> None:
    world = batched(size=4)
    world.submit(*[b"x"] * 4)
    assert [len(one.deliveries) for one in batches(world.settle())] == [4]


def test_a_batch_that_is_not_full_waits_for_its_first_inputs_time() -> None:
    world = batched(size=4, wait_ms=100)
    world.submit(b"x")
    assert not batches(world.settle())
    assert world.core.wake_at == pytest.approx(world.now + 0.1)
    world.now += 0.06
    world.submit(b"y")
    assert not batches(world.settle())
    world.now += 0.04
    world.core.tick(world.now)
    [batch] = batches(world.settle())
    assert (batch.indexes, len(set(batch.calls)), batch.last) == ([0, 0], 2, True)


def test_a_batch_fills_while_no_slot_is_free() -> None:
    world = batched(size=4, wait_ms=10)
    world.submit(b"x")
    [first] = batches(world.wait(0.02))
    world.submit(b"y")
    world.wait(1.0)
    world.submit(b"z")
    world.settle()
    done(world, first)
    [second] = batches(world.settle())
    assert len(second.deliveries) == 2


def test_what_a_full_batch_leaves_behind_waits_for_its_own_time() -> None:
    world = batched(size=4, wait_ms=100, max_inputs=2)
    world.submit(*[b"x"] * 6)
    assert [len(one.deliveries) for one in batches(world.settle())] == [4]
    assert [len(one.deliveries) for one in batches(world.wait(0.15))] == [2]


def test_a_batch_is_one_slot() -> None:
    world = batched(size=2, wait_ms=0, max_inputs=3)
    world.submit(*[b"x"] * 10)
    assert [len(one.deliveries) for one in batches(world.settle())] == [2, 2, 2]


def test_inputs_of_several_callers_share_a_batch() -> None:
    world = batched(size=4, wait_ms=100)
    world.core.open_session("se-2")
    first = world.submit(b"a", b"b")
    second = world.submit(b"c", b"d", session="se-2")
    [batch] = batches(world.settle())
    assert set(batch.calls) == {first, second}


def test_the_autoscaler_counts_batches() -> None:
    world = World(capacity=None, max_batch_size=10, batch_wait_ms=1000)
    world.submit(*[b"x"] * 35)
    world.settle()
    assert len(of(world.seen, effects.StartContainer)) == 4


def test_a_large_batch_travels_in_parts_and_says_which_is_the_last() -> None:
    world = batched(size=4)
    world.submit(*[b"x" * 100_000] * 4)
    found = batches(world.settle())
    assert [one.last for one in found] == [False, True]
    assert sum(len(one.deliveries) for one in found) == 4


def test_a_batch_whose_container_was_lost_runs_by_halves_and_only_the_culprit_fails() -> None:
    world = batched(size=8, wait_ms=0)
    world.submit(*[b"ok"] * 5, b"poison", *[b"ok"] * 2)
    world.settle()
    for _ in range(200):
        for container in list(world.core.state.containers.values()):
            if container.state == 0:
                world.core.container_ready(world.now, container.id)
            elif any(one.payload == b"poison" for one in container.held.values()):
                world.core.container_lost(world.now, container.id, "killed by SIGSEGV")
            elif container.held:
                deliveries = list(container.held)
                world.core.outputs(
                    world.now, container.id, deliveries, [wire.OK] * len(deliveries), [b"r"] * len(deliveries), 1
                )
        world.wait(0.5)
    assert sum(len(one.indexes) for one in of(world.seen, effects.SendResults)) == 8
    assert errors_of(world.seen) == ["InternalFailure"]
    assert len(batches(world.seen)) < 8 + 8 + 6, "halves, and then the culprit alone until its losses are counted"


def test_a_batch_over_its_time_fails_whole_and_its_container_is_replaced() -> None:
    world = batched(size=2, timeout_s=2.0)
    world.submit(b"x", b"y")
    world.settle()
    found = world.wait(2.5)
    assert errors_of(found) == ["FunctionTimeoutError"] * 2
    assert [one.grace_s for one in of(found, effects.StopContainer)] == [0.0]


def concurrent(slots: int, **more: Any) -> tuple[World, str]:
    world = World(max_inputs=slots, autoscaler=wire.AutoscalerSettings(1, 1), **more)
    return world, start(world, slots)


def test_a_container_gets_as_many_inputs_as_it_has_slots() -> None:
    world, _ = concurrent(5)
    world.submit(*[b"x"] * 8)
    assert [len(one.deliveries) for one in of(world.settle(), effects.Deliver)] == [5]


def test_the_autoscaler_aims_at_the_target_and_containers_burst_to_the_maximum() -> None:
    world = World(capacity=None, max_inputs=10, target_inputs=2)
    world.submit(*[b"x"] * 10)
    world.settle()
    assert len(of(world.seen, effects.StartContainer)) == 5
    world.core.container_ready(world.now, of(world.seen, effects.StartContainer)[0].container.id, 10)
    assert [len(one.deliveries) for one in of(world.settle(), effects.Deliver)] == [10]


def test_inputs_go_to_containers_below_their_target_first() -> None:
    world = World(capacity=None, max_inputs=4, target_inputs=2, autoscaler=wire.AutoscalerSettings(2, 2))
    world.settle()
    ids = [one.container.id for one in of(world.seen, effects.StartContainer)]
    for id in ids:
        world.core.container_ready(world.now, id, 4)
    for _ in range(4):
        world.submit(b"x")
        world.settle()
    assert [len(world.core.state.containers[id].held) for id in ids] == [2, 2]


def test_one_hung_input_times_out_while_its_siblings_come_and_go() -> None:
    world, container = concurrent(2, timeout_s=5.0)
    world.submit(b"hang")
    [hung] = of(world.settle(), effects.Deliver)
    found: list[effects.Effect] = []
    for _ in range(6):
        world.submit(b"short")
        [short] = of(world.settle(), effects.Deliver)
        found += world.wait(0.7)
        world.answer(short)
        found += world.settle()
    found += world.wait(1.5)
    assert errors_of(found) == ["FunctionTimeoutError"]
    assert [one.container for one in of(found, effects.StopContainer)] == [container]
    assert hung.indexes == [0]


def test_a_coroutine_over_its_time_is_cancelled_and_its_siblings_go_on() -> None:
    world, container = concurrent(2, timeout_s=5.0, is_async=True)
    world.submit(b"hang")
    [hung] = of(world.settle(), effects.Deliver)
    world.wait(3.0)
    world.submit(b"late")
    world.settle()
    found = world.wait(2.5)
    assert errors_of(found) == ["FunctionTimeoutError"]
    assert [one.deliveries for one in of(found, effects.Interrupt)] == [hung.deliveries]
    assert not of(found, effects.StopContainer)
    world.submit(b"next")
    assert not of(world.settle(), effects.Deliver), "the cancelled one has its slot until it says that it ended"
    world.answer(hung, wire.FAILURE)
    assert [len(one.deliveries) for one in of(world.settle(), effects.Deliver)] == [1]
    assert world.core.state.containers[container].used == 2


def test_a_coroutine_that_does_not_end_costs_its_container() -> None:
    world, container = concurrent(2, timeout_s=5.0, is_async=True)
    world.submit(b"hang")
    world.settle()
    found = world.wait(5.0 + INTERRUPTED_S + 0.5)
    assert [(one.container, one.grace_s) for one in of(found, effects.StopContainer)] == [(container, 0.0)]


def test_siblings_of_a_timeout_in_a_thread_run_again_without_blame() -> None:
    world, container = concurrent(3, timeout_s=5.0)
    world.submit(b"hang")
    world.settle()
    world.wait(3.0)
    world.submit(b"sibling")
    world.settle()
    world.wait(2.5)
    world.core.container_lost(world.now, container, "killed by SIGKILL")
    start(world, 3)
    assert [one.payloads for one in of(world.seen, effects.Deliver)][-1] == [b"sibling"]
    assert not any(one.suspect for call in world.core.state.calls.values() for one in call.inputs())


def test_a_batch_that_was_interrupted_holds_one_slot_and_not_one_an_input() -> None:
    world = batched(size=3, max_inputs=3, timeout_s=2.0, is_async=True)
    world.submit(*[b"x"] * 3)
    [batch] = batches(world.settle())
    world.wait(2.1)
    container = world.core.container(batch.container)
    assert container is not None
    assert container.used == 1
    world.submit(*[b"x"] * 6)
    assert [len(one.deliveries) for one in batches(world.settle())] == [3, 3]
