"""Deployed functions that run by themselves: once each time, over kills of the service, until their app is stopped."""

from __future__ import annotations

import re

from world import World, eventually

PROGRAM = """
    import os, sys
    import nomadfn

    app = nomadfn.App("timed")

    @app.function(schedule=nomadfn.Period(seconds=2), scaledown_window=60)
    def every_two_seconds():
        with open(os.environ["RUNS"], "a") as lines:
            lines.write(f"{nomadfn.current_function_call_id()}\\n")
        return {1, 2}  # no JSON, which nobody asks for

    @app.function(schedule=nomadfn.Cron("0 9 * * 1-5", timezone="Europe/Berlin"))
    def on_weekdays(hour=9):
        return hour

    @app.function()
    def plain():
        return 1
"""
MAIN = """
    @app.local_entrypoint()
    def main():
        import time
        time.sleep(3)
        print(plain.remote())
"""
FAILING = """
    import nomadfn

    app = nomadfn.App("failing")

    @app.function(schedule=nomadfn.Period(seconds=1), retries=0)
    def fails():
        raise KeyError("nothing there")
"""


def runs(world: World) -> dict[int, str]:
    """The call of each due time that has run. One whose container was killed at its end may have run again."""
    path = world.folder / "runs"
    ids = path.read_text().split() if path.exists() else []
    found = {int(one[3:11], 16): one for one in ids}
    assert len(found) == len(set(ids)), f"two calls for one due time: {ids}"
    return found


def deployed(world: World) -> None:
    world.env["RUNS"] = str(world.folder / "runs")
    world.write("timed.py", PROGRAM)
    world.up()
    world.deploy("timed.py")


def test_each_due_time_runs_once_over_kills_of_the_service(world: World) -> None:
    deployed(world)
    for count in (2, 4, 6):
        eventually(lambda count=count: len(runs(world)) >= count, f"{count} runs")  # type: ignore[misc]
        world.kill_service()
        world.up()
    last = len(runs(world))
    eventually(lambda: len(runs(world)) >= last + 2, "it goes on")
    dues = list(runs(world))
    assert {due % 2 for due in dues} == {dues[0] % 2}, "the beat of the deploy"
    logged = world.nomadfn("app", "logs", "timed").ok().err
    assert "every_two_seconds │ its run of 20" in logged
    assert "failed" not in logged


def test_the_commands_show_when_it_runs_next_and_its_app_ends_it(world: World) -> None:
    deployed(world)
    shown = world.nomadfn("app", "info", "timed").ok().out
    assert re.search(r"every_two_seconds .* every 2 seconds +20\d\d-.*, in \d s", shown)
    assert re.search(r"on_weekdays .* cron 0 9 \* \* 1-5 \(Europe/Berlin\) +20\d\d-.*, in ", shown)
    assert "next run" in world.nomadfn("function", "list").ok().out
    info = world.nomadfn("function", "info", "timed", "on_weekdays").ok().out
    assert "schedule    cron 0 9 * * 1-5 (Europe/Berlin)\nnext run    20" in info
    assert "next run" not in world.nomadfn("function", "info", "timed", "plain").ok().out
    assert world.nomadfn("function", "info", "timed", "plain", "--json").ok().json["next_run"] is None
    eventually(lambda: runs(world), "a run")
    assert "last run" in world.nomadfn("function", "info", "timed", "every_two_seconds").ok().out
    world.nomadfn("app", "stop", "timed").ok()
    count = len(runs(world))
    world.write("timed.py", PROGRAM.replace("schedule=nomadfn.Period(seconds=2), ", ""))
    world.deploy("timed.py")
    world.write("failing.py", FAILING)
    world.deploy("failing.py")
    eventually(
        lambda: "its scheduled run" in world.nomadfn("app", "logs", "failing").ok().err, "a failure that is said"
    )
    logged = world.nomadfn("app", "logs", "failing").ok().err
    assert re.search(r"its scheduled run fc-\w{32} failed: KeyError: 'nothing there'", logged)
    eventually(
        lambda: logged.count("failed: KeyError") < world.nomadfn("app", "logs", "failing").ok().err.count("failed"),
        "more",
    )
    assert len(runs(world)) == count, "what was stopped runs no more"


def test_a_program_that_is_only_run_has_no_schedule(world: World) -> None:
    world.env["RUNS"] = str(world.folder / "runs")
    world.write("timed.py", PROGRAM + MAIN)
    done = world.nomadfn("run", "timed.py").ok()
    assert done.out == "1\n"
    assert "schedules begin when the app is deployed, and not here: every_two_seconds, on_weekdays" in done.err
    assert not runs(world)


def test_a_wrong_schedule_is_refused_where_it_is_written(world: World) -> None:
    world.write("timed.py", PROGRAM.replace("0 9 * * 1-5", "0 9 * *"))
    world.up()
    world.nomadfn("deploy", "timed.py").refused(3, "'0 9 * *' has 4 fields")
