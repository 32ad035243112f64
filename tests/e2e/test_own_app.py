"""A function that calls and scales its own app from inside a container, on one machine."""

from __future__ import annotations

from own_app import OTHER, PROGRAM, REFUSED, SCALED_DOWN, SCALED_UP
from world import World, eventually


def test_a_function_scales_its_own_app_until_the_next_deploy(world: World) -> None:
    world.write("mine.py", PROGRAM)
    world.up()
    world.deploy("mine.py")
    assert world.nomadfn("function", "call", "my-app", "scale_up_for_peak").ok().json == SCALED_UP
    shown = world.explain("my-app", "process")
    assert shown["overridden"]
    eventually(lambda: world.explain("my-app", "process")["containers"], "the container that is always there")
    assert world.nomadfn("function", "call", "my-app", "scale_down_after_peak").ok().json == SCALED_DOWN
    world.deploy("mine.py")
    settings = world.explain("my-app", "process")["settings"]
    assert (settings["max_containers"], settings["scaledown_window_s"]) == (4, 2)


def test_so_it_does_in_a_program_that_is_not_deployed(world: World) -> None:
    world.write("mine.py", PROGRAM)
    assert world.nomadfn("run", "mine.py").ok().out == f"{SCALED_UP} {SCALED_DOWN}\n"


def test_it_may_do_nothing_else(world: World) -> None:
    world.write("mine.py", PROGRAM)
    world.write("other.py", OTHER)
    world.up()
    world.deploy("mine.py")
    world.deploy("other.py")
    assert world.nomadfn("function", "call", "my-app", "overreach").ok().json == REFUSED
    assert world.explain("other", "process")["settings"]["min_containers"] == 0
    assert world.nomadfn("app", "list", "--json").ok().json[0]["version"] == 1
