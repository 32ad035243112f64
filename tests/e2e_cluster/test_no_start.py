"""Containers that cannot be started or placed: whoever waits for one hears why, in the words of the program."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_world import ClusterWorld, made_in, made_on_double
from consul_server import ConsulServer
from world import eventually

pytestmark = [pytest.mark.consul, pytest.mark.timeout(240)]

PROGRAM = """
    import nomadfn

    app = nomadfn.App("stuck")

    @app.function()
    def work():
        return "done"

    @app.function(memory=9_000_000)
    def huge():
        return "done"
"""
NO_PYTHON = {"python": "/no/such/python"}


@pytest.fixture(params=["double", pytest.param("real", marks=pytest.mark.nomad)])
def world(request: pytest.FixtureRequest, tmp_path: Path, consul: ConsulServer) -> Iterator[ClusterWorld]:
    """One whose nodes do not have the Python that the profile names."""
    if request.param == "real":
        with made_in(tmp_path, request.getfixturevalue("nomad"), consul, NO_PYTHON) as made:
            yield made
        return
    with made_on_double(tmp_path, consul, NO_PYTHON) as made:
        yield made


def test_a_driver_that_cannot_start_it_fails_the_call_and_memory_that_no_node_has_is_named(
    world: ClusterWorld,
) -> None:
    world.start_control()
    world.led()
    world.write("stuck.py", PROGRAM)
    deployed = world.nomadfn("deploy", "stuck.py", timeout_s=120).ok()
    assert "huge wants 9,000,000 MiB of memory; 1 node has too little memory free" in deployed.err
    waits = world.start("nomadfn", "function", "call", "stuck", "huge")
    eventually(lambda: "huge waits: huge wants 9,000,000 MiB of memory" in waits.err, waits)
    done = world.nomadfn("function", "call", "stuck", "work", timeout_s=120)
    assert done.code != 0
    assert "no container of work could be started, after 3 tries" in done.err
    assert "its driver could not start it" in done.err
    assert "/no/such/python" in done.err
