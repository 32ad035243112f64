"""Attempts that do not return, on a cluster: they are stopped where they run, and their containers serve on."""

from __future__ import annotations

import os
import signal

import pytest
from cluster_world import ClusterWorld
from world import NOMADFN, eventually

pytestmark = [pytest.mark.consul, pytest.mark.timeout(300)]

PROGRAM = """
    import os, time
    from pathlib import Path
    import nomadfn

    app = nomadfn.App("lifetimes")

    def begin(name, folder):
        (Path(folder) / f"{name}-{time.monotonic_ns()}").touch()

    twice = nomadfn.Retries(max_retries=1, initial_delay=0.0)

    @app.function(max_containers=1, timeout=1, startup_timeout=60, retries=twice)
    def stuck(folder):
        begin("stuck", folder)
        while True:
            try:
                time.sleep(3600)
            except BaseException:
                pass

    @app.function(max_containers=1)
    def patient(folder, seconds):
        begin("patient", folder)
        try:
            time.sleep(seconds)
        finally:
            begin("left", folder)
        return "done"

    @app.function(max_containers=1)
    def values(folder):
        try:
            for i in range(10**9):
                yield i
        finally:
            begin("closed", folder)

    @app.function(max_containers=1)
    def fatal(folder):
        begin("fatal", folder)
        print("the card is on fire", flush=True)
        os._exit(9)
"""
CALLS = """
    import sys, time
    from pathlib import Path
    import nomadfn
    from nomadfn import Function, exception

    folder = sys.argv[1]
    names = ("stuck", "patient", "values", "fatal")
    stuck, patient, values, fatal = (Function.from_name("lifetimes", name) for name in names)

    def marks(name):
        return len(list(Path(folder).glob(f"{name}-*")))

    def wait_for(name, count):
        while marks(name) < count:
            time.sleep(0.01)

    def fails(call, kind, *words):
        try:
            call()
        except kind as error:
            assert all(word in str(error) for word in words), error
        else:
            raise AssertionError(kind)

    fails(lambda: stuck.remote(folder), exception.FunctionTimeoutError, "timeout of 1 s")
    assert marks("stuck") == 2

    running = patient.spawn(folder, 3600)
    wait_for("patient", 1)
    running.cancel()
    fails(lambda: running.get(timeout=60), exception.InputCancellation)
    wait_for("left", 1)
    assert patient.remote(folder, 0) == "done"
    running = patient.spawn(folder, 3600)
    wait_for("patient", 3)
    running.cancel(terminate_containers=True)
    fails(lambda: running.get(timeout=60), exception.InputCancellation)
    assert patient.remote(folder, 0) == "done"

    for value in values.remote_gen(folder):
        if value == 5:
            break
    wait_for("closed", 1)
    assert [value for value, _ in zip(values.remote_gen(folder), range(3))] == [0, 1, 2]

    fails(lambda: fatal.remote(folder), exception.InternalFailure, "8 times", "exit code 9", "the card is on fire")
    assert marks("fatal") == 8
    print("all", flush=True)
"""


def test_timeouts_cancels_early_ends_and_losses_on_a_cluster(any_world: ClusterWorld) -> None:
    any_world.start_control()
    any_world.led()
    any_world.write("lifetimes.py", PROGRAM)
    any_world.write("calls.py", CALLS)
    any_world.nomadfn("deploy", "lifetimes.py", timeout_s=120).ok()
    marks = any_world.folder / "marks"
    marks.mkdir()
    assert "all" in any_world.start("python", "calls.py", marks).wait(120).ok().out


RUN = """
    import threading, time
    from pathlib import Path
    import nomadfn

    app = nomadfn.App("run-of-many")

    def mark(name, folder):
        (Path(folder) / name).touch()

    @app.function(max_containers=2)
    def mapped(n, folder):
        mark(f"begun-mapped{n}", folder)
        try:
            while True:
                time.sleep(0.005)
        finally:
            mark(f"ended-mapped{n}", folder)

    @app.function()
    def values(folder):
        try:
            for i in range(10**9):
                yield i
                mark("begun-values", folder)
        finally:
            mark("ended-values", folder)

    @app.local_entrypoint()
    def main(folder: str):
        threading.Thread(target=lambda: list(mapped.map(range(2), kwargs={"folder": folder})), daemon=True).start()
        for value in values.remote_gen(folder):
            while len(list(Path(folder).glob("begun-*"))) < 3:
                time.sleep(0.01)
            if value == 4:
                print("all have begun", flush=True)
"""


def test_ctrl_c_of_a_run_interrupts_what_runs_on_the_cluster(any_world: ClusterWorld) -> None:
    any_world.start_control()
    any_world.led()
    any_world.write("many.py", RUN)
    marks = any_world.folder / "marks"
    marks.mkdir()
    run = any_world.start(NOMADFN, "run", "many.py", "--folder", marks)
    run.says("all have begun")
    os.kill(run.pid, signal.SIGINT)
    done = run.wait(60)
    assert done.code == 130, done.report
    assert "unfinished input" in done.err, done.report
    ended = {"ended-mapped0", "ended-mapped1", "ended-values"}
    eventually(lambda: ended <= {one.name for one in marks.iterdir()}, "every finally has run")
    eventually(lambda: any_world.count() == 0, "Nomad is asked for no container any more")
