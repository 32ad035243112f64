"""How attempts end that do not return, as a user sees it: timeouts, starts that fail or take too long, Ctrl-C."""

from __future__ import annotations

import os
import signal

from world import NOMADFN, World, eventually


def test_an_attempt_over_its_timeout_is_retried_and_each_is_really_stopped(world: World) -> None:
    world.write(
        "late.py",
        """
        import asyncio, os, time
        from pathlib import Path
        import nomadfn

        app = nomadfn.App("late")
        twice = nomadfn.Retries(max_retries=1, initial_delay=0.0)
        mark = Path(__file__).parent

        def begin(name, folder):
            (Path(folder) / f"{name}-{os.getpid()}-{time.monotonic_ns()}").touch()

        @app.function(timeout=1, startup_timeout=60, retries=twice)
        def stuck(folder):
            begin("stuck", folder)
            while True:
                try:
                    time.sleep(3600)
                except BaseException:
                    pass

        @app.function(timeout=1, startup_timeout=60, retries=twice)
        async def astuck(folder):
            begin("astuck", folder)
            await asyncio.sleep(3600)

        @app.function(timeout=1, startup_timeout=60, retries=twice)
        def once(folder):
            begin("once", folder)
            if len(list(Path(folder).glob("once-*"))) < 2:
                time.sleep(3600)
            return "the second time"

        @app.local_entrypoint()
        def main(folder: str):
            for function in (stuck, astuck):
                try:
                    function.remote(folder)
                except nomadfn.exception.FunctionTimeoutError as error:
                    print(error)
            print(once.remote(folder))
        """,
    )
    marks = world.folder / "marks"
    marks.mkdir()
    done = world.nomadfn("run", "late.py", "--folder", marks).ok()
    assert done.out.splitlines() == [
        "stuck ran longer than its timeout of 1 s and was stopped",
        "astuck ran longer than its timeout of 1 s and was stopped",
        "the second time",
    ], done.report
    names = sorted(one.name.partition("-")[0] for one in marks.iterdir())
    assert names == ["astuck"] * 2 + ["once"] * 2 + ["stuck"] * 2
    world.all_gone()


def test_a_container_that_takes_too_long_to_start_is_ended_and_says_so(world: World) -> None:
    world.write(
        "slow_start.py",
        """
        import time
        import nomadfn

        app = nomadfn.App("slow-start")
        if not nomadfn.is_local():
            print("loading a large model", flush=True)
            time.sleep(3600)

        @app.function(startup_timeout=1)
        def f():
            return 1

        @app.local_entrypoint()
        def main():
            f.remote()
        """,
    )
    done = world.nomadfn("run", "slow_start.py")
    done.refused(3, "no container of f could be started, after 3 tries", "not ready within startup_timeout=1 s")
    assert "loading a large model" in done.report
    world.all_gone()


def test_a_crash_loop_waits_longer_each_time_and_shows_the_last_lines(world: World) -> None:
    world.up()
    world.write(
        "crashes.py",
        """
        import os, sys
        import nomadfn

        app = nomadfn.App("crashes")
        if not nomadfn.is_local():
            print("no driver for this card", file=sys.stderr, flush=True)
            os._exit(7)

        @app.function(min_containers=1)
        def f():
            return 1
        """,
    )
    world.deploy("crashes.py")
    failed = world.nomadfn("function", "call", "crashes", "f")
    failed.refused(3, "no container of f could be started", "exit code 7", "no driver for this card")

    def shown() -> str:
        return world.nomadfn("function", "explain", "crashes", "f").ok().out

    # Each pause is twice the one before.
    eventually(lambda: "the last starts failed; the next one is in 4 s" in shown(), "a fifth start is waited for")
    assert "no driver for this card" in shown()
    starts = [one for one in world.explain("crashes", "f")["decisions"] if "raised to min_containers" in one["reason"]]
    assert len(starts) <= 7, "only what is done is a decision"


def test_ctrl_c_interrupts_maps_generators_and_concurrent_inputs_alike(world: World) -> None:
    world.write(
        "many.py",
        """
        import asyncio, threading, time
        from pathlib import Path
        import nomadfn

        app = nomadfn.App("many")

        def during(name, folder):
            (Path(folder) / f"begun-{name}").touch()
            try:
                while True:
                    time.sleep(0.005)
            finally:
                (Path(folder) / f"ended-{name}").touch()

        @app.function(max_containers=2)
        def mapped(n, folder):
            during(f"mapped{n}", folder)

        @app.function(max_containers=1)
        @nomadfn.concurrent(max_inputs=3)
        def threads(n, folder):
            during(f"threads{n}", folder)

        @app.function(max_containers=1)
        @nomadfn.concurrent(max_inputs=3)
        async def tasks(n, folder):
            (Path(folder) / f"begun-tasks{n}").touch()
            try:
                await asyncio.sleep(3600)
            finally:
                (Path(folder) / f"ended-tasks{n}").touch()

        @app.function()
        def values(folder):
            try:
                for i in range(10**9):
                    yield i
                    if i == 3:
                        (Path(folder) / "begun-values").touch()
            finally:
                (Path(folder) / "ended-values").touch()

        @app.local_entrypoint()
        def main(folder: str):
            def work(call):
                try:
                    for _ in call():
                        pass
                except BaseException:
                    pass
            calls = [
                lambda: mapped.map(range(2), kwargs={"folder": folder}),
                lambda: threads.map(range(3), kwargs={"folder": folder}),
                lambda: tasks.map(range(3), kwargs={"folder": folder}),
            ]
            for call in calls:
                threading.Thread(target=work, args=(call,), daemon=True).start()
            for value in values.remote_gen(folder):
                while len(list(Path(folder).glob("begun-*"))) < 9:
                    time.sleep(0.01)
                print("all have begun", flush=True) if value == 4 else None
        """,
    )
    marks = world.folder / "marks"
    marks.mkdir()
    running = world.start(NOMADFN, "run", "many.py", "--folder", marks)
    running.says("all have begun")
    os.kill(running.pid, signal.SIGINT)
    done = running.wait()
    assert done.code == 130, done.report
    assert "unfinished input" in done.err, done.report
    done.without_our_frames()
    world.all_gone()
    begun, ended = (sorted(one.name.partition("-")[2] for one in marks.glob(f"{how}-*")) for how in ("begun", "ended"))
    assert len(begun) == 9
    assert ended == begun, done.report
