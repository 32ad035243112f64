from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nomadfn.core.placement import Grant, Want, next_indexes, share


def counts(grants: dict[str, Grant]) -> dict[str, int]:
    return {name: grant.count for name, grant in grants.items()}


def shares(grants: dict[str, Grant]) -> dict[str, int]:
    return {name: grant.share for name, grant in grants.items()}


@given(st.sets(st.integers(0, 40)), st.integers(0, 20))
def test_new_containers_get_the_lowest_free_indexes(taken: set[int], count: int) -> None:
    indexes = next_indexes(taken, count)
    assert len(indexes) == count
    assert list(indexes) == sorted(set(indexes) - taken)
    if indexes:
        assert set(range(indexes[-1])) <= taken | set(indexes)


def test_without_a_capacity_everyone_gets_what_it_wants() -> None:
    assert counts(share([Want("a", 500), Want("b", 0, has=3)], None)) == {"a": 500, "b": 3}


def test_one_function_alone_gets_the_whole_capacity_and_is_told_so() -> None:
    grant = share([Want("a", 10)], 4, "4 cores")["a"]
    assert (grant.count, grant.share, grant.reason) == (4, 4, "4 cores")


def test_a_capacity_is_divided_fairly_and_small_wants_are_met_first() -> None:
    assert shares(share([Want("a", 100), Want("b", 100), Want("c", 2)], 12)) == {"a": 5, "b": 5, "c": 2}


def test_every_function_with_work_gets_one_even_over_the_capacity() -> None:
    wants = [Want("a", 5, has=2), Want("b", 5), Want("c", 1), Want("d", 0)]
    assert counts(share(wants, 2)) == {"a": 1, "b": 1, "c": 1, "d": 0}


def test_one_that_finishes_what_it_has_is_none_that_takes_new_work() -> None:
    assert counts(share([Want("a", 2, has=1, draining=1), Want("b", 1, has=1)], 1)) == {"a": 2, "b": 1}
    assert counts(share([Want("a", 3, has=2, draining=1), Want("b", 1, has=1)], 1)) == {"a": 2, "b": 1}


def test_containers_that_wait_for_their_own_inputs_do_not_count() -> None:
    wants = [Want("parent", 2, has=2, blocked=2), Want("child", 9, inner=True)]
    assert counts(share(wants, 2)) == {"parent": 2, "child": 2}


def test_a_function_that_waits_for_itself_goes_on_to_any_depth() -> None:
    for depth in range(1, 50):
        assert share([Want("f", depth + 1, has=depth, blocked=depth, inner=True)], 2)["f"].count == depth + 1


def test_waiting_containers_do_not_make_room_without_end_for_callers_from_outside() -> None:
    has = 0
    for _ in range(20):
        wants = [Want("parent", 1_000, has=has, blocked=has), Want("child", 1, has=1)]
        has = share(wants, 2)["parent"].count
    assert has <= 4


def test_min_containers_come_before_work_and_work_before_buffers() -> None:
    assert shares(share([Want("a", 8, minimum=6), Want("b", 8)], 8)) == {"a": 6, "b": 2}
    assert shares(share([Want("a", 8, buffer=6), Want("b", 5)], 8)) == {"a": 3, "b": 5}


def test_a_function_gives_back_only_what_another_one_lacks() -> None:
    idle = [Want("a", 0, has=4), Want("b", 2)]
    assert share(idle, 4)["a"].yields == 2
    assert share([Want("a", 0, has=4), Want("b", 0)], 4)["a"].yields == 0
    assert share([Want("a", 4, has=4), Want("b", 4)], 4)["a"].yields == 2


def test_who_has_no_use_for_its_containers_gives_back_before_who_has() -> None:
    wants = [Want("busy", 9, has=6), Want("idle", 0, has=4), Want("new", 3)]
    grants = share(wants, 10)
    assert (grants["idle"].yields, grants["busy"].yields) == (4, 0)


def test_containers_over_the_first_wait_until_there_is_room() -> None:
    grants = share([Want("a", 4, has=4), Want("b", 4)], 4)
    assert grants["b"].count == 1
    assert grants["b"].share == 2
    grants = share([Want("a", 4, has=2), Want("b", 4, has=1)], 4)
    assert grants["b"].count == 2


def test_the_reason_says_the_capacity_and_who_holds_it() -> None:
    wants = [Want("a", 9, name="resize", has=2), Want("b", 9, has=5, name="embed"), Want("c", 1, has=1, name="tag")]
    reason = share(wants, 8, "8 cores")["a"].reason
    assert reason == "8 cores, of which embed holds 5 and tag holds 1"
    more = [Want(f"d{i}", 1, has=2) for i in range(3)]
    assert share([*wants, *more], 8, "8 cores")["a"].reason == (
        "8 cores, of which embed holds 5, d0 holds 2 and others hold 5"
    )


@st.composite
def wants_lists(draw: st.DrawFn) -> list[Want]:
    wants = []
    for i in range(draw(st.integers(1, 7))):
        wanted = draw(st.integers(0, 30))
        has = draw(st.integers(0, 12))
        wants.append(
            Want(
                f"f{i}",
                wanted,
                buffer=draw(st.integers(0, min(3, wanted))),
                minimum=draw(st.integers(0, min(4, wanted))),
                has=has,
                blocked=draw(st.integers(0, has)),
                draining=draw(st.integers(0, min(has, wanted))),
                inner=draw(st.booleans()),
            )
        )
    return wants


def first(want: Want) -> int:
    if want.inner or want.blocked <= want.draining:
        return min(want.wanted, max(want.blocked, want.draining) + 1)
    return 0


@given(wants_lists(), st.integers(0, 40))
def test_nobody_gets_more_than_it_wants_and_all_together_not_more_than_there_is(
    wants: list[Want], capacity: int
) -> None:
    grants = share(wants, capacity)
    for want in wants:
        grant = grants[want.function]
        assert grant.share <= max(want.wanted, min(want.blocked, want.has))
        assert grant.count <= max(want.wanted, want.has)
        assert grant.count >= min(first(want), want.wanted) or want.has
        assert 0 <= grant.yields <= want.has
        assert (grant.count < want.wanted) == bool(grant.reason)
    firsts = sum(first(want) for want in wants)
    assert sum(grant.share for grant in grants.values()) <= max(2 * capacity, capacity + firsts) + firsts


@given(wants_lists(), st.integers(0, 40))
def test_a_function_with_inner_work_always_has_one_container_that_does_not_wait(
    wants: list[Want], capacity: int
) -> None:
    grants = share(wants, capacity)
    for want in wants:
        if want.inner and want.wanted > want.blocked:
            grant = grants[want.function]
            assert grant.count >= want.blocked + 1
            assert want.has - grant.yields >= min(want.has, want.blocked + 1)


@given(wants_lists(), st.integers(1, 40))
def test_following_the_grants_comes_to_rest(wants: list[Want], capacity: int) -> None:
    for _ in range(60):
        grants = share(wants, capacity)
        assert grants == share(wants, capacity)
        moved = []
        for want in wants:
            grant = grants[want.function]
            has = want.has - grant.yields if grant.yields else max(want.has, min(grant.count, want.wanted))
            moved.append(
                Want(
                    want.function,
                    want.wanted,
                    want.buffer,
                    want.minimum,
                    has,
                    min(want.blocked, has),
                    min(want.draining, has),
                    want.inner,
                )
            )
        if moved == wants:
            break
        wants = moved
    else:
        raise AssertionError(f"no rest: {wants}")
    # Whoever still lacks something lacks it because nobody holds more than a share and the own minimum.
    if any(want.has < min(grants[want.function].share, want.wanted) for want in wants):
        assert all(want.has <= max(grants[want.function].share, want.minimum) for want in wants)
