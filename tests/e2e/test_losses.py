"""Containers that are killed, kill themselves, or lose the process that they were forked from."""

from __future__ import annotations

import os
import random
import signal
import sys

from world import NOMADFN, World, eventually


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def sleeping(world: World) -> set[int]:
    return {pid for pid, line in world.processes().items() if line.startswith("sleep ")}


def test_killing_containers_at_random_during_a_map_loses_no_result_and_doubles_none(world: World) -> None:
    world.write(
        "squares.py",
        """
        import time
        import nomadfn

        app = nomadfn.App("squares")

        @app.function()
        def square(x):
            time.sleep(0.002)
            return x, x * x

        @app.local_entrypoint()
        def main():
            count, seen = 0, {}
            for x, y in square.map(range(2000), order_outputs=False):
                count += 1
                seen[x] = y
                print(count, flush=True)
            print("right" if count == 2000 and seen == {x: x * x for x in range(2000)} else (count, seen))
        """,
    )
    run = world.start(NOMADFN, "run", "squares.py")
    dice = random.Random(11)
    killed: set[int] = set()
    for count in range(150, 1950, 150):
        run.says(f"\n{count}\n")
        candidates = [pid for pid in world.containers() if pid not in killed]
        for victim in dice.sample(candidates, min(len(candidates), dice.choice((1, 1, 2)))):
            kill(victim)
            killed.add(victim)
    assert run.wait().ok().out.splitlines()[-1] == "right"
    assert len(killed) >= 8
    world.all_gone()


POISON = """
    import os, signal, sys
    import nomadfn

    app = nomadfn.App("poison")
    DEATHS = {13: None, 27: signal.SIGSEGV, 41: signal.SIGKILL}

    @app.function()
    def f(x):
        if x in DEATHS:
            print(x, "was here", file=sys.stderr, flush=True)
            if DEATHS[x] is None:
                os._exit(3)
            os.kill(os.getpid(), DEATHS[x])
        return x

    @app.local_entrypoint()
    def main():
        results = list(f.map(range(60), return_exceptions=True))
        failed = {i: result for i, result in enumerate(results) if isinstance(result, BaseException)}
        print(sorted(failed), {type(one).__name__ for one in failed.values()})
        print([one for i, one in enumerate(results) if i not in failed] == [x for x in range(60) if x not in DEATHS])
        for one in failed.values():
            print(str(one).replace("\\n", " "))
"""


def test_inputs_that_kill_their_container_fail_alone(world: World) -> None:
    world.write("poison.py", POISON)
    done = world.nomadfn("run", "poison.py").ok()
    failed, others, *messages = done.out.splitlines()
    assert (failed, others) == ("[13, 27, 41] {'InternalFailure'}", "True"), done.report
    for number, seen, message in zip(
        (13, 27, 41), ("exit code 3", "segmentation fault", "SIGKILL"), messages, strict=True
    ):
        assert f"input {number} of f lost its container 8 times while it ran alone" in message, done.report
        assert seen in message, done.report
        assert f"{number} was here" in message, done.report


def test_the_children_of_a_container_that_is_killed_end_with_it(world: World) -> None:
    world.write(
        "parents.py",
        """
        import os, subprocess
        import nomadfn

        app = nomadfn.App("parents")

        @app.function()
        def parent():
            child = subprocess.Popen(["sleep", "3600"])
            away = subprocess.Popen(["sleep", "3601"], start_new_session=True)
            print("children", child.pid, away.pid, flush=True)
            child.wait()

        @app.local_entrypoint()
        def main():
            try:
                parent.remote()
            except nomadfn.exception.InternalFailure as error:
                print("lost", flush=True)
        """,
    )
    run = world.start(NOMADFN, "run", "parents.py")
    for _ in range(3):
        eventually(lambda: len(sleeping(world)) == 2, "the container has two children")
        children = sleeping(world)
        kill(next(pid for pid in world.containers() if children & set(world.descendants(pid))))
        world.gone(children)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait().code == 130
    world.all_gone()


def test_killing_the_warm_parent_loses_no_result(world: World) -> None:
    world.write(
        "squares.py",
        """
        import time
        import nomadfn

        app = nomadfn.App("squares")

        @app.function()
        def square(x):
            time.sleep(0.01)
            return x * x

        @app.local_entrypoint()
        def main():
            results = []
            for y in square.map(range(600)):
                results.append(y)
                print(len(results), flush=True)
            print("right" if results == [x * x for x in range(600)] else results)
        """,
    )
    run = world.start(NOMADFN, "run", "squares.py")
    for count in (50, 300):
        run.says(f"\n{count}\n")
        parent, containers = world.warm_parent(), world.containers()
        kill(parent)
        world.gone([parent, *containers])
    assert run.wait().ok().without_our_frames().out.splitlines()[-1] == "right"
    world.all_gone()


def test_a_warm_parent_that_ends_again_and_again_is_reported_and_ends_the_run(world: World) -> None:
    world.write(
        "forever.py",
        """
        import time
        import nomadfn

        app = nomadfn.App("forever")

        @app.function()
        def wait():
            print("here", flush=True)
            time.sleep(3600)

        @app.local_entrypoint()
        def main():
            wait.remote()
        """,
    )
    run = world.start(NOMADFN, "run", "forever.py")
    for count in range(4):
        run.has_printed("here", count + 1)
        kill(world.warm_parent())
    done = run.wait().without_our_frames()
    assert done.code == 3, done.report
    assert "containers cannot be run any more" in done.err, done.report
    world.all_gone()


def test_a_function_that_holds_the_gil_is_busy_and_not_lost(world: World) -> None:
    """Longer than a lost connection is put up with (10 s) would be too long here: nothing looks at a shorter time."""
    world.write(
        "busy.py",
        """
        import ctypes, time
        import nomadfn

        app = nomadfn.App("busy")

        @app.function()
        def hold(seconds):
            print("begun", flush=True)
            began = time.monotonic()
            ctypes.PyDLL(None).sleep(seconds)
            return time.monotonic() - began

        @app.local_entrypoint()
        def main(seconds: int):
            print(hold.remote(seconds) >= seconds)
        """,
    )
    done = world.nomadfn("run", "busy.py", "--seconds", 12).ok()
    assert done.out.splitlines()[-1] == "True", done.report
    assert done.report.count("begun") == 1, done.report
    assert "lost" not in done.err, done.report


def test_a_timeout_really_stops_a_function_and_spares_its_siblings(world: World) -> None:
    world.write(
        "hang.py",
        """
        import time
        import nomadfn

        app = nomadfn.App("hang")

        @app.function(timeout=1, startup_timeout=60)
        def f(x):
            while x == 5:
                try:
                    time.sleep(3600)
                except BaseException:
                    pass
            return x

        def main():
            results = list(f.map(range(40), return_exceptions=True))
            error = results.pop(5)
            print(type(error).__name__, results == [x for x in range(40) if x != 5])
            print(error)

        if __name__ == "__main__":
            with app.run():
                main()
        """,
    )
    done = world.execute(sys.executable, "hang.py").ok()
    assert done.out.splitlines()[0] == "FunctionTimeoutError True", done.report
    assert "timeout of 1 s" in done.out, done.report
    world.all_gone()
