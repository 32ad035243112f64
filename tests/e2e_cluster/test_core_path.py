"""Programs on a real Nomad and a real Consul: the same as on one machine, only the profile differs."""

from __future__ import annotations

import pytest
from cluster_world import ClusterWorld
from world import eventually

pytestmark = [pytest.mark.consul, pytest.mark.timeout(240)]

PROGRAM = """
    import nomadfn

    app = nomadfn.App("sums")

    @app.function(max_containers=4, scaledown_window=2)
    def square(n):
        return n * n

    @app.local_entrypoint()
    def main(count: int = 5000):
        print(sum(square.map(range(count))))
"""


def test_a_program_is_deployed_called_and_goes_back_to_nothing(any_world: ClusterWorld) -> None:
    any_world.start_control()
    any_world.led()
    any_world.write("sums.py", PROGRAM)
    done = any_world.nomadfn("deploy", "sums.py", timeout_s=120).ok()
    assert f"the cluster {any_world.name}" in done.err
    assert any_world.nomadfn("function", "call", "sums", "square", "7", timeout_s=120).ok().out.strip() == "49"
    assert any_world.count() == 1
    eventually(lambda: any_world.count() == 0, "scaled to zero", 60)


def test_a_map_of_5000_inputs_gives_every_result(any_world: ClusterWorld) -> None:
    any_world.start_control()
    any_world.led()
    any_world.write("sums.py", PROGRAM)
    done = any_world.nomadfn("run", "sums.py", timeout_s=180).ok()
    assert done.out.strip() == str(sum(n * n for n in range(5000)))
