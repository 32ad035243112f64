"""A function that runs by itself on a cluster, while its leader is killed around the times at which it is due."""

from __future__ import annotations

import time

import pytest
from cluster_world import ClusterWorld
from world import eventually

pytestmark = [pytest.mark.consul, pytest.mark.timeout(300)]

PROGRAM = """
    import os
    import nomadfn

    app = nomadfn.App("timed")

    @app.function(schedule=nomadfn.Period(seconds=3), env={"RUNS": "RUNS_FILE"}, scaledown_window=120, max_containers=1)
    def often():
        with open(os.environ["RUNS"], "a") as lines:
            lines.write(f"{nomadfn.current_function_call_id()}\\n")
"""


def runs(world: ClusterWorld) -> dict[int, str]:
    """The call of each due time that has run. One whose container was killed at its end may have run again."""
    path = world.folder / "runs"
    ids = path.read_text().split() if path.exists() else []
    found = {int(one[3:11], 16): one for one in ids}
    assert len(found) == len(set(ids)), f"two calls for one due time: {ids}"
    return found


def test_each_due_time_runs_once_whoever_leads(any_world: ClusterWorld) -> None:
    world = any_world
    world.start_control()
    world.led()
    world.start_control()
    eventually(lambda: "standing by" in world.controls[1].out, world.controls[1])
    world.write("timed.py", PROGRAM.replace("RUNS_FILE", str(world.folder / "runs")))
    world.nomadfn("deploy", "timed.py", timeout_s=120).ok()
    eventually(lambda: runs(world), "the first run", 120)
    for _ in range(2):
        due = world.explain("timed", "often")["next_run"]
        leading, before = world.leading(), world.led()
        eventually(lambda due=due: time.time() >= due, "the moment at which it is due")  # type: ignore[misc]
        leading.process.kill()
        world.start_control()
        eventually(lambda before=before: (one := world.leader()) is not None and one != before, "another")  # type: ignore[misc]
        count = len(runs(world))
        eventually(lambda count=count: len(runs(world)) >= count + 2, "it goes on")  # type: ignore[misc]
    dues = list(runs(world))
    assert {due % 3 for due in dues} == {dues[0] % 3}, "the beat of the deploy"
