"""Programs on a real Nomad and a real Consul: the same as on one machine, only the profile differs."""

from __future__ import annotations

import os

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


MIXED = """
    import ctypes
    import os

    import nomadfn

    app = nomadfn.App("mixed")

    @app.function(min_containers=2, max_containers=2, env={"RELEASE": os.environ.get("RELEASE", "")})
    def work(long):
        if long:
            handle = os.open(os.environ["RELEASE"], os.O_RDWR)
            ctypes.PyDLL(None).read(handle, ctypes.create_string_buffer(1), 1)
        return long

    @app.local_entrypoint()
    def main():
        list(work.map([False] * 500))
        results = work.map([number == 300 for number in range(1000)], order_outputs=False)
        print(sum(not next(results) for _ in range(999)), "short ones are done", flush=True)
        os.write(os.open(os.environ["RELEASE"], os.O_RDWR), b"1")
        print(list(results))
"""


def test_an_agent_takes_back_what_waits_behind_an_input_that_holds_the_gil(any_world: ClusterWorld) -> None:
    """The long input ends only once every short one has its result."""
    any_world.start_control()
    any_world.led()
    release = any_world.folder / "release"
    os.mkfifo(release)
    any_world.write("mixed.py", MIXED)
    done = any_world.nomadfn("run", "mixed.py", timeout_s=180, RELEASE=str(release)).ok()
    assert done.out.splitlines() == ["999 short ones are done", "[True]"]


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
