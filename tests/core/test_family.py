"""Call graphs, and what is done with single inputs, in the core."""

from __future__ import annotations

import pytest
from nomadfn_agent import wire
from test_core import APP, SESSION, World, of

from nomadfn.core import effects, family, inputs
from nomadfn.core.core import Core
from nomadfn.core.family import Node
from nomadfn.exception import ConflictError, InvalidError, NotFoundError


def nodes_of(world: World, call: str) -> dict[str, Node]:
    found, truncated = family.graph(world.core.state, world.core.state.calls[call])
    assert not truncated
    return {one.input: one for one in found}


def test_the_graph_of_a_call_knows_what_became_of_calls_that_are_gone() -> None:
    world = World(capacity=3, autoscaler=wire.AutoscalerSettings(3, 3))
    top = world.submit(b"top", kind=wire.SPAWN)
    world.start(3)
    (running,) = of(world.settle(), effects.Deliver)
    made_by = family.input_id(top, 0)
    below = world.submit(b"1", b"2", kind=wire.MAP, parent=made_by)
    first, second = of(world.settle(), effects.Deliver)
    assert nodes_of(world, top)[family.input_id(below, 0)].status == family.PENDING
    world.answer(first)
    world.answer(second, wire.EXCEPTION)
    (results,) = of(world.settle(), effects.SendResults)
    world.core.acknowledge(SESSION, results.number)
    assert below not in world.core.state.calls
    found = nodes_of(world, top)
    assert found[made_by].container == running.container
    statuses = {found[family.input_id(below, index)].status for index in (0, 1)}
    assert statuses == {family.SUCCESS, family.FAILURE}
    assert {one.parent for one in found.values()} == {"", made_by}


def test_a_child_sees_the_tree_from_the_top() -> None:
    world = World(capacity=3)
    top = world.submit(b"top", kind=wire.REMOTE)
    child = world.submit(b"1", kind=wire.SPAWN, parent=family.input_id(top, 0))
    assert set(nodes_of(world, child)) == {family.input_id(top, 0), family.input_id(child, 0)}


def test_spawned_children_are_known_after_a_restart() -> None:
    world = World(capacity=0)
    top = world.submit(b"top", kind=wire.SPAWN)
    child = world.submit(b"1", kind=wire.SPAWN, parent=family.input_id(top, 0))
    segments = [world.journal(), list(world.core.snapshot())]
    for segment in segments:
        again = Core(epoch=2)
        again.restore_app(world.now, APP, world.spec, SESSION, False, 0)
        again.replay(segment)
        again.end_replay(world.now)
        found, _ = family.graph(again.state, again.state.calls[top])
        assert {one.input: one.parent for one in found} == {
            family.input_id(top, 0): "",
            family.input_id(child, 0): family.input_id(top, 0),
        }


def test_a_family_is_bounded() -> None:
    world = World(capacity=0)
    above = world.submit(b"0", kind=wire.SPAWN)
    first = above
    for _ in range(family.INPUTS_MAX + 10):
        above = world.submit(b"1", kind=wire.SPAWN, parent=family.input_id(above, 0))
    found, truncated = family.graph(world.core.state, world.core.state.calls[first])
    assert len(found) == family.INPUTS_MAX
    assert truncated


def test_a_call_that_no_input_has_made_costs_no_family() -> None:
    world = World()
    call = world.submit(b"1", kind=wire.SPAWN)
    strange = world.submit(b"1", parent="in-nobody-0")
    assert world.core.state.calls[call].family is None
    assert world.core.state.calls[strange].family is None
    assert list(nodes_of(world, call)) == [family.input_id(call, 0)]


@pytest.mark.parametrize("id", ["", "in-", "in--1", "in-abc", "in-abc-", "in-abc-x", "fc-abc-0", "in-abc-1.5"])
def test_what_is_no_id_of_an_input_is_refused(id: str) -> None:
    world = World()
    with pytest.raises((InvalidError, NotFoundError)):
        inputs.find(world.core.state, world.now, id)


def test_one_input_of_a_call_is_cancelled_and_the_others_go_on() -> None:
    world = World(capacity=1)
    call = world.submit(b"1", b"2", b"3", kind=wire.SPAWN_MAP)
    world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    world.journal()
    assert world.core.cancel_input(world.now, family.input_id(call, 2))
    assert world.core.cancel_input(world.now, family.input_id(call, 0))
    assert not world.core.cancel_input(world.now, family.input_id(call, 0)), "it is done"
    (interrupt,) = of(world.settle(), effects.Interrupt)
    assert interrupt.deliveries == deliver.deliveries
    segment = world.journal()
    world.core.returned(world.now, deliver.container, deliver.deliveries)
    (left,) = of(world.settle(), effects.Deliver)
    assert left.indexes == [1]
    again = Core(epoch=2)
    again.restore_app(world.now, APP, world.spec, SESSION, False, 0)
    again.replay(world.core.snapshot())
    assert segment
    states = {one.index: inputs.describe(one)["outcome"] for one in again.state.calls[call].inputs()}
    assert states == {0: "cancelled", 1: "", 2: "cancelled"}


def test_an_input_that_waits_for_its_next_attempt_is_told_to_wait_no_longer() -> None:
    world = World(capacity=1, retries=wire.RetryPolicy(3, 1.0, 60.0))
    call = world.submit(b"1", kind=wire.SPAWN)
    id = family.input_id(call, 0)
    world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    with pytest.raises(ConflictError, match="the input is running"):
        world.core.retry_input(world.now, id)
    world.answer(deliver, wire.EXCEPTION)
    world.settle()
    world.core.retry_input(world.now, id)
    (again,) = of(world.settle(), effects.Deliver)
    world.answer(again, wire.EXCEPTION)
    world.settle()
    assert of(world.wait(30), effects.Deliver) == [], "the wait that was ended does not end this one"
    assert len(of(world.wait(31), effects.Deliver)) == 1


def test_a_list_is_of_the_states_that_were_asked_for_and_says_whether_there_are_more() -> None:
    world = World(capacity=1)
    call = world.submit(*[b"x"] * 10, kind=wire.SPAWN_MAP)
    world.start(1)
    world.settle()
    state, functions = world.core.state, list(world.core.state.functions.values())
    found, more = inputs.listed(state, functions, "", ["pending"], 5)
    assert ([one.index for one in found], more) == ([1, 2, 3, 4, 5], True)
    found, more = inputs.listed(state, functions, call, [], 100)
    assert (len(found), more) == (10, False)
    assert inputs.listed(state, [], "", [], 100) == ([], False)
    [running] = inputs.describe_all(inputs.listed(state, functions, "", ["running"], 5)[0])
    assert running["container"] in state.containers
