"""A core that reads a journal along, as a standby's does: the same state as the leader's, and nothing that grows."""

from __future__ import annotations

import pytest
from nomadfn_agent import wire

from nomadfn.core import replaying
from nomadfn.core.core import Core
from nomadfn.core.records import Cancelled, Closed, Finished, Forgotten, Submitted

SPEC = wire.AppSpec(name="thumbs", functions=[wire.FunctionSpec(name="f")])


def submitted(call: str, count: int = 1, kind: int = wire.SPAWN, function: str = "ap-1/f", first: int = 0) -> Submitted:
    return Submitted(call, function, kind, "se-1", 0, 10.0, first, [b"x"] * count, [0] * count)


def led(core: Core, *, deployed: bool = True) -> Core:
    """Its standby takes over, at 100."""
    core.lead(epoch=7, capacity=5, capacity_reason="cores", first_delivery=700)
    if deployed:
        core.restore_app(100.0, "ap-1", SPEC, "", True, 1)
    core.end_replay(100.0)
    core.check_invariants()
    return core


def test_what_waits_belongs_to_the_function_that_is_known_only_later() -> None:
    core = Core()
    core.replay([submitted("fc-1"), submitted("fc-2"), Finished("fc-1", [0], [wire.OK], [b"r"], 11.0)])
    led(core)
    function = core.function("ap-1/f")
    assert function.pending == [0, 1]
    assert function.totals is core.state.totals["thumbs", "f"]
    assert core.state.calls["fc-2"].function is function
    assert (core.state.epoch, core.state.next_delivery, core.state.capacity) == (7, 700, 5)


def test_what_waits_for_a_function_that_is_gone_is_cancelled() -> None:
    core = Core()
    core.replay([submitted("fc-1"), submitted("fc-2", 2, wire.SPAWN_MAP)])
    led(core, deployed=False)
    assert core.state.functions == {}
    records, _ = core.take_records()
    assert {type(one) for one in records} >= {Cancelled, Closed}


def test_a_call_that_is_open_waits_for_its_client() -> None:
    core = Core()
    core.replay([submitted("fc-1", 2, wire.SPAWN_MAP), submitted("fc-2", 1, wire.SPAWN_MAP), Closed("fc-2", 1, 11.0)])
    led(core)
    assert set(core.state.sessions["se-1"].calls) == {"fc-1"}
    assert not core.state.sessions["se-1"].attached


def test_results_expire_in_the_order_in_which_they_came_whatever_a_snapshot_says_first() -> None:
    core = Core()
    at = {"fc-1": 30.0, "fc-2": 0.0, "fc-3": 20.0}
    for call, finished_at in at.items():
        core.replay([submitted(call), Finished(call, [0], [wire.OK], [b"r"], finished_at)])
    led(core)
    assert list(core.state.expiring) == [(20.0, "fc-3"), (30.0, "fc-1"), (100.0, "fc-2")]


def test_a_standby_that_reads_along_for_days_grows_only_by_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "PRUNE_FROM", 10)
    core = Core()
    core.replay([submitted("fc-first")])
    for number in range(500):
        call, function = f"fc-{number}", f"ap-{number // 50}/f"
        core.replay([submitted(call, function=function)])
        core.replay([Finished(call, [0], [wire.OK | wire.REF], [b"r"], float(number))])
        if number >= 20:
            core.replay([Forgotten([f"fc-{number - 20}"])])
    core.replay([submitted(f"fc-cancelled-{number}") for number in range(50)])
    core.replay([Cancelled(f"fc-cancelled-{number}", 600.0) for number in range(50)])
    state = core.state
    assert len(state.calls) == 1 + 20 + 50
    assert set(state.functions) == {"ap-1/f", "ap-9/f"}
    assert len(state.expiring) <= 20
    assert [len(one) for one in (state.effects, state.records, state.withheld, state.spent_blobs)] == [0] * 4
    assert all(len(list(one.queue)) <= 11 for one in state.functions.values())
