"""A standby takes over: by force, in good order, and from one who only believes to lead."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from cluster_world import ClusterWorld
from world import eventually

pytestmark = [pytest.mark.consul, pytest.mark.timeout(300)]

PROGRAM = """
    import os, sys, time
    import nomadfn

    app = nomadfn.App("marks")

    @app.function(max_containers=3, scaledown_window=30)
    def mark(n, folder, seconds):
        # One file a run: what runs twice is seen.
        os.close(os.open(f"{folder}/{n}-{os.getpid()}-{time.monotonic_ns()}", os.O_CREAT | os.O_EXCL))
        time.sleep(seconds)
        return n * 2
"""
SPAWN = """
    import sys, time
    import nomadfn

    folder, count = sys.argv[1], int(sys.argv[2])
    mark = nomadfn.Function.from_name("marks", "mark")
    mark.remote(-1, folder, 0)
    calls = []
    for n in range(count):
        calls.append(mark.spawn(n, folder, 0.05))
        if n == count // 2:
            print("half", flush=True)
    print("spawned", flush=True)
    print(sum(call.get(timeout=120) for call in calls), flush=True)
"""
MAP = """
    import sys
    import nomadfn

    folder, count = sys.argv[1], int(sys.argv[2])
    mark = nomadfn.Function.from_name("marks", "mark")
    done = []
    for result in mark.map(range(count), kwargs={"folder": folder, "seconds": 0.02}):
        done.append(result)
        if len(done) == count // 3:
            print("third", flush=True)
    assert done == [2 * n for n in range(count)], done
    print("all", flush=True)
"""


@pytest.fixture
def deployed(any_world: ClusterWorld) -> ClusterWorld:
    """A leader, a standby, and a function with a container that is warm."""
    any_world.start_control()
    any_world.led()
    any_world.start_control()
    eventually(lambda: "standing by" in any_world.controls[1].out, any_world.controls[1])
    for name, source in (("marks.py", PROGRAM), ("spawn.py", SPAWN), ("mapped.py", MAP)):
        any_world.write(name, source)
    any_world.nomadfn("deploy", "marks.py", timeout_s=120).ok()
    return any_world


def runs(folder: Path) -> dict[int, int]:
    """How often each input has run."""
    found: dict[int, int] = {}
    for one in folder.iterdir():
        number = int(one.name.rpartition("-")[0].rpartition("-")[0])
        found[number] = found.get(number, 0) + 1
    return found


def test_a_leader_killed_under_load_loses_no_spawn_and_none_runs_twice(deployed: ClusterWorld, tmp_path: Path) -> None:
    folder = tmp_path / "marks"
    folder.mkdir()
    program = deployed.start("python", "spawn.py", folder, 200)
    program.says("half")
    leading = deployed.leading()
    before = deployed.led()
    leading.process.send_signal(signal.SIGKILL)
    start = time.monotonic()
    eventually(lambda: (found := deployed.leader()) is not None and found != before, "another leader")
    print(f"another leader after {time.monotonic() - start:.3f} s")
    done = program.wait(40).ok()
    assert done.out.split()[-1] == str(sum(2 * n for n in range(200)))
    assert {n: count for n, count in runs(folder).items() if count > 1} == {}
    assert set(runs(folder)) == set(range(-1, 200))


def test_a_map_goes_on_over_a_kill_of_the_leader(deployed: ClusterWorld, tmp_path: Path) -> None:
    folder = tmp_path / "marks"
    folder.mkdir()
    program = deployed.start("python", "mapped.py", folder, 600)
    program.says("third")
    deployed.leading().process.send_signal(signal.SIGKILL)
    program.wait(40).ok()
    assert {n: count for n, count in runs(folder).items() if count > 1} == {}


def test_a_leader_that_is_told_to_end_hands_over_at_once(deployed: ClusterWorld, tmp_path: Path) -> None:
    folder = tmp_path / "marks"
    folder.mkdir()
    program = deployed.start("python", "mapped.py", folder, 600)
    program.says("third")
    leading, before = deployed.leading(), deployed.led()
    leading.process.send_signal(signal.SIGTERM)
    eventually(lambda: (found := deployed.leader()) is not None and found != before, "another leader")
    assert leading.wait().code == 0, leading
    program.wait(40).ok()
    assert {n: count for n, count in runs(folder).items() if count > 1} == {}


def test_a_leader_that_was_frozen_beyond_its_lease_steps_down(deployed: ClusterWorld) -> None:
    leading, before = deployed.leading(), deployed.led()
    leading.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: (found := deployed.leader()) is not None and found != before, "another leader", 60)
    finally:
        leading.process.send_signal(signal.SIGCONT)
    ended = leading.wait()
    assert ended.code == 5, ended
    assert "stepping down" in ended.err
