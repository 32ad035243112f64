"""What the core knows of web functions: the rate of their requests, frames of several calls, one server a port."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nomadfn_agent import wire

from nomadfn.core import effects
from nomadfn.core.calls import Submission
from nomadfn.core.core import Core
from nomadfn.core.limits import Bucket

CALLS = 6


def started(web: wire.WebSpec | None, slots: int = 4, *, shares_ports: bool = False) -> tuple[Core, str]:
    """A core with one function that has a container."""
    core = Core(shares_ports=shares_ports)
    core.open_session("se")
    spec = wire.FunctionSpec(name="f", is_async=True, max_inputs=slots, web=web)
    core.start_app(0.0, "ap-1", wire.AppSpec(name="app", functions=[spec]), "se")
    submit(core, "first")
    core.settle(0.0)
    [container] = core.state.containers.values()
    core.container_ready(0.0, container.id, slots)
    return core, container.id


def submit(core: Core, call: str, now: float = 0.0) -> None:
    core.submit(now, "se", Submission(call, "ap-1/f", wire.REMOTE, 0, [call.encode()]))


def of_kind(found: list[Any], kind: type) -> list[Any]:
    return [one for one in found if isinstance(one, kind)]


def test_requests_that_come_together_are_one_frame() -> None:
    core, container = started(wire.WebSpec(kind="asgi"), slots=10)
    for number in range(CALLS):
        submit(core, f"call-{number}")
    found = core.settle(0.0)
    assert of_kind(found, effects.Deliver) == []
    [frame] = of_kind(found, effects.DeliverBatch)
    assert frame.calls == ["first", *(f"call-{number}" for number in range(CALLS))]
    assert frame.payloads == [call.encode() for call in frame.calls]
    core.outputs(0.1, container, frame.deliveries[:1], [wire.OK], [b"answer"], 1000)
    core.check_invariants()


def test_requests_are_not_sent_ahead_of_a_slot() -> None:
    core, container = started(wire.WebSpec(kind="asgi"), slots=2)
    for number in range(CALLS):
        submit(core, f"call-{number}")
    [frame] = of_kind(core.settle(0.0), effects.DeliverBatch)
    assert len(frame.deliveries) == 2
    core.outputs(0.0, container, frame.deliveries, [wire.OK] * 2, [b"", b""], 1000)
    [frame] = of_kind(core.settle(0.0), effects.DeliverBatch)
    assert len(frame.deliveries) == 2
    core.check_invariants()


@pytest.mark.parametrize(("shares_ports", "port", "starts"), [(True, 8000, 0), (False, 8000, 3), (True, 0, 3)])
def test_where_containers_share_ports_a_server_has_one_container(shares_ports: bool, port: int, starts: int) -> None:
    web = wire.WebSpec(kind="server" if port else "asgi", port=port)
    core, _ = started(web, slots=1, shares_ports=shares_ports)
    for number in range(3):
        submit(core, f"call-{number}")
    assert len(of_kind(core.settle(1.0), effects.StartContainer)) == starts
    blocked = core.function("ap-1/f").blocked
    assert ("one container at a time" in blocked) == (starts == 0)


def test_a_bucket_lets_its_burst_through_and_then_its_rate() -> None:
    bucket = Bucket(200.0, 5.0)
    assert sum(bucket.take(0.0) == 0.0 for _ in range(1500)) == 1000
    assert bucket.take(0.0) == pytest.approx(1 / 200)
    assert sum(bucket.take(1.0) == 0.0 for _ in range(500)) == 200


@given(st.lists(st.floats(0.0, 0.1), max_size=200), st.floats(1.0, 100.0), st.floats(0.1, 3.0))
def test_no_more_pass_than_the_burst_and_the_rate_allow(gaps: list[float], rate: float, burst_s: float) -> None:
    bucket, now, passed = Bucket(rate, burst_s), 0.0, 0
    for gap in gaps:
        now += gap
        wait_s = bucket.take(now)
        assert 0.0 <= wait_s <= 1.0 / rate + 1e-9
        passed += not wait_s
        assert passed <= max(1.0, rate * burst_s) + rate * now + 1e-6
