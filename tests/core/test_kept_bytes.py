"""Where the journal has little room: spawns are refused in time, and a result that finds none says so."""

from __future__ import annotations

from nomadfn_agent import wire
from nomadfn_agent.wire import payload

from nomadfn.core import calls, effects
from nomadfn.core.core import Core
from nomadfn.core.limits import Limits

NOW, SESSION, KEPT = 1_000.0, "se-1", 10_000


def spawn(core: Core, number: int, size_bytes: int) -> list[effects.Effect]:
    core.submit(NOW, SESSION, calls.Submission(f"fc-{number:032x}", "ap-1/f", wire.SPAWN, 0, [bytes(size_bytes)]))
    core.durable(NOW, core.take_records()[1])
    return core.settle(NOW)


def new_core() -> Core:
    core = Core(Limits(spawn_bytes=KEPT, retention_s=60.0))
    core.open_session(SESSION)
    core.start_app(NOW, "ap-1", wire.AppSpec(name="app", functions=[wire.FunctionSpec(name="f")]), SESSION)
    return core


def rejections(found: list[effects.Effect]) -> list[effects.Reject]:
    return [one for one in found if isinstance(one, effects.Reject)]


def finish_all(core: Core, result: bytes) -> None:
    """Every spawn runs, each with the same result."""
    found = core.settle(NOW)
    for one in list(core.state.containers.values()):
        core.container_ready(NOW, one.id, 100)
    found += core.settle(NOW)
    for one in (one for one in found if isinstance(one, effects.Deliver)):
        count = len(one.deliveries)
        core.outputs(NOW, one.container, one.deliveries, [wire.OK] * count, [result] * count, 0)
    core.settle(NOW)
    core.durable(NOW, core.take_records()[1])
    core.check_invariants()


def test_spawns_are_refused_at_half_and_taken_again_when_results_have_expired() -> None:
    core = new_core()
    assert [len(rejections(spawn(core, number, 872))) for number in range(6)] == [0] * 5 + [1]
    (refused,) = rejections(spawn(core, 7, 872))
    assert (refused.error, refused.limit) == ("ResourceExhaustedError", "spawn_bytes")
    assert "limits.spawn_bytes" in refused.message
    finish_all(core, b"small")
    core.tick(NOW + 61)
    core.take_records()
    assert core.live_bytes == 0
    assert rejections(spawn(core, 8, 872)) == []


def test_a_result_without_room_fails_with_the_setting_and_small_ones_are_kept() -> None:
    core = new_core()
    for number in range(5):
        spawn(core, number, 872)
    finish_all(core, bytes(3_000))
    shown = [core.state.calls[f"fc-{number:032x}"].get(0) for number in range(5)]
    assert sorted(one.status for one in shown if one) == sorted([wire.OK] * 2 + [wire.FAILURE] * 3)
    failure = payload.decode_failure(next(one.payload for one in shown if one and one.status == wire.FAILURE))
    assert failure.error == "ResourceExhaustedError"
    assert "limits.spawn_bytes" in failure.message
    assert core.live_bytes <= KEPT
