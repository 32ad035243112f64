"""The control service as a Nomad job: `up` and `down`, and a kill that Nomad answers with a new standby."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from cluster_world import ClusterWorld, made_in
from consul_server import ConsulServer
from real_nomad import RealNomad
from world import eventually

pytestmark = [pytest.mark.nomad, pytest.mark.consul, pytest.mark.timeout(300)]

PROGRAM = """
    import nomadfn

    app = nomadfn.App("upped")

    @app.function()
    def double(n):
        return 2 * n
"""


def test_up_runs_two_instances_and_down_ends_them(tmp_path: Path, nomad: RealNomad, consul: ConsulServer) -> None:
    with made_in(tmp_path, nomad, consul) as world:
        with world.toml.open("a") as toml:
            toml.write('[profiles.test.control_job]\nservice_provider = "nomad"\nmemory_mib = 300\ncpu_mhz = 50\n')
        up = world.nomadfn("up", "--nomad", timeout_s=150).ok()
        assert f"Nomad job {world.name}-control" in up.out
        world.write("upped.py", PROGRAM)
        world.nomadfn("deploy", "upped.py", timeout_s=120).ok()
        assert world.nomadfn("function", "call", "upped", "double", "21", timeout_s=120).ok().out.strip() == "42"
        _kill_the_leader(world)
        assert world.nomadfn("function", "call", "upped", "double", "4", timeout_s=120).ok().out.strip() == "8"
        down = world.nomadfn("down", "--all", timeout_s=90).ok()
        assert "has ended" in down.out
        assert world.leader() is None


def _kill_the_leader(world: ClusterWorld) -> None:
    before = world.led()
    pid = int(world.nomadfn("status", "--json").ok().json["pid"])
    eventually(lambda: "standing by" in _logs(world), "there is a standby")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: (found := world.leader()) is not None and found != before, "another leader")


def _logs(world: ClusterWorld) -> str:
    api = world.api()
    try:
        allocs = api.allocations_of(f"{world.name}-control")
        return "".join(
            api.log_tail(one["ID"], "control", "stdout", 4096) for one in allocs if one["ClientStatus"] == "running"
        )
    finally:
        api.close()
