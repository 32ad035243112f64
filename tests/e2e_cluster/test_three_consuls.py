"""A whole service on three Consul servers, whose leader is killed under load, and then its own."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from cluster_world import made_on_double
from consul_server import running_cluster
from test_leader import another_leads, prepared

pytestmark = [pytest.mark.consul, pytest.mark.timeout(400)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_consuls_leader_is_killed_and_then_ours_and_nothing_is_lost_or_runs_twice(
    tmp_path: Path, number: signal.Signals
) -> None:
    with running_cluster(tmp_path / "three", 3) as servers:
        address = servers[0].leader()
        [leading] = [server for server in servers if address.endswith(f":{server.server_port}")]
        follower = next(server for server in servers if server is not leading)
        with made_on_double(tmp_path, follower) as world:
            load = prepared(world, tmp_path)
            load.start("spawn", "remote", "map")
            before, control = world.led(), world.leading()
            leading.kill()
            killed_at = time.monotonic()
            load.goes_on("remote", "result", killed_at)
            load.goes_on("spawn", "acknowledged", killed_at)
            assert world.led() == before, "no leader of ours had a reason to change"
            ended_at = time.monotonic()
            control.process.send_signal(number)
            another_leads(world, before)
            print(f"another leader after {time.monotonic() - ended_at:.2f} s, with two Consul servers of three")
            load.goes_on("remote", "result", ended_at)
            load.goes_on("spawn", "acknowledged", ended_at)
            leading.start()
            leading.wait_until_led()
            back_at = time.monotonic()
            load.goes_on("spawn", "acknowledged", back_at)
            counts = load.finish()
            print(counts)
            assert load.run_again() == {}
            assert len(load.runs()) == sum(counts.values())
