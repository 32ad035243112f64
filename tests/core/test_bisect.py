"""`on_batch_error="bisect"`: what raises for a batch is run again by halves, until it raises alone."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from nomadfn_agent import wire
from test_batching import batched, batches
from test_core import SESSION, World, of

from nomadfn.core import effects


def run(world: World, bad: frozenset[int], first: list[effects.DeliverBatch] | None = None) -> list[list[int]]:
    """Answer every batch as a function does that raises for each batch with a bad input; returns what it was given."""
    given: list[list[int]] = []
    found: list[effects.Effect] = list(first or [])
    while True:
        found += world.wait(0.2)
        todo = batches(found)
        if not todo:
            return given
        found = []
        for batch in todo:
            given.append(list(batch.indexes))
            raises = bool(bad & set(batch.indexes))
            status = wire.OK if not raises else wire.EXCEPTION if len(batch.indexes) == 1 else wire.BATCH_RAISED
            count = len(batch.deliveries)
            world.core.outputs(world.now, batch.container, batch.deliveries, [status] * count, [b"r"] * count, 1_000)


def statuses(world: World) -> dict[int, int]:
    sent = of(world.seen, effects.SendResults)
    return {index: status for one in sent for index, status in zip(one.indexes, one.statuses, strict=True)}


def test_one_bad_input_of_eight_fails_alone_after_three_halvings() -> None:
    world = batched(size=8)
    world.submit(*[b"x"] * 8)
    given = run(world, frozenset([5]))
    assert given == [[*range(8)], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [6, 7], [4], [5]]
    assert statuses(world) == {index: wire.EXCEPTION if index == 5 else wire.OK for index in range(8)}
    totals = world.core.function(world.function).totals
    assert (totals.succeeded, totals.failed, totals.retried) == (7, 1, 0)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 16),
    st.integers(1, 60),
    st.sets(st.integers(0, 59), max_size=12),
    st.integers(0, 2),
    st.sampled_from((wire.MAP, wire.SPAWN_MAP)),
)
def test_exactly_the_bad_ones_fail_and_each_good_one_has_one_result(
    size: int, count: int, bad: set[int], retries: int, kind: int
) -> None:
    world = batched(size=size, retries=wire.RetryPolicy(retries, 1.0, 0.0))
    bad = {index for index in bad if index < count}
    call = world.submit(*[b"x"] * count, kind=kind)
    given = run(world, frozenset(bad))
    alone = [indexes[0] for indexes in given if len(indexes) == 1]
    for index in bad:
        assert alone.count(index) == 1 + retries, "only what raises alone uses up a retry"
    done = sum(map(len, given))
    halvings = math.ceil(math.log2(size)) + 1 if size > 1 else 1
    assert done <= count + len(bad) * (1 + retries) * (2 * size + halvings)
    assert len(given) <= math.ceil(count / size) + len(bad) * (1 + retries) * (2 * halvings + 2)
    if kind == wire.MAP:
        found = statuses(world)
    else:
        world.journal()
        world.settle()
        world.journal()
        found = {one.index: one.status for one in world.core.state.calls[call].inputs()}
    assert found == {index: wire.EXCEPTION if index in bad else wire.OK for index in range(count)}
    function = world.core.function(world.function)
    assert (function.waiting_inputs, function.running_inputs) == (0, 0)
    assert (function.totals.succeeded, function.totals.failed) == (count - len(bad), len(bad))
    assert function.totals.retried == len(bad) * retries


def test_two_batches_whose_outputs_come_in_one_frame_do_not_become_one() -> None:
    world = batched(size=2, max_inputs=2)
    world.submit(*[b"x"] * 4)
    first, second = batches(world.settle())
    deliveries = [*first.deliveries, *second.deliveries]
    world.core.outputs(world.now, first.container, deliveries, [wire.BATCH_RAISED] * 4, [b""] * 4, 1_000)
    parts = batches(world.settle())
    assert [len(one.deliveries) for one in parts] == [1, 1]
    assert sorted(i for indexes in run(world, frozenset(), parts) for i in indexes) == [0, 1, 2, 3]


def test_a_part_whose_input_was_cancelled_meanwhile_runs_without_it() -> None:
    world = batched(size=4)
    gone = world.submit(b"x", b"x")
    world.submit(b"x", b"x")
    (batch,) = batches(world.settle())
    world.core.outputs(world.now, batch.container, batch.deliveries, [wire.BATCH_RAISED] * 4, [b""] * 4, 1_000)
    world.core.cancel_call(world.now, gone)
    (part,) = batches(world.settle())
    assert len(part.deliveries) == 2
    assert gone not in part.calls


def test_parts_run_one_by_one_where_the_next_revision_is_not_batched_any_more() -> None:
    world = batched(size=4)
    world.submit(*[b"x"] * 4)
    (batch,) = batches(world.settle())
    world.core.outputs(world.now, batch.container, batch.deliveries, [wire.BATCH_RAISED] * 4, [b""] * 4, 1_000)
    spec = wire.FunctionSpec(name="f", autoscaler=wire.AutoscalerSettings(1, 1))
    world.core.start_app(world.now, "ap-1", wire.AppSpec(name="app", functions=[spec]), SESSION)
    world.settle()
    world.core.container_lost(world.now, batch.container, "it was told to end", "")
    world.start(1)
    indexes: list[int] = []
    while delivered := of(world.settle(), effects.Deliver):
        for deliver in delivered:
            indexes += deliver.indexes
            world.answer(deliver, run_s=1.0)
    assert indexes == [0, 1, 2, 3]


def test_a_container_that_dies_with_a_part_has_it_run_alone() -> None:
    world = batched(size=4)
    world.submit(*[b"x"] * 4)
    (batch,) = batches(world.settle())
    world.core.outputs(world.now, batch.container, batch.deliveries, [wire.BATCH_RAISED] * 4, [b""] * 4, 1_000)
    (part,) = batches(world.settle())
    world.core.container_lost(world.now, part.container, "killed", "")
    world.start(1)
    given: list[Any] = run(world, frozenset(), batches(world.settle()))
    assert sorted(index for indexes in given for index in indexes) == [0, 1, 2, 3]
