"""The order of a queue: priorities that age, callers that take turns, and deadlines."""

from __future__ import annotations

import itertools
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomadfn.core.deadlines import NEVER, Deadlines
from nomadfn.core.queue import AGING, FunctionQueue


def live(item: object) -> bool:
    return True


def filled(**sizes: int) -> FunctionQueue[int]:
    """A queue with so many items of each priority; an item is its priority."""
    queue: FunctionQueue[int] = FunctionQueue()
    for name, count in sizes.items():
        priority = int(name.lstrip("p").replace("m", "-"))
        queue.add("one", priority, [priority] * count)
    return queue


@pytest.mark.parametrize("part", [1, 3, 50])
def test_of_eight_inputs_one_is_of_a_lower_priority_however_many_are_taken_at_once(part: int) -> None:
    queue = filled(p5=800, p0=800)
    taken: list[int] = []
    while len(taken) < 400:
        taken += queue.take(part, live)
    for first in range(0, 400, AGING):
        assert taken[first : first + AGING].count(0) == 1, "each eighth, no more and no less"


def test_the_lower_priorities_take_turns_and_none_of_them_starves() -> None:
    queue = filled(p9=4000, p5=1000, p0=1000, m5=1000)
    taken = queue.take(24 * AGING, live)
    assert [taken.count(priority) for priority in (9, 5, 0, -5)] == [168, 8, 8, 8]
    lower = [priority for priority in taken if priority != 9]
    assert lower[:6] == [5, 0, -5, 5, 0, -5]


def test_what_is_alone_in_line_has_all_of_it() -> None:
    queue = filled(m7=10)
    assert queue.take(100, live) == [-7] * 10
    queue.add("one", 3, [3] * 2)
    queue.add("one", 0, [0])
    assert queue.take(100, live) == [3, 3, 0], "and nothing has aged meanwhile"


def test_a_new_high_priority_goes_before_a_backlog_of_any_age() -> None:
    queue = filled(p0=10_000)
    queue.take(1_000, live)
    queue.add("two", 1, [1])
    assert queue.take(1, live) == [1]


def test_inputs_that_were_cancelled_do_not_count_as_a_turn() -> None:
    queue: FunctionQueue[str] = FunctionQueue()
    queue.add("one", 5, ["high"] * 100)
    queue.add("two", 0, ["dead"] * 50 + ["low"] * 10)
    taken = queue.take(3 * AGING, lambda item: item != "dead")
    assert taken.count("low") == 3


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.sampled_from("abc"), st.integers(1, 30)), min_size=1, max_size=12),
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
)
def test_nothing_is_lost_or_doubled_and_each_callers_order_stays(
    adds: list[tuple[int, str, int]], takes: list[int]
) -> None:
    queue: FunctionQueue[tuple[int, str, int]] = FunctionQueue()
    put: dict[tuple[int, str], int] = {}
    taken: list[tuple[int, str, int]] = []
    pending = list(adds)
    for count in [*takes, 10_000, 10_000]:
        if pending:
            priority, caller, size = pending.pop()
            start = put.get((priority, caller), 0)
            put[priority, caller] = start + size
            queue.add(caller, priority, [(priority, caller, start + place) for place in range(size)])
        taken += queue.take(count, live)
    while pending:
        priority, caller, size = pending.pop()
        start = put.get((priority, caller), 0)
        put[priority, caller] = start + size
        queue.add(caller, priority, [(priority, caller, start + place) for place in range(size)])
    taken += queue.take(10_000, live)
    for (priority, caller), size in put.items():
        assert [item[2] for item in taken if item[:2] == (priority, caller)] == list(range(size))
    assert len(taken) == sum(put.values())
    assert not queue.has_lines


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=6, unique=True), st.integers(1, 200))
def test_every_priority_comes_within_a_bound_that_depends_on_how_many_there_are(levels: list[int], part: int) -> None:
    queue: FunctionQueue[int] = FunctionQueue()
    for priority in levels:
        queue.add("one", priority, [priority] * 2_000)
    taken: list[int] = []
    while len(taken) < 1_000:
        taken += queue.take(part, live)
    bound = AGING * (len(levels) - 1)
    for priority in levels:
        places = [-1, *[place for place, item in enumerate(taken[:1_000]) if item == priority], 1_000]
        assert max(b - a for a, b in itertools.pairwise(places)) <= bound + 1


def test_taking_costs_the_same_with_a_thousand_and_with_a_hundred_thousand_that_wait() -> None:
    def cost(size: int) -> int:
        queue = filled(p5=size, p0=size, m5=size)
        count = 0

        def see(frame: FrameType, event: str, argument: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(see)
        try:
            for _ in range(100):
                queue.take(5, live)
        finally:
            sys.setprofile(None)
        return count

    assert cost(100_000) == cost(1_000)


def test_deadlines_come_out_in_order_and_only_what_is_still_open() -> None:
    done: set[int] = set()
    deadlines: Deadlines[int] = Deadlines(lambda item: item not in done)
    assert deadlines.next == NEVER
    deadlines.add(20.0, [1, 2])
    deadlines.add(10.0, [3])
    done.add(2)
    assert deadlines.next == 10.0
    assert deadlines.due(9.9) == []
    assert deadlines.due(10.0) == [3]
    assert deadlines.due(25.0) == [1]
    assert deadlines.next == NEVER


def test_what_is_done_long_before_its_deadline_does_not_pile_up() -> None:
    done: set[int] = set()
    deadlines: Deadlines[int] = Deadlines(lambda item: item not in done)
    for number in range(10_000):
        deadlines.add(1e9 + number, [number])
        done.add(number)
    assert len(deadlines) < 200
    deadlines.add(1e9, [-1])
    for number in range(1_000):
        deadlines.add(1e9, [10_000 + number])
    assert deadlines.due(2e9)[0] == -1, "what is open stays"


def test_what_is_dead_is_pruned_and_what_lives_keeps_its_order() -> None:
    queue: FunctionQueue[str] = FunctionQueue()
    queue.add("one", 5, ["dead"] * 5)
    queue.add("one", 0, ["a", "dead", "b"])
    queue.add("two", 0, ["dead", "c"])
    queue.prune(lambda item: item != "dead")
    assert sorted(queue) == ["a", "b", "c"]
    assert queue.take(2, live) == ["a", "c"]
    queue.prune(lambda item: False)
    assert not queue.has_lines
    queue.add("one", 1, ["d"])
    assert queue.take(5, live) == ["d"]
