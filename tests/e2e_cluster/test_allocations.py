"""The agents of real allocations: what their jobs hold, and how they end."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import nomad
import pytest
from cluster_world import ClusterWorld
from world import NOMADFN, Running, eventually

pytestmark = [pytest.mark.nomad, pytest.mark.consul, pytest.mark.timeout(240)]

PROGRAM = """
    import os, time
    import nomadfn

    app = nomadfn.App("works")

    @app.function(env={"PASSWORD": "hunter2-${x}"}, timeout=120)
    def work(folder, seconds):
        open(os.path.join(folder, f"{time.monotonic_ns()}.begun"), "w").close()
        time.sleep(seconds)
        names = ("NOMADFN_JOIN_TOKEN", "NOMADFN_CODE_CACHE", "NOMAD_ALLOC_ID")
        return [os.environ["PASSWORD"], *(os.environ.get(name, "") for name in names)]
"""


def deployed(world: ClusterWorld) -> None:
    world.start_control()
    world.led()
    world.write("works.py", PROGRAM)
    world.nomadfn("deploy", "works.py", timeout_s=120).ok()


def calling(world: ClusterWorld, folder: Path, seconds: float) -> Running:
    """A call that goes on beside the test; returns once its input has begun."""
    call = world.start(NOMADFN, "function", "call", "works", "work", json.dumps(str(folder)), str(seconds))
    eventually(lambda: begun(folder) or call.ended, "the input has begun", 60)
    return call


def begun(folder: Path) -> int:
    return len(list(folder.glob("*.begun")))


def allocations(world: ClusterWorld) -> list[str]:
    api = world.api()
    try:
        return [one["ID"] for one in api.allocations(f"{world.name}-fn-") if one["ClientStatus"] == "running"]
    finally:
        api.close()


def agents(world: ClusterWorld) -> list[int]:
    """The agents of the world's allocations."""
    found = {pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_agent(pid, world.name)}
    return [pid for pid in found if _parent(pid) not in found]


def _is_agent(pid: int, cluster: str) -> bool:
    try:
        environment, command = (Path(f"/proc/{pid}/{name}").read_bytes() for name in ("environ", "cmdline"))
    except OSError:
        return False
    return f"NOMAD_JOB_ID={cluster}-fn-".encode() in environment and b"nomadfn-agent.pyz" in command


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_values_of_env_reach_the_function_and_stand_in_no_job(world: ClusterWorld, tmp_path: Path) -> None:
    deployed(world)
    done = calling(world, tmp_path, 0).wait(60).ok()
    password, join_token, code_cache, alloc = json.loads(done.out)
    assert (password, join_token) == ("hunter2-${x}", "")
    assert code_cache.endswith("/local/code")
    assert [alloc] == allocations(world)
    client = nomad.Nomad(address=world.nomad.address.url)
    jobs = [client.job.get_job(job["ID"]) for job in client.jobs.get_jobs(prefix=world.name)]
    assert jobs
    assert "hunter2" not in json.dumps(jobs)


def test_an_allocation_that_nomad_stops_finishes_its_input_first(world: ClusterWorld, tmp_path: Path) -> None:
    world.configure({"kill_timeout_s": 30})
    deployed(world)
    call = calling(world, tmp_path, 5)
    [alloc] = allocations(world)
    nomad.Nomad(address=world.nomad.address.url).allocation.stop_allocation(alloc)
    assert "hunter2" in call.wait(90).ok().out
    assert begun(tmp_path) == 1
    eventually(lambda: alloc not in allocations(world), "the allocation has ended", 60)


def test_what_a_killed_agent_ran_runs_again(world: ClusterWorld, tmp_path: Path) -> None:
    deployed(world)
    call = calling(world, tmp_path, 5)
    [agent] = agents(world)
    os.kill(agent, signal.SIGKILL)
    assert "hunter2" in call.wait(90).ok().out
    assert begun(tmp_path) == 2
