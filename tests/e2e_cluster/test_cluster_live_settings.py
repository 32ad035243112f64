"""Settings that revert by themselves, on a cluster: under the next leader, and as people write them into Consul."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest
from cluster_world import ClusterWorld
from world import eventually

pytestmark = [pytest.mark.consul, pytest.mark.timeout(300)]

PROGRAM = """
    import nomadfn

    app = nomadfn.App("live")

    @app.function(max_containers=4)
    def f(x):
        return x
"""


def kv(world: ClusterWorld, method: str, body: Any = None) -> Any:
    """The override of the function as it stands in Consul; what `consul kv put` and `get` do."""
    url = f"{world.consul.address}/v1/kv/nomadfn/{world.name}/overrides/live/f{'?raw' if method == 'GET' else ''}"
    headers = {"X-Consul-Token": world.consul.token} if world.consul.token else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def minimum(world: ClusterWorld) -> int:
    return int(world.explain("live", "f")["settings"]["min_containers"])


def test_a_change_for_a_time_reverts_under_the_next_leader_and_by_hand(any_world: ClusterWorld) -> None:
    world = any_world
    world.start_control()
    world.led()
    world.start_control()
    eventually(lambda: "standing by" in world.controls[1].out, world.controls[1])
    world.write("live.py", PROGRAM)
    world.nomadfn("deploy", "live.py", timeout_s=120).ok()
    world.nomadfn("function", "scale", "live", "f", "--max", "3").ok()
    world.nomadfn("function", "scale", "live", "f", "--buffer", "1", "--for", "1h").ok()
    world.nomadfn("function", "scale", "live", "f", "--min", "1", "--for", "5s").ok()
    entry = kv(world, "GET")
    assert (entry["max_containers"], set(entry["temporary"])) == (3, {"min_containers", "buffer_containers"})
    leading, before = world.leading(), world.led()
    leading.process.kill()
    eventually(lambda: (found := world.leader()) is not None and found != before, "another leader")
    eventually(lambda: minimum(world) == 0, "it has reverted")
    assert world.explain("live", "f")["settings"]["buffer_containers"] == 1, "that of an hour still stands"
    eventually(lambda: set(kv(world, "GET")["temporary"]) == {"buffer_containers"}, "and so it stands in Consul")
    kv(world, "PUT", {"min_containers": 1})
    eventually(lambda: minimum(world) == 1, "the form that people have written before")
    kv(world, "PUT", {"temporary": {"min_containers": {"value": 2, "until": "2099-01-01T00:00:00Z"}}})
    eventually(lambda: minimum(world) == 2, "the new one")
    kv(world, "DELETE")
    eventually(lambda: minimum(world) == 0, "what was deployed")
