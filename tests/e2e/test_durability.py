"""What was acknowledged stays: across the end of the caller, and across kill -9 of the control service."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import pytest
from world import NOMADFN, World, eventually

JOBS = """
    import os, time, uuid
    import nomadfn

    app = nomadfn.App("jobs")

    @app.function()
    def triple(x):
        return 3 * x

    @app.function()
    def stamp(x, pause_s=0.0):
        "What one run, and only that one, returns."
        time.sleep(pause_s)
        return [x, uuid.uuid4().hex]
"""
SEND = """
    import sys
    import nomadfn

    function = nomadfn.Function.from_name("jobs", sys.argv[1])
    for i in range(int(sys.argv[2])):
        print(function.spawn(i, *map(float, sys.argv[3:])).object_id, flush=True)
"""
COLLECT = """
    import json, sys
    import nomadfn

    calls = [nomadfn.FunctionCall.from_id(line.strip()) for line in open(sys.argv[1])]
    print(json.dumps(nomadfn.FunctionCall.gather(*calls)))
"""
MAP = """
    import sys
    import nomadfn
    from nomadfn.sdk import client

    client.RECONNECT_S = float((*sys.argv, 45)[1])
    stamp = nomadfn.Function.from_name("jobs", "stamp")
    results = []
    for result in stamp.map(range(600), kwargs={"pause_s": 0.005}):
        results.append(result[0])
        print(len(results), flush=True)
    print("right" if results == list(range(600)) else results)
"""
WAIT = """
    import nomadfn

    call = nomadfn.Function.from_name("jobs", "stamp").spawn(5, 2.0)
    print("waiting", flush=True)
    print("right" if call.get()[0] == 5 else "wrong")
"""
HAND_IN = """
    import nomadfn

    def items():
        for x in range(10_000):
            if x % 500 == 0:
                print(x, flush=True)
            yield x

    call = nomadfn.Function.from_name("jobs", "stamp").spawn_map(items())
    results = list(call.iter())
    runs = {run for _, run in results}
    print("right" if [x for x, _ in results] == list(range(10_000)) and len(runs) == 10_000 else "wrong")
"""


@pytest.fixture
def jobs(world: World) -> World:
    """A world with the control service up and the app deployed."""
    for name, source in (("jobs.py", JOBS), ("send.py", SEND), ("collect.py", COLLECT), ("map.py", MAP)):
        world.write(name, source)
    world.up()
    world.deploy("jobs.py")
    return world


def collect(world: World, ids: list[str]) -> list[Any]:
    (world.folder / "ids").write_text("\n".join(ids))
    results: list[Any] = world.python("collect.py", "ids").ok().json
    return results


def test_a_thousand_spawns_of_a_program_that_has_ended_give_their_results_to_another(jobs: World) -> None:
    ids = jobs.python("send.py", "triple", 1000).ok().out.split()
    assert len(set(ids)) == 1000
    assert collect(jobs, ids) == [3 * i for i in range(1000)]


def test_results_survive_down_and_up(jobs: World) -> None:
    ids = jobs.python("send.py", "stamp", 20).ok().out.split()
    before = collect(jobs, ids)
    jobs.nomadfn("down").ok()
    jobs.all_gone()
    jobs.up()
    assert collect(jobs, ids) == before


def test_each_acknowledged_spawn_has_one_result_after_the_service_was_killed_while_they_came(jobs: World) -> None:
    sender = jobs.start(sys.executable, "send.py", "stamp", 300)
    for acknowledged in (40, 180):
        sender.has_printed("\n", acknowledged)
        jobs.kill_service()
        jobs.up()
    ids = sender.wait().ok().out.split()
    results = collect(jobs, ids)
    assert [x for x, _ in results] == list(range(300))
    assert len({run for _, run in results}) == 300
    assert collect(jobs, ids) == results, "a second look shows the same runs"


def test_each_acknowledged_spawn_has_one_result_after_the_service_was_killed_while_they_ran(jobs: World) -> None:
    ids = jobs.python("send.py", "stamp", 120, 0.05).ok().out.split()
    seen: dict[str, object] = {}
    dice = random.Random(7)
    for _ in range(2):
        known = dice.sample(ids[:40], 5)
        seen |= dict(zip(known, collect(jobs, known), strict=True))
        jobs.kill_service()
        jobs.up()
    results = collect(jobs, ids)
    assert [x for x, _ in results] == list(range(120))
    assert len({run for _, run in results}) == 120
    by_id = dict(zip(ids, results, strict=True))
    assert {id: by_id[id] for id in seen} == seen, "what was seen once is not run again"


def test_a_map_a_spawn_map_and_a_waiting_get_go_on_after_the_service_was_killed(jobs: World) -> None:
    jobs.write("wait.py", WAIT)
    jobs.write("hand_in.py", HAND_IN)
    waiting = jobs.start(sys.executable, "wait.py")
    waiting.says("waiting")
    mapping, handing_in = jobs.start(sys.executable, "map.py"), jobs.start(sys.executable, "hand_in.py")
    mapping.says("\n20\n")
    handing_in.says("\n3000\n")
    jobs.kill_service()
    jobs.up()
    for program in (waiting, mapping, handing_in):
        assert program.wait().ok().out.splitlines()[-1] == "right"


def test_an_attached_run_goes_on_after_the_service_was_killed(jobs: World) -> None:
    jobs.write(
        "mine.py",
        """
        import time
        import nomadfn

        app = nomadfn.App("mine")

        @app.function()
        def slow(x):
            time.sleep(0.02)
            return -x

        @app.local_entrypoint()
        def main():
            results = []
            for result in slow.map(range(200)):
                results.append(result)
                print(len(results), flush=True)
            print("right" if results == [-x for x in range(200)] else results)
        """,
    )
    run = jobs.start(NOMADFN, "run", "mine.py")
    run.says("\n40\n")
    jobs.kill_service()
    jobs.up()
    assert run.wait().ok().out.splitlines()[-1] == "right"
    jobs.nomadfn("down").ok()
    jobs.all_gone()


def test_a_client_says_so_when_the_service_was_killed_and_nobody_starts_it_again(jobs: World) -> None:
    program = jobs.start(sys.executable, "map.py", 1)
    program.says("\n20\n")
    jobs.kill_service()
    done = program.wait()
    assert done.code == 1, done.report
    assert "ServiceError" in done.err, done.report
    assert "nomadfn up" in done.err, done.report


PATIENT = """
    import os, signal, sys
    import nomadfn

    call = nomadfn.Function.from_name("jobs", "stamp").spawn(1, 60)
    os.kill(int(sys.argv[1]), signal.SIGKILL)
    try:
        call.get(timeout=1)
    except TimeoutError as error:
        print(error)
"""


def test_a_get_with_a_timeout_ends_though_the_service_was_killed(jobs: World) -> None:
    jobs.write("patient.py", PATIENT)
    pid = jobs.service_pid()
    tree = [pid, *jobs.descendants(pid)]
    done = jobs.execute(sys.executable, "patient.py", pid).ok()
    jobs.gone(tree)
    assert "no result after 1 s, and the control service does not answer; ask again later" in done.out


TWO = """
    import os, sys
    import nomadfn

    app = nomadfn.App("two")

    @app.function()
    def who(x):
        return (os.environ["NOMADFN_APP_ID"], x)

    @app.local_entrypoint()
    def main(start: int):
        results = list(who.map(range(start, start + 400)))
        print(len({app for app, _ in results}), [x for _, x in results] == list(range(start, start + 400)))
"""


@pytest.mark.parametrize("attached", [False, True], ids=["both private", "both attached"])
def test_two_runs_at_once_do_not_disturb_each_other(world: World, attached: bool) -> None:
    world.write("two.py", TWO)
    if attached:
        world.up()
    both = [world.start(NOMADFN, "run", "two.py", "--start", str(start)) for start in (0, 1000)]
    for run in both:
        assert run.wait().ok().out == "1 True\n"
    if attached:
        assert json.loads(world.nomadfn("app", "list", "--json").ok().out) == []
    else:
        world.all_gone()


def test_a_detached_run_finishes_its_spawns_after_the_program_has_ended(world: World) -> None:
    world.write(
        "later.py",
        """
        import time
        import nomadfn

        app = nomadfn.App("later")

        @app.function()
        def slow(x):
            time.sleep(0.2)
            return x + 1

        @app.local_entrypoint()
        def main():
            for x in range(10):
                print(slow.spawn(x).object_id)
        """,
    )
    world.write("collect.py", COLLECT)
    world.up()
    ids = world.nomadfn("run", "--detach", "later.py").ok().out.split()
    assert collect(world, ids) == list(range(1, 11))
    eventually(lambda: world.nomadfn("app", "list", "--json").ok().json == [], "the detached app has ended by itself")


def test_a_run_that_ends_cancels_its_spawns_and_says_how_many(world: World) -> None:
    world.write(
        "later.py",
        """
        import time
        import nomadfn

        app = nomadfn.App("later")

        @app.function()
        def slow(x):
            time.sleep(60)

        @app.local_entrypoint()
        def main():
            for x in range(7):
                slow.spawn(x)
        """,
    )
    done = world.nomadfn("run", "later.py").ok()
    assert "7 unfinished inputs cancelled" in done.err, done.report
    world.all_gone()
