"""A new leader and the containers of the one before: nothing that runs is run again, nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest
from nomadfn_agent import wire
from test_core import APP, SESSION, World, of

from nomadfn.core import effects
from nomadfn.core.core import Core

OLD = 7
"""A delivery that the earlier leader has given."""
FIRST = 1_000


class Successor(World):
    """A core that leads after another one, with one container that it has found."""

    def __init__(self, **spec: Any) -> None:
        super().__init__(**spec)
        self.core = Core(None, epoch=2, capacity=4, capacity_reason="the test's capacity", first_delivery=FIRST)
        self.core.hold_back(True)
        self.core.open_session(SESSION)
        self.core.start_app(self.now, APP, self.spec, SESSION)
        found = self.core.container_found(self.now, "ct-old", APP, "f", 0)
        assert found is not None
        self.found = found

    def attach(self, *held: tuple[int, str, int]) -> None:
        deliveries, of_calls, indexes = ([one[position] for one in held] for position in range(3))
        self.core.container_attached(self.now, "ct-old", 1, deliveries, of_calls, indexes)

    def go_on(self) -> list[effects.Effect]:
        self.core.hold_back(False)
        return self.settle()

    def give(self, delivery: int, data: bytes = b"r", status: int = wire.OK) -> None:
        self.core.outputs(self.now, "ct-old", [delivery], [status], [data], 1_000)


def test_nothing_is_handed_out_and_nothing_started_before_the_containers_are_back() -> None:
    world = Successor()
    world.submit(b"1")
    assert world.settle() == []
    world.attach()
    (deliver,) = of(world.go_on(), effects.Deliver)
    assert deliver.container == "ct-old"
    assert deliver.deliveries == [FIRST]


def test_a_spawn_that_runs_in_a_found_container_is_not_run_again() -> None:
    world = Successor()
    call = world.submit(b"1", kind=wire.SPAWN)
    world.journal()
    world.attach((OLD, call, 0))
    assert of(world.go_on(), effects.Deliver) == []
    world.give(OLD)
    world.settle()
    world.journal()
    assert of(world.settle(), effects.Visible) != []


def test_a_map_input_is_its_containers_when_its_client_comes_later() -> None:
    world = Successor()
    call = f"fc-{int(world.now):08x}{1:024x}"
    world.attach((OLD, call, 3))
    world.go_on()
    assert world.submit(b"late", first=3) == call
    assert of(world.settle(), effects.Deliver) == []
    world.give(OLD, b"result")
    (results,) = of(world.settle(), effects.SendResults)
    assert (results.call, results.indexes, results.payloads) == (call, [3], [b"result"])


def test_a_result_that_comes_before_its_client_is_kept_for_it() -> None:
    world = Successor()
    call = f"fc-{int(world.now):08x}{1:024x}"
    world.attach((OLD, call, 0))
    world.go_on()
    world.give(OLD, b"early")
    world.settle()
    world.submit(b"late")
    found = world.settle()
    assert of(found, effects.Deliver) == []
    (results,) = of(found, effects.SendResults)
    assert results.payloads == [b"early"]


@pytest.mark.parametrize("when", ["runs", "is done"])
@pytest.mark.parametrize("kind", [wire.SPAWN, wire.SPAWN_MAP])
def test_a_spawn_that_was_handed_out_and_not_durable_yet_is_not_run_again(kind: int, when: str) -> None:
    world = Successor()
    call = f"fc-{int(world.now):08x}{1:024x}"
    index = 0
    if kind == wire.SPAWN_MAP:
        # What came before it is known.
        world.submit(b"durable", kind=kind, call=call)
        world.journal()
        index = 1
    world.attach((OLD, call, index), *([(OLD + 1, call, 0)] if index else []))
    world.go_on()
    if when == "is done":
        world.give(OLD, b"result")
        world.settle()
    world.submit(b"again", kind=kind, call=call, first=index)
    assert of(world.settle(), effects.Deliver) == []
    if when == "runs":
        world.give(OLD, b"result")
        world.settle()
    world.journal()
    world.settle()
    one = world.core.state.calls[call].get(index)
    assert one is not None
    assert (one.status, one.payload) == (wire.OK, b"result")


def test_what_a_found_container_held_runs_again_once_it_is_lost() -> None:
    world = Successor()
    call = f"fc-{int(world.now):08x}{1:024x}"
    spawn = world.submit(b"kept", kind=wire.SPAWN, call=f"fc-{int(world.now):08x}{9:024x}")
    world.calls = 0
    world.journal()
    world.attach((OLD, call, 0), (OLD + 1, spawn, 0))
    world.go_on()
    world.core.container_lost(world.now, "ct-old", "its node was lost")
    world.submit(b"late")
    world.start(1)
    (first,) = of(world.settle(), effects.Deliver)
    world.answer(first)
    delivered = [one.call for one in (first, *of(world.wait(0.5), effects.Deliver))]
    assert sorted(delivered) == sorted([call, spawn])


def test_a_claim_that_wants_a_retry_waits_for_its_client() -> None:
    world = Successor(retries=wire.RetryPolicy(max_retries=2, initial_delay_s=0.0))
    call = f"fc-{int(world.now):08x}{1:024x}"
    world.attach((OLD, call, 0))
    world.go_on()
    world.give(OLD, b"", wire.EXCEPTION)
    world.submit(b"late")
    (deliver,) = of(world.settle(), effects.Deliver)
    assert deliver.payloads == [b"late"]


def test_a_container_is_told_to_let_go_of_what_has_a_result() -> None:
    world = Successor()
    call = world.submit(b"1", kind=wire.SPAWN)
    world.core.cancel_call(world.now, call)
    world.journal()
    world.attach((OLD, call, 0))
    (interrupt,) = of(world.go_on(), effects.Interrupt)
    assert interrupt.deliveries == [OLD]


def test_a_blob_that_an_earlier_leader_may_have_kept_is_not_dropped() -> None:
    world = Successor()
    world.attach()
    world.give(OLD, b"reference", wire.OK | wire.REF)
    assert of(world.go_on(), effects.DropBlob) == []


def test_a_container_of_an_app_that_is_gone_is_not_needed() -> None:
    world = Successor()
    assert world.core.container_found(world.now, "ct-x", "ap-gone", "f", 0) is None
    assert world.core.container_found(world.now, "ct-x", APP, "gone", 0) is None


def test_a_container_that_is_about_to_leave_gets_nothing_more_and_ends_when_it_is_done() -> None:
    world = World()
    world.submit(b"1")
    (first,) = world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    world.core.container_leaving(world.now, first, "its node is drained")
    world.submit(b"2")
    assert of(world.settle(), effects.Deliver) == []
    world.answer(deliver)
    assert [one.container for one in of(world.settle(), effects.StopContainer)] == [first]


def test_the_time_in_which_an_environment_is_made_is_none_of_the_start() -> None:
    world = World(startup_timeout_s=5.0)
    world.submit(b"1")
    (start,) = of(world.settle(), effects.StartContainer)
    world.core.container_preparing(start.container.id, "its image im-1 is being built")
    assert of(world.wait(60.0), effects.StopContainer) == []
    start.container.pid = 17
    assert of(world.wait(4.0), effects.StopContainer) == []
    assert [one.container for one in of(world.wait(2.0), effects.StopContainer)] == [start.container.id]


def test_why_there_is_no_place_is_why_the_function_is_blocked_and_its_start_has_no_time() -> None:
    world = World(startup_timeout_s=5.0)
    world.submit(b"1")
    world.settle()
    world.core.placement_blocked(world.function, "f wants 1 × L40S; no node has one")
    world.wait(60.0)
    function = world.core.function(world.function)
    assert function.blocked == "f wants 1 × L40S; no node has one"
    assert function.failures == 0
    world.core.placement_blocked(world.function, "")
    world.wait(1.0)
    assert function.blocked == ""
