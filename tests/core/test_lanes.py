"""Lanes: which containers may end where only the last ones of a group do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nomadfn.core import lanes

indexes = st.frozensets(st.integers(0, 200), max_size=60)
lane_counts = st.integers(1, lanes.LANES)


def test_as_many_lanes_as_containers_and_no_more_than_sixteen() -> None:
    assert [lanes.lanes_for(most) for most in (None, 1, 4, 16, 100)] == [16, 1, 4, 16, 16]


@given(st.integers(0, 1000), lane_counts)
def test_a_place_leads_back_to_its_index(index: int, count: int) -> None:
    lane, position = lanes.place(index, count)
    assert 0 <= lane < count
    assert lanes.index_at(lane, position, count) == index


@given(indexes, st.data(), lane_counts)
def test_what_may_stop_is_exactly_what_a_lower_count_ends(
    there: frozenset[int], data: st.DataObject, count: int
) -> None:
    idle = data.draw(st.frozensets(st.sampled_from(sorted(there)))) if there else frozenset()
    stopped = lanes.may_stop(there, idle, count)
    kept = lanes.counts(there - stopped, count)
    ended = {one for one in there if lanes.place(one, count)[1] >= kept[lanes.place(one, count)[0]]}
    assert ended == stopped, "lowering the counts ends those that stop, and nothing else"
    assert stopped <= idle, "nothing that is busy ends"
    assert all(lanes.holder(one, there, idle, count) is not None for one in idle - stopped), "what stays is held"


@given(st.frozensets(st.integers(0, lanes.LANES - 1)), st.data())
def test_up_to_as_many_containers_as_lanes_every_idle_one_may_stop(there: frozenset[int], data: st.DataObject) -> None:
    idle = data.draw(st.frozensets(st.sampled_from(sorted(there)))) if there else frozenset()
    assert lanes.may_stop(there, idle) == idle


def test_the_busy_one_that_holds_others_is_named() -> None:
    there = frozenset({0, 1, 16, 32})
    assert lanes.holder(0, there, frozenset({0, 16})) == 32
    assert lanes.holder(16, there, frozenset({0, 16})) == 32
    assert lanes.holder(1, there, frozenset({1})) is None
