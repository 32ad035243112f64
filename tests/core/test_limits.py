from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from nomadfn_agent import wire

from nomadfn import exception
from nomadfn.core.limits import (
    SMALL_BYTES,
    Admission,
    Limits,
    Load,
    admit,
    admit_bytes,
    check_function,
    check_payload,
    check_result,
)
from nomadfn.core.state import failure

LIMITS = Limits()
kinds = st.sampled_from((wire.REMOTE, wire.MAP, wire.SPAWN, wire.SPAWN_MAP))
loads = st.builds(
    Load,
    pending=st.integers(0, 3_000),
    running=st.integers(0, 30_000),
    pending_spawns=st.integers(0, 1_200_000),
    drained_per_s=st.none() | st.floats(0, 1e6),
)


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert (LIMITS.pending_inputs, LIMITS.total_inputs, LIMITS.pending_spawns) == (2_000, 25_000, 1_000_000)
    assert (LIMITS.map_in_flight, LIMITS.payload_bytes, LIMITS.function_bytes) == (1_000, 2**30, 16 * 2**20)
    assert (LIMITS.web_requests_per_s, LIMITS.web_burst_s, LIMITS.retention_s) == (200, 5, 7 * 86_400)


def test_a_frame_that_does_not_fit_is_taken_as_far_as_it_does() -> None:
    admission = admit(LIMITS, Load(1_900, 5, 0), wire.REMOTE, 512)
    assert admission.count == 100
    assert admission.excess is not None
    assert admission.excess.limit == "pending_inputs"
    assert (admission.excess.value, admission.excess.maximum) == (2_000, 2_000)


def test_the_message_says_the_limit_the_value_when_to_try_again_and_the_setting() -> None:
    excess = admit(LIMITS, Load(2_000, 12, 0, drained_per_s=4.0), wire.REMOTE, 1).excess
    assert excess is not None
    assert excess.message == (
        "2,000 inputs wait for a container of this function and the limit is 2,000; "
        "try again in 0.25 s, or raise the setting limits.pending_inputs"
    )
    assert excess.retry_after_s == 0.25


def test_maps_leave_a_tenth_of_the_pending_limit_free_for_others() -> None:
    load = Load(1_800, 0, 0)
    refused = admit(LIMITS, load, wire.MAP, 1)
    assert refused.count == 0
    assert refused.excess is not None
    assert "of which maps may fill 1,800" in refused.excess.message
    assert admit(LIMITS, load, wire.REMOTE, 1).excess is None


def test_spawns_have_a_limit_of_their_own() -> None:
    full = Load(2_000, 23_000, 0)
    assert admit(LIMITS, full, wire.SPAWN, 512).excess is None
    assert admit(LIMITS, Load(0, 0, 1_000_000), wire.REMOTE, 512).excess is None
    refused = admit(LIMITS, Load(0, 0, 999_999), wire.SPAWN_MAP, 2)
    assert refused.count == 1
    assert refused.excess is not None
    assert refused.excess.limit == "pending_spawns"


def test_running_inputs_count_towards_the_total() -> None:
    refused = admit(LIMITS, Load(100, 24_800, 0), wire.REMOTE, 200)
    assert refused.count == 100
    assert refused.excess is not None
    assert refused.excess.limit == "total_inputs"
    assert "25,000" in refused.excess.message


def test_a_payload_over_the_limit_says_what_to_do_instead() -> None:
    assert check_payload(LIMITS, 2**30) is None
    excess = check_payload(LIMITS, 2**30 + 1)
    assert excess is not None
    assert excess.error == "RequestSizeError"
    assert "1,073,741,825 bytes" in excess.message
    assert "limits.payload_bytes" in excess.message


def test_a_pickled_function_over_the_limit_names_the_function() -> None:
    assert check_function(LIMITS, "f", 16 * 2**20) is None
    excess = check_function(LIMITS, "f", 16 * 2**20 + 1)
    assert excess is not None
    assert issubclass(getattr(exception, excess.error), exception.InvalidError)
    assert "function f has 16,777,217 bytes" in excess.message


@given(loads, kinds, st.integers(1, 600))
def test_what_is_admitted_never_breaks_a_limit_and_never_leaves_room_unused(load: Load, kind: int, count: int) -> None:
    admission = admit(LIMITS, load, kind, count)
    assert 0 <= admission.count <= count
    assert (admission.excess is None) == (admission.count == count)
    if kind in wire.DURABLE_KINDS:
        rooms = [LIMITS.pending_spawns - load.pending_spawns]
    else:
        rooms = [LIMITS.pending_inputs - load.pending, LIMITS.total_inputs - load.pending - load.running]
        if kind == wire.MAP:
            rooms.append(1_800 - load.pending)
    assert admission.count == max(0, min(count, *rooms))
    if admission.excess is not None:
        assert 0 < admission.excess.retry_after_s <= 10
        assert hasattr(exception, admission.excess.error)
        assert f"limits.{admission.excess.limit}" in admission.excess.message


def test_spawns_may_fill_half_of_what_is_kept_and_are_told_the_setting() -> None:
    limits = Limits(spawn_bytes=10_000)
    assert admit_bytes(limits, 0, [500] * 10) == Admission(10)
    some = admit_bytes(limits, 4_000, [500] * 3)
    assert some.count == 2
    assert some.excess is not None
    assert (some.excess.limit, some.excess.value, some.excess.maximum) == ("spawn_bytes", 5_000, 5_000)
    assert "limits.spawn_bytes" in some.excess.message
    assert "blobs" in some.excess.message
    assert admit_bytes(Limits(), 1 << 40, [1 << 30]) == Admission(1)


def test_a_result_may_fill_the_rest_and_a_small_one_always_has_room() -> None:
    limits = Limits(spawn_bytes=10_000)
    assert check_result(limits, 6_000, 4_000) is None
    assert check_result(limits, 1 << 30, SMALL_BYTES) is None
    assert check_result(Limits(), 1 << 40, 1 << 30) is None
    over = check_result(limits, 6_000, 4_001)
    assert over is not None
    assert "limits.spawn_bytes" in over.message
    assert len(failure(over.error, over.message)) <= SMALL_BYTES
