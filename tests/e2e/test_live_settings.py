"""Changing a function's settings while it runs: from a program, from a container, from the command line, for a time."""

from __future__ import annotations

import re

from world import World, eventually

PROGRAM = """
    import nomadfn as modal

    app = modal.App("my-app")

    @app.function(max_containers=30)
    def process(item):
        return item

    @app.function()
    def scale_up_for_peak():
        process = modal.Function.from_name("my-app", "process")
        process.update_autoscaler(min_containers=10, buffer_containers=20)

    @app.function()
    def scale_down_after_peak():
        process = modal.Function.from_name("my-app", "process")
        process.update_autoscaler(min_containers=1, buffer_containers=2)
"""
NEWER = """
    import asyncio
    import nomadfn

    process = nomadfn.Function.from_name("my-app", "process")
    print(process.autoscaler.settings())
    print(process.autoscaler.update(max_containers=7, scaledown_window=9))
    print(process.autoscaler.update(max_containers=None, buffer_containers=1))
    print(process.update_autoscaler(max_containers=None, buffer_containers=None))

    async def main():
        print(await process.autoscaler.update.aio(scaledown_window=None, buffer_containers=None))
        print(await process.autoscaler.settings.aio())
        print((await process.get_current_stats.aio()).backlog, process.get_current_stats().num_total_runners)

    asyncio.run(main())
    for wrong in ({"min_containers": -1}, {"max_containers": 0}, {"min_containers": 31}, {"scaledown_window": 1}):
        try:
            process.autoscaler.update(**wrong)
        except nomadfn.exception.InvalidError as error:
            print(error)
"""
PRINTED = """\
AutoscalerSettings(min_containers=0, max_containers=30, buffer_containers=0, scaledown_window=60.0)
AutoscalerSettings(min_containers=0, max_containers=7, buffer_containers=0, scaledown_window=9.0)
AutoscalerSettings(min_containers=0, max_containers=30, buffer_containers=1, scaledown_window=9.0)
AutoscalerSettings(min_containers=0, max_containers=30, buffer_containers=1, scaledown_window=9.0)
AutoscalerSettings(min_containers=0, max_containers=30, buffer_containers=0, scaledown_window=60.0)
AutoscalerSettings(min_containers=0, max_containers=30, buffer_containers=0, scaledown_window=60.0)
0 0
function process: min_containers=-1 must be a whole number, 0 or more
function process: max_containers=0 must be a whole number, 1 or more
process: min_containers=31 is more than max_containers=30
function process: scaledown_window=1 must be from 2 to 3,600 seconds
"""


def deployed(world: World) -> World:
    world.write("mine.py", PROGRAM)
    world.up("--capacity", "2")
    world.deploy("mine.py")
    return world


def minimum(world: World) -> int:
    return int(world.explain("my-app", "process")["settings"]["min_containers"])


def test_the_guides_functions_scale_up_and_down_and_the_next_deploy_reverts_that(world: World) -> None:
    deployed(world)
    for function, expected in (("scale_up_for_peak", (10, 20)), ("scale_down_after_peak", (1, 2))):
        world.nomadfn("function", "call", "my-app", function).ok()
        settings = world.explain("my-app", "process")["settings"]
        assert (settings["min_containers"], settings["buffer_containers"]) == expected
    world.deploy("mine.py")
    assert minimum(world) == 0


def test_the_newer_spelling_says_what_is_in_force_and_none_resets(world: World) -> None:
    deployed(world).write("newer.py", NEWER)
    assert world.python("newer.py").ok().out == PRINTED


def test_a_change_for_a_time_reverts_by_itself_also_after_the_service_was_killed(world: World) -> None:
    deployed(world)
    scale = ("function", "scale", "my-app", "process")
    said = world.nomadfn(*scale, "--min", "1").ok().out
    assert said == "my-app process: min 1, max 30, buffer 0, window 60 s (min until the next deploy)\n"
    said = world.nomadfn(*scale, "--min", "2", "--buffer", "1", "--for", "1h").ok().out
    assert re.fullmatch(r".*min 2, max 30, buffer 1, window 60 s \(min \(then 1\), buffer until \S+Z, in .*\)\n", said)
    shown = world.nomadfn("function", "explain", "my-app", "process").ok().out
    assert re.search(r"settings .*min \(then 1\), buffer until \S+Z, in ", shown)
    assert "(changed)" in world.nomadfn("function", "list").ok().out
    world.nomadfn(*scale, "--min", "3", "--for", "8s").ok()
    world.kill_service()
    world.up("--capacity", "2")
    shown = world.explain("my-app", "process")
    assert shown["changed"]["temporary"]["buffer_containers"]["value"] == 1, "that of an hour still stands"
    eventually(lambda: minimum(world) == 1, "what was there before")
    eventually(lambda: "reverted" in world.nomadfn("app", "logs", "my-app").ok().err, "a line that says so")
    said = world.nomadfn(*scale, "--reset").ok().out
    assert said == "my-app process: min 0, max 30, buffer 0, window 60 s (as deployed)\n"


def test_what_is_wrong_on_the_command_line_is_said(world: World) -> None:
    deployed(world)
    scale = ("function", "scale", "my-app", "process")
    world.nomadfn(*scale, "--min", "1", "--for", "soon").refused(2, "90s, 15m, 1h30m or 2d, not 'soon'")
    world.nomadfn(*scale, "--for", "1h").refused(2, "name at least one setting")
    world.nomadfn(*scale, "--max", "many").refused(2, "whole number or none")
    world.nomadfn(*scale, "--min", "1", "--for", "60d").refused(3, "1 second to 30 days")
    world.nomadfn(*scale, "--min", "40").refused(3, "min_containers=40 is more than max_containers=30")


def test_the_stats_of_a_function_are_shown(world: World) -> None:
    deployed(world)
    assert world.nomadfn("function", "stats", "my-app", "process").ok().out.split("\n")[0] == "backlog        0"
    shown = world.nomadfn("function", "stats", "my-app", "process", "--json").ok().json
    assert shown == {"backlog": 0, "num_total_runners": 0, "num_running_inputs": 0, "input_headroom": 0}
    world.nomadfn("function", "stats", "my-app", "gone").refused(3, "no function gone")
