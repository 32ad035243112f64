"""What Nomad itself goes through: drained nodes, killed processes, a killed client and a killed server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import allocation_processes as processes
import nomad as nomad_client
import pytest
import real_nomad
from cluster_world import ClusterWorld, made_in
from consul_server import ConsulServer
from marks import Marks, deployed, results
from real_nomad import Agent, NomadAgents
from world import eventually

pytestmark = [pytest.mark.nomad, pytest.mark.consul, pytest.mark.timeout(300)]

AWAY_S = 4
"""A node of these tests that is away for so long is down; the default is 10 s and more."""


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NomadAgents]:
    path, why = real_nomad.find()
    if not path:
        pytest.skip(f"needs a real Nomad (1.6 or newer): {why}")
    started = NomadAgents(path, tmp_path_factory.mktemp("agents"), clients=2, away_s=AWAY_S)
    yield started
    started.close()


@pytest.fixture
def kill_timeout_s() -> int:
    return 3


@pytest.fixture
def marks(tmp_path: Path, agents: NomadAgents, consul: ConsulServer, kill_timeout_s: int) -> Iterator[Marks]:
    with made_in(tmp_path, agents, consul, {"kill_timeout_s": kill_timeout_s}) as world:
        yield deployed(world, tmp_path)


def node_of(marks: Marks, number: int) -> str:
    """The node on which an input has begun last."""
    api = marks.world.api()
    try:
        alloc = api.allocation(marks.where(number))
        assert alloc is not None
        return str(alloc["NodeID"])
    finally:
        api.close()


def client_of(marks: Marks, agents: NomadAgents, number: int) -> Agent:
    """The agent of Nomad under which an input has begun last."""
    node = node_of(marks, number)
    [found] = [one for one in agents.clients if node_id(one) == node]
    return found


def node_id(agent: Agent) -> str:
    return str(nomad_client.Nomad(address=agent.address.url).agent.get_agent()["stats"]["client"]["node_id"])


def drain(world: ClusterWorld, node: str) -> None:
    spec = {"Deadline": 60_000_000_000, "IgnoreSystemJobs": True}
    nomad_client.Nomad(address=world.nomad.address.url).node.drain_node_with_spec(node, spec)


def undrain(world: ClusterWorld, node: str) -> None:
    nomad_client.Nomad(address=world.nomad.address.url).node.drain_node_with_spec(node, None, mark_eligible=True)


@pytest.mark.parametrize("kill_timeout_s", [30])
def test_inputs_on_a_drained_node_finish_and_new_ones_run_on_the_other(marks: Marks) -> None:
    call = marks.call(0, gated=True)
    marks.has_begun(0)
    node = node_of(marks, 0)
    drain(marks.world, node)
    try:
        beside = marks.call(1, 3)
        assert len(results(beside)) == 3
        assert node not in {node_of(marks, number) for number in (1, 2, 3)}
        marks.gate.touch()
        results(call)
        assert marks.twice() == {}
    finally:
        undrain(marks.world, node)


def test_an_input_that_outlasts_the_kill_timeout_of_a_drain_runs_again_elsewhere(marks: Marks) -> None:
    call = marks.call(0, gated=True)
    marks.has_begun(0)
    node = node_of(marks, 0)
    drain(marks.world, node)
    try:
        eventually(lambda: marks.runs()[0] == 2, "it runs again", 60)
        assert node_of(marks, 0) != node
        marks.gate.touch()
        assert len(results(call)) == 1
        assert marks.runs()[0] == 2
    finally:
        undrain(marks.world, node)


def test_a_map_goes_on_when_the_processes_of_allocations_are_killed(marks: Marks) -> None:
    call = marks.call(0, 400, seconds=0.1)
    victims = []
    for number in (20, 120, 220):
        marks.has_begun(number)
        alloc = marks.where(number)
        victims.append(alloc)
        processes.kill(processes.all_of(alloc) if number != 120 else processes.in_allocation(alloc)[1:])
    assert [n for n, _, _ in results(call)] == list(range(400))
    # Each victim held one input and what was sent ahead of it; no other input ran twice.
    assert set(marks.twice().values()) <= {2, 3, 4}
    assert len(marks.twice()) <= 10 * len(victims), marks.twice()


def test_containers_outlive_a_kill_of_nomads_client(marks: Marks, agents: NomadAgents) -> None:
    call = marks.call(0, gated=True)
    marks.has_begun(0)
    client = client_of(marks, agents, 0)
    client.kill()
    client.start()
    agents.wait_until_ready()
    beside = marks.call(1, 4, gated=True)
    marks.has_begun(1, 2, 3, 4)
    marks.gate.touch()
    assert len(results(beside)) == 4
    assert len(results(call)) == 1
    assert marks.twice() == {}


def test_inputs_of_a_client_that_stays_away_run_on_and_new_ones_elsewhere(marks: Marks, agents: NomadAgents) -> None:
    call = marks.call(0, gated=True)
    marks.has_begun(0)
    client = client_of(marks, agents, 0)
    node = node_of(marks, 0)
    client.kill()
    try:
        api = marks.world.api()
        eventually(lambda: any(one["Status"] == "down" for one in api.nodes()), "Nomad gives the node up", 60)
        api.close()
        assert len(results(marks.call(1, 3))) == 3
        assert node not in {node_of(marks, number) for number in (1, 2, 3)}
        marks.gate.touch()
        assert len(results(call)) == 1
        assert marks.twice() == {}  # It was there all the time, and so was its agent.
    finally:
        client.start()
        agents.wait_until_ready()


def test_what_a_machine_takes_with_it_runs_again_elsewhere(marks: Marks, agents: NomadAgents) -> None:
    call = marks.call(0, 6, gated=True)
    marks.has_begun(*range(6))
    client = client_of(marks, agents, 0)
    there = [number for number in range(6) if node_of(marks, number) == node_of(marks, 0)]
    client.kill()
    real_nomad.kill_all_of(client.folder)
    try:
        eventually(lambda: set(marks.twice()) == set(there), "they run again, and no others", 90)
        marks.gate.touch()
        assert len(results(call)) == 6
        assert marks.twice() == dict.fromkeys(there, 2)
    finally:
        client.start()
        agents.wait_until_ready()


def test_work_goes_on_while_nomads_server_is_away(marks: Marks, agents: NomadAgents) -> None:
    call = marks.call(0, 3, gated=True)
    marks.has_begun(0, 1, 2)
    agents.server.kill()
    try:
        long = marks.call(3, 4)  # There is no room for it but in containers that are there.
        marks.gate.touch()
        assert len(results(call)) == 3
        assert len(results(long)) == 4
    finally:
        agents.server.start()
        agents.wait_until_ready()
    marks.gate.unlink()
    more = marks.call(10, 12, gated=True)
    marks.has_begun(*range(10, 22))
    marks.gate.touch()
    assert len(results(more)) == 12
    assert marks.twice() == {}
    eventually(lambda: marks.world.count() == 0, "scaled to zero", 60)
