"""Settings that were changed since the deploy: which of them holds, and what reverts when."""

from __future__ import annotations

from typing import Any

from nomadfn_agent import wire
from test_core import SESSION, World, of

from nomadfn.core import effects
from nomadfn.core.live import next_end


def settings(world: World) -> wire.AutoscalerSettings:
    return world.core.function(world.function).settings


def reverted(found: list[effects.Effect]) -> int:
    return len(of(found, effects.SettingsReverted))


def test_changes_stack_and_what_is_absent_stays() -> None:
    world = World(autoscaler=wire.AutoscalerSettings(max_containers=4))
    world.core.override(world.function, {"min_containers": 2})
    world.core.override(world.function, {"buffer_containers": 1})
    assert settings(world) == wire.AutoscalerSettings(2, 4, 1, 60.0)


def test_a_reset_goes_back_to_what_was_deployed() -> None:
    world = World(autoscaler=wire.AutoscalerSettings(max_containers=4))
    world.core.override(world.function, {"min_containers": 2, "max_containers": None})
    world.core.override(world.function, {"min_containers": 3}, reset=["max_containers"])
    assert settings(world) == wire.AutoscalerSettings(3, 4, 0, 60.0)


def test_what_is_changed_for_a_time_reverts_to_what_was_there_before() -> None:
    world = World()
    world.core.override(world.function, {"min_containers": 1})
    world.core.override(world.function, {"min_containers": 3, "buffer_containers": 2}, until=world.now + 10)
    assert (settings(world).min_containers, settings(world).buffer_containers) == (3, 2)
    assert reverted(world.wait(9.9)) == 0
    assert settings(world).min_containers == 3
    assert reverted(world.wait(0.2)) == 1
    assert (settings(world).min_containers, settings(world).buffer_containers) == (1, 0)
    assert reverted(world.wait(5)) == 0, "once"


def test_each_setting_has_a_time_of_its_own() -> None:
    world = World()
    world.core.override(world.function, {"min_containers": 3}, until=world.now + 5)
    world.core.override(world.function, {"buffer_containers": 2}, until=world.now + 50)
    world.wait(6)
    assert (settings(world).min_containers, settings(world).buffer_containers) == (0, 2)
    assert next_end(world.core.state) == world.now - 6 + 50


def test_a_plain_change_takes_the_place_of_a_temporary_one() -> None:
    world = World()
    world.core.override(world.function, {"min_containers": 3}, until=world.now + 5)
    world.core.override(world.function, {"min_containers": 2})
    assert settings(world).min_containers == 2
    assert reverted(world.wait(6)) == 0
    assert settings(world).min_containers == 2


def test_the_next_deploy_reverts_everything() -> None:
    world = World()
    world.core.override(world.function, {"min_containers": 1})
    world.core.override(world.function, {"buffer_containers": 1}, until=world.now + 5)
    world.core.start_app(world.now, "ap-1", world.spec, SESSION)
    assert settings(world) == wire.AutoscalerSettings()
    assert reverted(world.wait(6)) == 0


def test_the_time_is_that_of_the_wall_clock_and_the_core_is_called_for_it() -> None:
    """A machine that has slept: its own clock stood still meanwhile."""
    world = World()
    wall = 2_000_000_000.0
    world.core.override(world.function, {"min_containers": 1}, until=wall + 100)
    world.core.tick(world.now, wall)
    assert abs(world.core.wake_at - (world.now + 100)) < 1e-3
    world.core.tick(world.now + 1, wall + 3600)
    assert settings(world).min_containers == 0


def test_the_time_of_a_function_that_is_gone_is_no_reason_to_wake() -> None:
    world = World()
    world.core.override(world.function, {"min_containers": 1}, until=world.now + 5)
    world.core.stop_app(world.now, "ap-1")
    world.wait(6)
    assert not world.core.state.temporary
    assert world.core.wake_at == float("inf")


def test_the_autoscaler_follows_at_once() -> None:
    world = World()
    world.core.override(world.function, {"min_containers": 2}, until=world.now + 30)
    world.wait(0.1)
    [first, second] = world.start(2)
    world.wait(29)
    assert stopped(world) == set()
    world.wait(62)
    assert stopped(world) == {first, second}


def stopped(world: World) -> set[Any]:
    return {one.container for one in of(world.seen, effects.StopContainer)}
