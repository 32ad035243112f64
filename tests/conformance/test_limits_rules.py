"""semantics: the limits, their defaults, and errors that name the limit, the value and when to try again."""

from __future__ import annotations

import pytest
from nomadfn_agent import wire

from nomadfn.core.limits import Limits, Load, admit


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("pending_inputs", 2_000),
        ("total_inputs", 25_000),
        ("pending_spawns", 1_000_000),
        ("map_in_flight", 1_000),
        ("web_requests_per_s", 200),
        ("web_burst_s", 5),
        ("payload_bytes", 1 << 30),
        ("function_bytes", 16 << 20),
        ("retention_s", 7 * 24 * 3600),
    ],
)
def test_the_default_of_each_limit(name: str, default: float) -> None:
    assert getattr(Limits(), name) == default


@pytest.mark.parametrize(
    ("kind", "load", "limit"),
    [
        (wire.REMOTE, Load(pending=2_000, running=0, pending_spawns=0), "2,000"),
        (wire.REMOTE, Load(pending=1_000, running=24_000, pending_spawns=0), "25,000"),
        (wire.SPAWN, Load(pending=0, running=0, pending_spawns=1_000_000), "1,000,000"),
    ],
)
def test_over_a_limit_the_error_names_it_the_value_and_when_to_try_again(kind: int, load: Load, limit: str) -> None:
    admission = admit(Limits(), load, kind, 1)
    assert admission.count == 0
    assert admission.excess is not None
    assert admission.excess.error == "ResourceExhaustedError"
    assert limit in admission.excess.message
    assert admission.excess.retry_after_s > 0


def test_maps_leave_a_tenth_of_the_pending_limit_to_others() -> None:
    load = Load(pending=1_800, running=0, pending_spawns=0)
    assert admit(Limits(), load, wire.MAP, 10).count == 0
    assert admit(Limits(), load, wire.REMOTE, 10).count == 10
