"""The core by example: what goes in, and what is asked of the world then."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest
from nomadfn_agent import wire
from nomadfn_agent.wire import payload

from nomadfn.core import calls, effects
from nomadfn.core.core import Core
from nomadfn.core.limits import Limits
from nomadfn.core.losses import MAX_LOSSES
from nomadfn.exception import InternalError, NotFoundError, OutputExpiredError

E = TypeVar("E")
APP = "ap-1"
SESSION = "se-1"


class World:
    """A core with one app of one function `f`, a clock, and containers that do what the test says."""

    def __init__(self, capacity: int | None = 4, limits: Limits | None = None, **spec: Any) -> None:
        self.now = 1_000_000.0
        self.core = Core(limits, epoch=1, capacity=capacity, capacity_reason="the test's capacity")
        self.core.open_session(SESSION)
        self.spec = wire.AppSpec(name="app", functions=[wire.FunctionSpec(name="f", **spec)])
        self.function = self.core.start_app(self.now, APP, self.spec, SESSION)["f"]
        self.seen: list[effects.Effect] = []
        self.calls = 0

    def settle(self) -> list[effects.Effect]:
        found = self.core.settle(self.now)
        self.core.check_invariants()
        self.seen += found
        return found

    def wait(self, seconds: float) -> list[effects.Effect]:
        """Let time pass in steps of the tick."""
        found = []
        end = self.now + seconds
        while self.now < end:
            step = self.core.tick(self.now)
            found += self.settle()
            self.now = min(end, self.now + step)
        self.core.tick(self.now)
        return found + self.settle()

    def submit(self, *payloads: bytes, kind: int = wire.MAP, session: str = SESSION, **more: Any) -> str:
        self.calls += 1
        call = more.pop("call", f"fc-{int(self.now):08x}{self.calls:024x}")
        first = more.pop("first", 0)
        submission = calls.Submission(call, self.function, kind, first, list(payloads), **more)
        self.core.submit(self.now, session, submission)
        return call

    def start(self, count: int) -> list[str]:
        """Bring `count` of the containers that were asked for up."""
        self.settle()
        waiting = [one.container.id for one in of(self.seen, effects.StartContainer)]
        chosen = [id for id in waiting if (one := self.core.container(id)) is not None and one.state == 0][:count]
        for id in chosen:
            self.core.container_ready(self.now, id)
        return chosen

    def answer(self, deliver: effects.Deliver, status: int = wire.OK, run_s: float = 0.0, data: bytes = b"r") -> None:
        count = len(deliver.deliveries)
        run_ns = int(run_s * 1e9) * count
        self.core.outputs(self.now, deliver.container, deliver.deliveries, [status] * count, [data] * count, run_ns)

    def journal(self) -> list[Any]:
        """Everything that the core wants written becomes durable."""
        records, number = self.core.take_records()
        self.core.durable(self.now, number)
        return records


def of(found: list[effects.Effect], kind: type[E]) -> list[E]:
    return [one for one in found if isinstance(one, kind)]


def failure_of(results: list[effects.SendResults]) -> payload.Failure:
    (result,) = results
    assert result.statuses == [wire.FAILURE]
    return payload.decode_failure(result.payloads[0])


def test_containers_start_when_the_first_input_comes_and_not_before() -> None:
    world = World()
    assert of(world.settle(), effects.StartContainer) == []
    world.submit(b"1")
    (start,) = of(world.settle(), effects.StartContainer)
    assert start.container.index == 0


def test_an_input_comes_back_to_its_session_under_its_call_and_index() -> None:
    world = World()
    call = world.submit(b"1", b"2")
    world.start(2)
    delivers = of(world.settle(), effects.Deliver)
    assert [one.payloads for one in delivers] == [[b"1"], [b"2"]]
    for deliver in delivers:
        world.answer(deliver)
    (results,) = of(world.settle(), effects.SendResults)
    assert (results.call, results.indexes, results.number) == (call, [0, 1], 2)


def test_the_lowest_index_that_has_room_gets_the_input() -> None:
    world = World(autoscaler=wire.AutoscalerSettings(min_containers=3))
    first, *_ = world.start(3)
    world.submit(b"1")
    (deliver,) = of(world.settle(), effects.Deliver)
    assert deliver.container == first
    world.answer(deliver)
    world.submit(b"2")
    assert [one.container for one in of(world.settle(), effects.Deliver)] == [first]


def test_fast_functions_are_sent_work_ahead_and_slow_ones_are_not() -> None:
    world = World(capacity=1)
    world.submit(*[b"x"] * 100)
    world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    assert len(deliver.deliveries) == 1
    world.answer(deliver, run_s=0.0001)
    (deliver,) = of(world.settle(), effects.Deliver)
    assert len(deliver.deliveries) > 40
    slow = World(capacity=1)
    slow.submit(*[b"x"] * 100)
    slow.start(1)
    (deliver,) = of(slow.settle(), effects.Deliver)
    slow.answer(deliver, run_s=0.2)
    (deliver,) = of(slow.settle(), effects.Deliver)
    assert len(deliver.deliveries) == 1


def test_one_long_input_among_short_ones_does_not_end_the_work_ahead() -> None:
    world = World(capacity=1)
    world.submit(*[b"x"] * 300)
    world.start(1)
    for run_s in (0.0001, 1.0, 0.0001):
        (deliver,) = of(world.settle(), effects.Deliver)
        world.answer(deliver, run_s=run_s)
    (deliver,) = of(world.settle(), effects.Deliver)
    assert len(deliver.deliveries) > 10


def test_a_recall_that_nobody_answers_is_made_again() -> None:
    world = World(capacity=1)
    world.submit(*[b"x"] * 20)
    world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    world.answer(deliver, run_s=0.001)
    (deliver,) = of(world.settle(), effects.Deliver)
    first, *more = of(world.wait(2.0), effects.Recall)
    assert first.deliveries == deliver.deliveries[1:]
    assert 1 <= len(more) <= 8
    world.core.returned(world.now, deliver.container, first.deliveries)
    assert of(world.wait(2.0), effects.Recall) == []


def test_what_waits_behind_a_long_input_is_recalled_and_runs_elsewhere() -> None:
    world = World(capacity=2, autoscaler=wire.AutoscalerSettings(min_containers=2))
    world.submit(b"x")
    one, two = world.start(2)
    (deliver,) = of(world.settle(), effects.Deliver)
    world.answer(deliver, run_s=0.001)
    world.submit(*[b"x"] * 10)
    both = {deliver.container: deliver for deliver in of(world.settle(), effects.Deliver)}
    assert set(both) == {one, two}
    world.answer(both[two], run_s=0.001)
    (recall,) = of(world.wait(0.1), effects.Recall)
    assert (recall.container, recall.deliveries) == (one, both[one].deliveries[1:])
    assert of(world.wait(0.5), effects.Deliver) == [], "an unanswered recall is never given to another"
    world.core.returned(world.now, one, recall.deliveries)
    given: list[int] = []
    while len(given) < 4:
        (deliver,) = of(world.settle(), effects.Deliver)
        assert deliver.container == two
        given += deliver.indexes
        world.answer(deliver, run_s=0.001)
    assert sorted(given) == [1, 2, 3, 4]


def test_an_output_of_an_old_attempt_is_ignored() -> None:
    world = World(capacity=1)
    world.submit(b"x")
    (lost,) = world.start(1)
    (first,) = of(world.settle(), effects.Deliver)
    world.core.container_lost(world.now, lost, "killed by SIGKILL")
    world.start(1)
    (second,) = of(world.settle(), effects.Deliver)
    world.core.outputs(world.now, second.container, first.deliveries, [wire.OK], [b"old"], 0)
    assert of(world.settle(), effects.SendResults) == []
    world.answer(second)
    assert len(of(world.settle(), effects.SendResults)) == 1


def test_a_poison_input_fails_alone_after_its_losses_and_the_others_get_their_results() -> None:
    world = World(capacity=2)
    world.submit(b"x")
    world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    world.answer(deliver, run_s=0.0001)
    call = world.submit(b"poison", *[b"good"] * 20)
    results: list[tuple[int, int, bytes]] = []
    handled, losses = len(world.seen), 0
    while len(results) < 21:
        world.wait(0.02)
        world.start(2)
        pending, handled = world.seen[handled:], len(world.seen)
        for deliver in of(pending, effects.Deliver):
            if b"poison" in deliver.payloads:
                losses += 1
                world.core.container_lost(world.now, deliver.container, "killed by SIGSEGV", "it broke")
            else:
                world.answer(deliver, run_s=0.0001)
        for sent in of(pending, effects.SendResults):
            if sent.call == call:
                results += zip(sent.indexes, sent.statuses, sent.payloads, strict=True)
    (poisoned,) = [one for one in results if one[1] != wire.OK]
    failure = payload.decode_failure(poisoned[2])
    assert poisoned[0] == 0
    assert failure.error == "InternalFailure"
    assert "SIGSEGV" in failure.message
    assert "it broke" in failure.message
    assert losses in (MAX_LOSSES, MAX_LOSSES + 1)


def test_a_raised_exception_is_retried_after_its_delay_and_then_given() -> None:
    policy = wire.RetryPolicy(max_retries=2, initial_delay_s=1.0, backoff_coefficient=2.0)
    world = World(capacity=1, retries=policy, autoscaler=wire.AutoscalerSettings(scaledown_window_s=100))
    world.submit(b"x")
    world.start(1)
    found = world.settle()
    for delay_s in (1.0, 2.0):
        (deliver,) = of(found, effects.Deliver)
        world.answer(deliver, wire.EXCEPTION)
        assert of(world.wait(delay_s - 0.1), effects.Deliver) == []
        found = world.wait(0.2)
    (deliver,) = of(found, effects.Deliver)
    world.answer(deliver, wire.EXCEPTION)
    (results,) = of(world.settle(), effects.SendResults)
    assert results.statuses == [wire.EXCEPTION]


def test_an_input_over_its_timeout_ends_its_container_and_fails() -> None:
    world = World(capacity=1, timeout_s=10.0)
    world.submit(b"x", b"y")
    (id,) = world.start(1)
    world.settle()
    found = world.wait(10.1)
    assert [(one.container, one.grace_s) for one in of(found, effects.StopContainer)] == [(id, 0.0)]
    failure = failure_of(of(found, effects.SendResults))
    assert (failure.error, "10 s" in failure.message) == ("FunctionTimeoutError", True)
    world.core.container_lost(world.now, id, "killed")
    world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    assert deliver.payloads == [b"y"]


def test_a_container_that_is_not_ready_in_time_is_ended_and_after_three_the_inputs_fail() -> None:
    world = World(capacity=1, startup_timeout_s=5.0)
    world.submit(b"x")
    results: list[effects.SendResults] = []
    for _ in range(3):
        world.settle()
        found = world.wait(5.5)
        results += of(found, effects.SendResults)
        (stop,) = of(found, effects.StopContainer)
        world.core.container_lost(world.now, stop.container, "killed")
    results += of(world.settle(), effects.SendResults)
    failure = failure_of(results)
    assert failure.error == "ExecutionError"
    assert "startup_timeout=5 s" in failure.message


def test_a_function_that_cannot_be_loaded_fails_its_inputs_with_what_was_seen() -> None:
    world = World(capacity=1)
    world.submit(b"x")
    results: list[effects.SendResults] = []
    for _ in range(3):
        found = world.settle()
        (start,) = of(found, effects.StartContainer)
        world.core.container_start_failed(world.now, start.container.id, "SyntaxError: no")
        world.core.container_lost(world.now, start.container.id, "exit code 1")
        world.now += 0.02
    results += of(world.settle(), effects.SendResults)
    assert "SyntaxError: no" in failure_of(results).message
    assert of(world.wait(0.5), effects.StartContainer) == []


def test_a_deadline_that_passed_drops_the_input_unrun() -> None:
    world = World(capacity=1)
    world.submit(b"x", deadline=world.now + 1)
    world.settle()
    world.now += 2
    world.start(1)
    found = world.settle()
    assert of(found, effects.Deliver) == []
    assert failure_of(of(found, effects.SendResults)).error == "DeadlineExceededError"


def test_results_that_were_not_acknowledged_are_sent_again_to_a_session_that_comes_back() -> None:
    world = World(capacity=1)
    world.submit(b"x")
    world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    world.core.detach_session(world.now, SESSION)
    world.answer(deliver)
    assert of(world.settle(), effects.SendResults) == []
    assert world.core.open_session(SESSION, seen=0)
    (again,) = of(world.settle(), effects.SendResults)
    assert again.indexes == [0]
    world.core.acknowledge(SESSION, again.number)
    world.core.open_session(SESSION, seen=again.number)
    assert of(world.settle(), effects.SendResults) == []
    assert world.core.state.calls == {}


def test_an_input_that_is_sent_again_after_a_reconnect_runs_once() -> None:
    world = World(capacity=1)
    call = world.submit(b"1", b"2")
    world.submit(b"1", b"2", b"3", call=call)
    function = world.core.function(world.function)
    assert function.pending == [3, 0]


def test_a_session_that_stays_away_is_ended_with_its_app() -> None:
    world = World(capacity=1)
    world.submit(b"x")
    world.start(1)
    world.settle()
    world.core.detach_session(world.now, SESSION)
    found = world.wait(31.0)
    (stop,) = of(found, effects.StopContainer)
    world.core.container_lost(world.now, stop.container, "exit code 0")
    assert effects.AppGone(APP) in world.settle()
    assert not world.core.state.sessions


def test_a_spawn_is_accepted_only_when_the_journal_has_it() -> None:
    world = World(capacity=1)
    call = world.submit(b"x", kind=wire.SPAWN)
    assert of(world.settle(), effects.Accept) == []
    world.journal()
    assert of(world.settle(), effects.Accept) == [effects.Accept(SESSION, call, 0, 1)]


def test_a_spawns_result_is_shown_only_when_the_journal_has_it() -> None:
    world = World(capacity=1)
    call = world.submit(b"x", kind=wire.SPAWN)
    world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    world.journal()
    world.answer(deliver)
    world.settle()
    found = calls.find_durable(world.core.state, world.now, call)
    assert calls.visible_prefix(found, 0, 1, 1000) == []
    world.journal()
    assert effects.Visible(call) in world.settle()
    assert [one.payload for one in calls.visible_prefix(found, 0, 1, 1000)] == [b"r"]


def test_a_spawn_that_is_sent_again_is_accepted_again_and_not_taken_twice() -> None:
    world = World(capacity=1)
    call = world.submit(b"x", kind=wire.SPAWN)
    world.settle()
    world.journal()
    world.settle()
    world.submit(b"x", kind=wire.SPAWN, call=call)
    assert of(world.settle(), effects.Accept) == [effects.Accept(SESSION, call, 0, 1)]
    assert world.core.function(world.function).pending == [0, 1]


def replayed(world: World, journal: list[Any]) -> Core:
    core = Core(epoch=2, capacity=4)
    core.restore_app(world.now, APP, world.spec, "", True, 1)
    core.replay(journal)
    core.end_replay(world.now)
    core.check_invariants()
    return core


def spawned(world: World, count: int) -> tuple[list[str], list[Any]]:
    ids = [world.submit(b"%d" % i, kind=wire.SPAWN) for i in range(count)]
    world.start(4)
    for deliver in of(world.settle(), effects.Deliver)[:2]:
        world.answer(deliver)
    world.settle()
    return ids, world.journal()


def test_a_restart_brings_back_results_and_what_was_open() -> None:
    world = World()
    ids, journal = spawned(world, 5)
    core = replayed(world, journal)
    done = [id for id in ids if core.state.calls[id].finished]
    assert len(done) == 2
    assert core.function(world.function).pending == [0, 3]


def test_a_snapshot_says_the_same_as_the_journal_and_may_be_followed_by_what_it_holds_already() -> None:
    world = World()
    ids, journal = spawned(world, 5)
    core = replayed(world, [*world.core.snapshot(), *journal])
    assert sorted(id for id in ids if core.state.calls[id].finished) == sorted(ids[:2])
    assert core.function(world.function).pending == [0, 3]


def test_results_are_forgotten_after_their_time_and_the_id_says_so() -> None:
    world = World(limits=Limits(retention_s=100.0))
    ids, _ = spawned(world, 2)
    world.settle()
    world.wait(99.0)
    calls.find_durable(world.core.state, world.now, ids[0])
    world.wait(2.0)
    with pytest.raises(OutputExpiredError, match="are gone"):
        calls.find_durable(world.core.state, world.now, ids[0])
    with pytest.raises(NotFoundError):
        calls.find_durable(world.core.state, world.now, f"fc-{int(world.now):08x}{'f' * 24}")


def test_cancelling_a_call_fails_what_waits_and_interrupts_what_runs() -> None:
    world = World(capacity=1)
    call = world.submit(b"1", b"2")
    (id,) = world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    assert world.core.cancel_call(world.now, call) == 2
    found = world.settle()
    assert of(found, effects.Interrupt) == [effects.Interrupt(id, deliver.deliveries)]
    (results,) = of(found, effects.SendResults)
    assert {payload.decode_failure(one).error for one in results.payloads} == {"InputCancellation"}
    world.answer(deliver)
    assert of(world.settle(), effects.SendResults) == []


def test_callers_take_turns() -> None:
    world = World(capacity=1)
    world.core.open_session("se-2")
    world.submit(*[b"long"] * 900)
    world.submit(b"short", session="se-2", kind=wire.REMOTE)
    world.start(1)
    taken: list[bytes] = []
    while b"short" not in taken:
        (deliver,) = of(world.settle(), effects.Deliver)
        taken += deliver.payloads
        world.answer(deliver, run_s=1.0)
        world.now += 1.0
    assert len(taken) <= 2


def test_higher_priority_runs_first() -> None:
    world = World(capacity=1)
    world.submit(b"low", b"low")
    world.submit(b"high", priority=5)
    world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    assert deliver.payloads == [b"high"]


def test_a_map_over_the_limit_is_taken_in_part_and_told_to_come_back() -> None:
    world = World(capacity=1, limits=Limits(pending_inputs=100))
    world.submit(*[b"x"] * 120)
    (reject,) = of(world.settle(), effects.Reject)
    assert (reject.first, reject.count, reject.error) == (90, 30, "ResourceExhaustedError")
    assert reject.retry_after_s > 0
    world.submit(b"remote", kind=wire.REMOTE)
    assert of(world.settle(), effects.Reject) == [], "a tenth stays free for others"


def test_scaling_down_stops_idle_containers_from_the_top_after_the_window() -> None:
    world = World(autoscaler=wire.AutoscalerSettings(scaledown_window_s=10.0))
    world.submit(*[b"x"] * 3)
    ids = world.start(3)
    delivers = of(world.settle(), effects.Deliver)
    for deliver in delivers[:2]:
        world.answer(deliver, run_s=5.0)
    found = world.wait(9.0)
    assert of(found, effects.StopContainer) == []
    stopped = [one.container for one in of(world.wait(2.0), effects.StopContainer)]
    assert stopped == [ids[1], ids[0]], "the highest index first, and never the busy one"


def test_a_new_revision_drains_the_containers_of_the_old_one() -> None:
    world = World(capacity=2)
    world.submit(b"x")
    (old,) = world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    changed = wire.AppSpec(name="app", functions=world.spec.functions, code=wire.CodeRef(digest="new"))
    world.core.start_app(world.now, APP, changed, SESSION)
    assert of(world.settle(), effects.StopContainer) == []
    world.answer(deliver)
    found = world.settle()
    assert [one.container for one in of(found, effects.StopContainer)] == [old]
    assert [one.indexes for one in of(found, effects.SendResults)] == [[0]]
    world.submit(b"y")
    world.wait(0.1)
    (new,) = world.start(1)
    world.settle()
    assert [one.container for one in of(world.seen, effects.Deliver)] == [old, new]


def test_a_deploy_takes_over_at_once_though_the_old_container_fills_the_capacity() -> None:
    world = World(capacity=1)
    world.submit(b"long")
    (old,) = world.start(1)
    world.settle()
    changed = wire.AppSpec(name="app", functions=world.spec.functions, code=wire.CodeRef(digest="new"))
    world.core.start_app(world.now, APP, changed, SESSION)
    world.submit(b"y")
    world.wait(1.0)
    (new,) = world.start(1)
    world.settle()
    assert [one.container for one in of(world.seen, effects.Deliver)] == [old, new]
    world.wait(10.0)
    assert [one.container.id for one in of(world.seen, effects.StartContainer)] == [old, new]


def test_changed_autoscaler_settings_last_until_the_next_deploy() -> None:
    world = World()
    world.core.override(world.function, {"min_containers": 2})
    assert len(of(world.settle(), effects.StartContainer)) == 2
    world.core.start_app(world.now, APP, world.spec, SESSION)
    assert world.core.function(world.function).settings.min_containers == 0


def test_a_function_that_waits_for_its_own_inputs_gets_room_for_them() -> None:
    world = World(capacity=1)
    world.submit(b"outer")
    (outer,) = world.start(1)
    world.settle()
    world.core.open_session("se-inner", parent=outer)
    world.submit(b"inner", session="se-inner", kind=wire.REMOTE)
    world.wait(0.1)
    (inner,) = world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    assert (deliver.container, deliver.payloads) == (inner, [b"inner"])


@pytest.fixture
def finished_input() -> Any:
    world = World(capacity=1)
    call = world.submit(b"x")
    world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    world.answer(deliver)
    return world.core.state.calls[call].get(0)


def test_a_step_that_is_not_in_the_table_is_a_fault_that_tells_the_inputs_story(finished_input: Any) -> None:
    with pytest.raises(InternalError, match=r"input 0 of fc-\w+ cannot dispatch while done"):
        finished_input.move(0)


def test_a_deadline_ends_the_wait_even_where_no_container_comes() -> None:
    world = World(capacity=0)
    call = world.submit(b"1", b"2", deadline=world.now + 3)
    other = world.submit(b"3")
    assert of(world.wait(2.9), effects.SendResults) == []
    (results,) = of(world.wait(0.2), effects.SendResults)
    assert (results.call, results.indexes) == (call, [0, 1])
    assert {payload.decode_failure(one).error for one in results.payloads} == {"DeadlineExceededError"}
    assert world.core.function(world.function).waiting_inputs == 1
    assert world.core.state.calls[other].finished is False


def test_what_runs_at_its_deadline_goes_on_and_what_came_back_by_then_does_not_run_again() -> None:
    world = World(capacity=2)
    world.submit(b"1", deadline=world.now + 3)
    world.submit(b"2", deadline=world.now + 3)
    world.start(2)
    first, second = of(world.settle(), effects.Deliver)
    assert of(world.wait(4), effects.SendResults) == []
    world.answer(first)
    world.core.container_lost(world.now, second.container, "killed", "")
    results = of(world.settle(), effects.SendResults)
    assert sorted(one.statuses[0] for one in results) == [wire.OK, wire.FAILURE]


def test_no_retry_begins_after_the_deadline_and_the_exception_is_the_result() -> None:
    world = World(capacity=1, retries=wire.RetryPolicy(5, 1.0, 2.0))
    world.submit(b"1", deadline=world.now + 3)
    world.start(1)
    (deliver,) = of(world.settle(), effects.Deliver)
    world.answer(deliver, wire.EXCEPTION)
    (again,) = of(world.wait(2.1), effects.Deliver)
    world.answer(again, wire.EXCEPTION, data=b"what it raised")
    (results,) = of(world.settle(), effects.SendResults)
    assert (results.statuses, results.payloads) == ([wire.EXCEPTION], [b"what it raised"])


def test_the_deadline_of_a_spawn_survives_a_restart() -> None:
    world = World(capacity=0)
    call = world.submit(b"1", kind=wire.SPAWN, deadline=world.now + 3)
    segment = world.journal()
    again = Core(epoch=2, capacity=0)
    again.restore_app(world.now, APP, world.spec, SESSION, False, 0)
    again.replay(segment)
    again.end_replay(world.now)
    again.tick(world.now + 3.1)
    again.settle(world.now + 3.1)
    _, number = again.take_records()
    again.durable(world.now + 3.1, number)
    one = again.state.calls[call].get(0)
    assert one is not None
    assert one.status == wire.FAILURE
    assert payload.decode_failure(one.payload).error == "TimeoutError", "a builtin one would read as: not there yet"


def test_a_higher_priority_is_handed_out_first() -> None:
    world = World(capacity=1)
    low = world.submit(b"1", b"2")
    high = world.submit(b"3", priority=5)
    world.start(1)
    (first,) = of(world.settle(), effects.Deliver)
    world.answer(first, run_s=1.0)
    (second,) = of(world.settle(), effects.Deliver)
    assert [first.call, second.call] == [high, low]


def test_a_priority_out_of_range_is_refused() -> None:
    world = World()
    world.submit(b"1", priority=101)
    (reject,) = of(world.settle(), effects.Reject)
    assert reject.error == "InvalidError"
    assert "-100 to 100" in reject.message
