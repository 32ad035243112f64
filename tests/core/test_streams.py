"""Streams in the core: parts out, parts in, and what becomes of them when something is lost."""

from __future__ import annotations

from typing import Any

from nomadfn_agent import wire
from nomadfn_agent.wire import payload
from test_adoption import OLD, Successor
from test_core import SESSION, World, failure_of, of

from nomadfn.core import effects

REFERENCE = payload.encode(payload.BlobRef("aa-ap-1", "", 5_000_000))


class Streams(World):
    """A world of one generator function that runs one input."""

    def __init__(self, **spec: Any) -> None:
        super().__init__(is_generator=True, **spec)
        self.call = self.submit(b"x", kind=wire.REMOTE)
        (start,) = of(self.settle(), effects.StartContainer)
        self.container = start.container.id
        self.core.container_ready(self.now, self.container, self.spec.functions[0].max_inputs)
        (deliver,) = of(self.settle(), effects.Deliver)
        self.deliver = deliver
        (self.delivery,) = deliver.deliveries

    def give(self, number: int, *payloads: bytes, status: int = wire.OK) -> list[effects.Effect]:
        self.core.parts(self.container, self.delivery, number, [status] * len(payloads), list(payloads))
        return self.settle()

    def lose(self) -> list[effects.Effect]:
        self.core.container_lost(self.now, self.container, "killed by SIGKILL", "")
        return self.settle()


def test_parts_go_to_the_client_in_their_order_and_before_the_result() -> None:
    world = Streams()
    world.core.parts(world.container, world.delivery, 2, [0, 0], [b"1", b"2"])
    world.core.parts(world.container, world.delivery, 3, [0], [b"3"])
    world.answer(world.deliver)
    found = [one for one in world.settle() if isinstance(one, effects.SendParts | effects.SendResults)]
    assert [one.number for one in found if isinstance(one, effects.SendParts)] == [2, 3]
    assert isinstance(found[-1], effects.SendResults)
    world.core.acknowledge(SESSION, found[-1].number)
    assert not world.core.state.streams


def test_what_is_taken_is_told_to_the_container_and_not_sent_again() -> None:
    world = Streams()
    world.give(2, b"1", b"2")
    world.give(3, b"3")
    world.core.parts_taken(SESSION, world.call, 0, 2)
    (consumed,) = of(world.settle(), effects.Consumed)
    assert (consumed.container, consumed.delivery, consumed.number) == (world.container, world.delivery, 2)
    world.core.detach_session(world.now, SESSION)
    world.give(4, b"4")
    world.core.open_session(SESSION)
    again = of(world.settle(), effects.SendParts)
    assert [(one.number, one.payloads) for one in again] == [(3, [b"3"]), (4, [b"4"])]


def test_nobody_takes_parts_of_another_session() -> None:
    world = Streams()
    world.give(1, b"1")
    world.core.open_session("se-other")
    world.core.parts_taken("se-other", world.call, 0, 1)
    assert of(world.settle(), effects.Consumed) == []


def test_an_input_that_has_given_nothing_runs_again_after_a_loss() -> None:
    world = Streams()
    world.lose()
    world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    assert deliver.call == world.call


def test_an_input_that_has_given_something_fails_with_what_was_seen() -> None:
    world = Streams()
    world.give(2, b"1", b"2")
    found = world.lose()
    failure = failure_of(of(found, effects.SendResults))
    assert failure.error == "InternalFailure"
    assert "2 parts" in failure.message
    assert "killed by SIGKILL" in failure.message
    assert "not run again" in failure.message
    assert of(found, effects.Deliver) == []
    assert world.core.function(world.function).totals.lost == 1


def test_siblings_of_a_stream_that_was_lost_run_again() -> None:
    world = Streams(max_inputs=3)
    world.give(1, b"1")
    other = world.submit(b"y", kind=wire.REMOTE)
    world.settle()
    world.lose()
    world.start(1)
    assert [one.call for one in of(world.settle(), effects.Deliver)] == [other]


def test_an_input_that_has_given_something_is_not_retried() -> None:
    world = Streams(retries=wire.RetryPolicy(max_retries=3))
    world.give(1, b"1")
    world.answer(world.deliver, wire.EXCEPTION)
    (results,) = of(world.settle(), effects.SendResults)
    assert results.statuses == [wire.EXCEPTION]


def test_parts_of_a_cancelled_input_are_dropped_with_their_blobs() -> None:
    world = Streams()
    world.core.cancel_call(world.now, world.call)
    (interrupt,) = of(world.settle(), effects.Interrupt)
    assert interrupt.deliveries == [world.delivery]
    found = world.give(1, REFERENCE, status=wire.OK | wire.REF)
    assert of(found, effects.SendParts) == []
    assert [one.reference for one in of(found, effects.DropBlob)] == [REFERENCE]


def test_a_session_that_ends_takes_the_blobs_of_its_parts_with_it() -> None:
    world = Streams()
    world.give(1, REFERENCE, status=wire.OK | wire.REF)
    assert "aa-ap-1" in world.core.live_blobs()
    world.core.end_session(world.now, SESSION)
    assert [one.reference for one in of(world.settle(), effects.DropBlob)] == [REFERENCE]
    assert not world.core.state.streams


def test_a_generator_function_is_only_called_where_its_values_are_read() -> None:
    world = Streams()
    world.submit(b"x", kind=wire.MAP)
    world.submit(b"x", kind=wire.SPAWN)
    assert [one.error for one in of(world.settle(), effects.Reject)] == ["InvalidError"] * 2


def test_streams_are_not_sent_ahead() -> None:
    world = Streams()
    world.answer(world.deliver, run_s=1e-6)
    for _ in range(3):
        world.submit(b"x", kind=wire.REMOTE)
    (deliver,) = of(world.settle(), effects.Deliver)
    assert len(deliver.deliveries) == 1


def test_what_an_input_is_fed_while_it_waits_follows_it() -> None:
    world = World(is_generator=True)
    call = world.submit(b"x", kind=wire.REMOTE)
    assert world.core.feed(call, 0, [b"1"]) == 1
    (container,) = world.start(1)
    world.core.feed(call, 0, [b"2"], last=True)
    found = [one for one in world.settle() if isinstance(one, effects.Deliver | effects.SendFeed)]
    assert isinstance(found[0], effects.Deliver)
    assert [(one.container, one.number, one.payloads, one.last) for one in found[1:]] == [  # type: ignore[union-attr]
        (container, 1, [b"1"], False),
        (container, 2, [b"2"], True),
    ]


def test_an_input_whose_feed_nobody_took_runs_again_with_all_of_it() -> None:
    world = Streams()
    world.core.feed(world.call, 0, [b"1"])
    world.core.feed(world.call, 0, [b"2"])
    assert [one.number for one in of(world.settle(), effects.SendFeed)] == [1, 2]
    world.lose()
    world.start(1)
    assert [one.number for one in of(world.settle(), effects.SendFeed)] == [1, 2]


def test_an_input_whose_feed_somebody_took_fails_after_a_loss() -> None:
    world = Streams()
    world.core.feed(world.call, 0, [b"1"])
    world.core.fed(world.container, world.delivery, 1)
    (told,) = of(world.settle(), effects.FeedTaken)
    assert (told.session, told.call, told.index, told.number) == (SESSION, world.call, 0, 1)
    assert failure_of(of(world.lose(), effects.SendResults)).error == "InternalFailure"


def test_parts_that_come_twice_are_seen_by_their_numbers() -> None:
    world = Streams()
    world.give(2, b"1", b"2")
    assert of(world.give(2, b"1", b"2"), effects.SendParts) == []
    (more,) = of(world.give(3, b"2", b"3"), effects.SendParts)
    assert (more.number, more.payloads) == (3, [b"3"])


def test_a_new_leader_goes_on_with_the_stream_of_a_container_that_is_back() -> None:
    world = Successor(is_generator=True)
    call = f"fc-{int(world.now):08x}{1:024x}"
    world.attach((OLD, call, 0))
    world.core.parts("ct-old", OLD, 7, [0, 0], [b"6", b"7"])
    world.go_on()
    world.submit(b"x", kind=wire.REMOTE, attempt=OLD)
    (parts,) = of(world.settle(), effects.SendParts)
    assert (parts.attempt, parts.number, parts.payloads) == (OLD, 7, [b"6", b"7"])
    world.core.parts("ct-old", OLD, 8, [0], [b"8"])
    world.give(OLD)
    found = world.settle()
    assert [one.number for one in of(found, effects.SendParts)] == [8]
    assert len(of(found, effects.SendResults)) == 1


def test_a_client_may_be_back_before_the_container_that_has_its_stream() -> None:
    world = Successor(is_generator=True)
    call = world.submit(b"x", kind=wire.REMOTE, attempt=OLD)
    world.attach((OLD, call, 0))
    world.core.parts("ct-old", OLD, 3, [0], [b"3"])
    found = world.go_on()
    assert of(found, effects.Deliver) == of(found, effects.SendResults) == []
    assert [one.number for one in of(found, effects.SendParts)] == [3]


def test_a_stream_that_had_begun_is_not_run_anew_by_the_next_leader() -> None:
    world = Successor(is_generator=True)
    world.submit(b"x", kind=wire.REMOTE, attempt=OLD)
    assert world.settle() == []
    world.attach()
    found = world.go_on()
    assert of(found, effects.Deliver) == []
    failure = failure_of(of(found, effects.SendResults))
    assert failure.error == "InternalFailure"
    assert "not run again" in failure.message


def test_an_ended_stream_is_kept_whole_for_a_client_that_comes_later() -> None:
    world = Successor(is_generator=True)
    call = f"fc-{int(world.now):08x}{1:024x}"
    world.attach((OLD, call, 0))
    world.core.parts("ct-old", OLD, 2, [0, 0], [b"1", b"2"])
    world.give(OLD)
    world.go_on()
    world.submit(b"x", kind=wire.REMOTE)
    found = [one for one in world.settle() if isinstance(one, effects.SendParts | effects.SendResults)]
    assert [type(one) for one in found] == [effects.SendParts, effects.SendResults]


def test_an_ended_stream_that_nobody_comes_for_is_forgotten() -> None:
    world = Successor(is_generator=True)
    world.attach((OLD, f"fc-{int(world.now):08x}{1:024x}", 0))
    world.core.parts("ct-old", OLD, 1, [wire.OK | wire.REF], [REFERENCE])
    world.give(OLD)
    world.go_on()
    found = world.wait(61)
    assert REFERENCE in [one.reference for one in of(found, effects.DropBlob)]
    assert not world.core.state.streams


def test_what_a_client_has_taken_is_told_to_a_container_that_comes_back_later() -> None:
    world = Successor(is_generator=True)
    call = world.submit(b"x", kind=wire.REMOTE, attempt=OLD)
    world.core.parts_taken(SESSION, call, 0, 5)
    world.attach((OLD, call, 0))
    world.core.parts("ct-old", OLD, 5, [0] * 3, [b"3", b"4", b"5"])
    world.core.parts("ct-old", OLD, 6, [0], [b"6"])
    found = world.go_on()
    assert [(one.delivery, one.number) for one in of(found, effects.Consumed)] == [(OLD, 5)]
    assert [one.number for one in of(found, effects.SendParts)] == [6]


def test_a_stream_whose_client_does_not_come_back_is_cancelled() -> None:
    world = Successor(is_generator=True)
    world.attach((OLD, f"fc-{int(world.now):08x}{1:024x}", 0))
    world.core.parts("ct-old", OLD, 1, [0], [b"1"])
    world.go_on()
    assert of(world.wait(29), effects.Interrupt) == []
    assert [one.deliveries for one in of(world.wait(2), effects.Interrupt)] == [[OLD]]
    world.give(OLD, status=wire.FAILURE)
    world.wait(61)
    assert not world.core.state.streams
    assert not world.core.state.early
