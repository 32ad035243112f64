"""What containers print is seen; and however a program ends, nothing of it stays."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable

import pytest
from world import NOMADFN, World, eventually

PRINTING = """
    import os, sys
    import nomadfn

    app = nomadfn.App("printing")

    @app.function()
    def loud(x):
        print(f"out {x}")
        print(f"err {x}", file=sys.stderr)
        os.write(1, b"raw %d\\n" % x)
        os.system(f"echo child {x}")
        return x

    @app.function()
    def last():
        sys.stdout.write("no newline at the end")
        sys.stdout.flush()
        os._exit(1)

    @app.local_entrypoint()
    def main():
        assert sorted(loud.map(range(8))) == list(range(8))
        try:
            last.remote()
        except nomadfn.exception.InternalFailure:
            print("done")

    if __name__ == "__main__":
        with app.run():
            main()
"""


@pytest.mark.parametrize("how", ["nomadfn run", "python"])
def test_what_containers_print_reaches_the_terminal_marked_with_function_and_container(world: World, how: str) -> None:
    world.write("printing.py", PRINTING)
    command = (NOMADFN, "run", "printing.py") if how == "nomadfn run" else (sys.executable, "printing.py")
    done = world.execute(*command).ok()
    out, err = (re.sub(r"^\[(\w+) (\d+)\] ", r"\1#\2 │ ", text, flags=re.MULTILINE) for text in (done.out, done.err))
    for kind, text in (("out", out), ("raw", out), ("child", out), ("err", err)):
        lines = re.findall(rf"^loud#(\d) │ {kind} (\d)$", text, re.MULTILINE)
        assert sorted(int(x) for _, x in lines) == list(range(8)), f"{kind}: {done.report}"
        assert {int(index) for index, _ in lines} <= set(range(4)), "indexes are the containers', from 0"
    assert len(re.findall(r"^last#\d │ no newline at the end$", out, re.MULTILINE)) == 8, done.report
    assert done.out.rstrip().endswith("done"), "all of it came before the program's own last line"


def test_a_flood_of_lines_arrives_whole_and_in_order(world: World) -> None:
    world.write(
        "flood.py",
        """
        import nomadfn

        app = nomadfn.App("flood")

        @app.function()
        def flood():
            for number in range(30_000):
                print(number, "x" * 50)

        @app.local_entrypoint()
        def main():
            flood.remote()
        """,
    )
    done = world.nomadfn("run", "flood.py").ok()
    assert [int(line) for line in re.findall(r"^flood#0 │ (\d+) x{50}$", done.out, re.MULTILINE)] == list(range(30_000))


STUBBORN = """
    import ctypes, os, signal, subprocess, sys, time
    import nomadfn

    app = nomadfn.App("stubborn")

    @app.function()
    def stay(x):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        subprocess.Popen(["sleep", "3600"], start_new_session=True)
        print("here", flush=True)
        while True:
            try:
                ctypes.PyDLL(None).sleep(3600)
            except BaseException:
                pass

    @app.local_entrypoint()
    def main():
        list(stay.map(range(50)))

    if __name__ == "__main__":
        with app.run():
            main()
"""
"""Programs whose function ends by itself never; the first one can only be killed."""
MILD = STUBBORN.replace("ctypes.PyDLL(None).sleep(3600)", "time.sleep(3600)").replace("pass", "raise")


def line_of(word: str) -> Callable[[World], bool]:
    return lambda world: any(word in line for line in world.processes().values())


MOMENTS: dict[str, Callable[[World], object]] = {
    "as it starts": lambda world: world.processes(),
    "as its service starts": line_of("nomadfn.control"),
    "as the warm parent starts": line_of("--supervisor-fd"),
    "as a container starts": World.containers,
    "while all run": lambda world: len([line for line in world.processes().values() if line == "sleep 3600"]) >= 4,
}


def nothing_is_left(world: World) -> None:
    world.all_gone()
    eventually(lambda: not list(world.temporary.iterdir()), f"{world.temporary} is empty")


@pytest.mark.parametrize(
    ("how", "moment"),
    [
        *(("nomadfn run", moment) for moment in MOMENTS),
        ("python", "as its service starts"),
        ("python", "while all run"),
    ],
)
def test_killing_the_program_leaves_no_process_and_no_folder(world: World, how: str, moment: str) -> None:
    world.write("stubborn.py", STUBBORN)
    command = (NOMADFN, "run", "stubborn.py") if how == "nomadfn run" else (sys.executable, "stubborn.py")
    run = world.start(*command)
    eventually(lambda: MOMENTS[moment](world), moment)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    nothing_is_left(world)


@pytest.mark.parametrize("moment", ["as its service starts", "as a container starts", "while all run"])
def test_ctrl_c_cancels_and_leaves_no_process_and_no_folder(world: World, moment: str) -> None:
    world.write("mild.py", MILD)
    run = world.start(NOMADFN, "run", "mild.py")
    eventually(lambda: MOMENTS[moment](world), moment)
    os.kill(run.pid, signal.SIGINT)
    done = run.wait()
    if moment == "while all run":
        assert done.code == 130, done.report
        assert re.search(r"Stopped; \d+ unfinished inputs cancelled", done.err), done.report
        done.without_our_frames()
    assert done.code != 0, done.report
    nothing_is_left(world)


def test_ctrl_c_ends_a_function_that_cannot_be_interrupted_as_well(world: World) -> None:
    world.write("stubborn.py", STUBBORN)
    run = world.start(NOMADFN, "run", "stubborn.py")
    eventually(lambda: MOMENTS["while all run"](world), "all run")
    os.kill(run.pid, signal.SIGINT)
    assert run.wait().code == 130
    nothing_is_left(world)


def test_a_second_ctrl_c_ends_at_once_and_leaves_nothing(world: World) -> None:
    world.write("stubborn.py", STUBBORN)
    run = world.start(NOMADFN, "run", "stubborn.py")
    eventually(lambda: MOMENTS["while all run"](world), "all run")
    os.kill(run.pid, signal.SIGINT)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait().code == 130
    nothing_is_left(world)


def test_ctrl_c_in_a_program_with_app_run_leaves_nothing(world: World) -> None:
    world.write("mild.py", MILD)
    run = world.start(sys.executable, "mild.py")
    eventually(lambda: MOMENTS["while all run"](world), "all run")
    os.kill(run.pid, signal.SIGINT)
    done = run.wait()
    assert done.code == -signal.SIGINT or "KeyboardInterrupt" in done.err, done.report
    nothing_is_left(world)


def test_ctrl_c_of_an_attached_run_ends_its_containers_and_not_the_service(world: World) -> None:
    world.write("mild.py", MILD)
    pid = world.up()["pid"]
    run = world.start(NOMADFN, "run", "mild.py")
    eventually(lambda: MOMENTS["while all run"](world), "all run")
    os.kill(run.pid, signal.SIGINT)
    assert run.wait().code == 130
    eventually(lambda: not world.containers(), "its containers are gone")
    assert world.nomadfn("app", "list", "--json").ok().json == []
    assert world.service_pid() == pid
    world.nomadfn("down").ok()
    world.all_gone()


def test_killing_a_private_service_ends_the_run_with_its_last_words(world: World) -> None:
    world.write("stubborn.py", STUBBORN)
    run = world.start(NOMADFN, "run", "stubborn.py")
    eventually(lambda: MOMENTS["while all run"](world), "all run")
    service = next(pid for pid, line in world.processes().items() if "nomadfn.control" in line)
    os.kill(service, signal.SIGKILL)
    run.wait().refused(3, "the private control service ended (killed by signal 9)")
    nothing_is_left(world)


def test_down_is_no_loss_of_containers_and_ctrl_c_does_not_wait_for_what_is_gone(world: World) -> None:
    world.write("mild.py", MILD)
    world.up()
    run = world.start(NOMADFN, "run", "mild.py")
    eventually(lambda: MOMENTS["while all run"](world), "all run")
    world.nomadfn("down").ok()
    eventually(lambda: "trying to get it back" in run.err, "the run knows")
    os.kill(run.pid, signal.SIGINT)
    done = run.wait(timeout_s=20).without_our_frames()
    assert done.code == 130, done.report
    assert "it was told to end" in done.err, done.report
    assert "lost (killed" not in done.err, done.report
    world.all_gone()


def test_down_ends_everything_of_functions_that_will_not_end(world: World) -> None:
    world.write("stubborn.py", STUBBORN)
    world.up()
    world.deploy("stubborn.py")
    world.write("go.py", "import nomadfn\nnomadfn.Function.from_name('stubborn', 'stay').spawn_map(range(4))\n")
    world.python("go.py").ok()
    eventually(lambda: MOMENTS["while all run"](world), "all run")
    done = world.nomadfn("down").ok()
    assert "has ended" in done.out, done.report
    world.all_gone()
