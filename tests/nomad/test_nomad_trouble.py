"""What only a double can be made to do: to be away, to deploy, to lose nodes, to have GPUs."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from agent_door import Door
from nomad_double.server import NomadDouble
from nomad_double.state import Node
from nomad_worlds import NEEDS, NomadWorld, Scene

from nomadfn.adapters import nomad_cluster
from nomadfn.adapters.nomad_api import NomadAddress, NomadApi
from nomadfn.adapters.nomad_cluster import NomadCluster
from nomadfn.exception import InvalidError, ServiceError
from nomadfn.ports import ContainerEnded, ContainerLeaving, ContainerStarted, PlacementBlocked

Run = Callable[[Callable[[Scene], Awaitable[None]]], None]
L40S = dataclasses.replace(NEEDS, gpu=("L40S",), cpu_cores=None, memory_mib=None)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[NomadWorld]:
    with closing(NomadDouble(tmp_path)) as double:
        yield NomadWorld(double, "trouble")


@pytest.fixture
def run(world: NomadWorld) -> Run:
    def run(scenario: Callable[[Scene], Awaitable[None]]) -> None:
        async def main() -> None:
            async with world.opened() as scene:
                await scenario(scene)

        asyncio.run(main())

    return run


def test_while_a_deployment_runs_it_waits_says_so_and_goes_on(world: NomadWorld, run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        world.double.state.deploying = True
        scene.cluster.start(world.placement("ct-1"))
        told = await scene.until_said(PlacementBlocked)
        assert "while a deployment of it runs" in told.why
        world.double.state.deploying = False
        await scene.until(ContainerStarted, "ct-1")
        assert (await scene.until_said(PlacementBlocked, lambda one: not one.why)).function == "ap-1/embed"

    run(scenario)


def test_who_leads_no_more_takes_nothing_away(world: NomadWorld, run: Run) -> None:
    """A control service that was frozen beyond its lease goes on where it stood until it hears of that."""

    async def scenario(scene: Scene) -> None:
        scene.cluster.start(world.placement("ct-1"))
        await scene.until(ContainerStarted, "ct-1")
        [job] = scene.cluster.jobs()
        asked: list[bool] = []

        def still_leads() -> bool:
            asked.append(len(asked) >= 3)
            return asked[-1]

        scene.cluster.still_leads = still_leads
        scene.cluster.stop("ct-1", 0.0)
        await scene.until_true(lambda: len(asked) == 3)
        assert sum((world.api.counts(job.id) or {}).values()) == 1
        await scene.until_true(lambda: sum((world.api.counts(job.id) or {}).values()) == 0)
        assert asked == [False] * 3 + [True]

    run(scenario)


def test_the_reason_of_a_decision_stands_in_the_scaling(world: NomadWorld, run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        scene.cluster.note("ap-1/embed", "backlog 4,200 / target 1")
        scene.cluster.start(world.placement("ct-1"))
        await scene.until(ContainerStarted, "ct-1")
        scene.cluster.note("ap-1/embed", "idle for 60 s")
        scene.cluster.stop("ct-1", 0.0)
        await scene.until_true(lambda: len(world.double.state.scalings) == 2)
        assert [one[2:] for one in world.double.state.scalings] == [
            (1, "backlog 4,200 / target 1"),
            (0, "idle for 60 s"),
        ]

    run(scenario)


def test_a_gpu_that_comes_ends_the_waiting(world: NomadWorld, run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        state = world.double.state
        state.nodes += [Node(f"t{number}", gpus={"Tesla T4": 1}) for number in range(3)]
        scene.cluster.start(world.placement("ct-1", 0, L40S))
        told = await scene.until_said(PlacementBlocked)
        assert told.why == "embed wants 1 × L40S; no node has one: 3 nodes have T4, 1 node has no GPU"
        state.nodes.append(Node("new", gpus={"NVIDIA L40S": 1}))
        state.evaluate_all()
        await scene.until(ContainerStarted, "ct-1")
        assert {alloc["NodeName"] for alloc in state.allocs.values()} == {"new"}

    run(scenario)


def test_containers_of_a_lost_node_are_lost_in_words(world: NomadWorld, run: Run) -> None:
    async def scenario(scene: Scene) -> None:
        state = world.double.state
        scene.cluster.start(world.placement("ct-1"))
        await scene.until(ContainerStarted, "ct-1")
        state.nodes.append(Node("node-2"))
        state.lose(state.nodes[0])
        assert (await scene.until(ContainerEnded, "ct-1")).what == "its node node-1 was lost"
        scene.cluster.start(world.placement("ct-2"))
        await scene.until(ContainerStarted, "ct-2")

    run(scenario)


def test_a_container_on_a_node_that_nomad_alone_has_lost_goes_on_and_gets_nothing_more(
    world: NomadWorld, run: Run
) -> None:
    async def scenario(scene: Scene) -> None:
        state = world.double.state
        scene.cluster.start(world.placement("ct-1"))
        await scene.until(ContainerStarted, "ct-1")
        state.nodes.append(Node("node-2"))
        state.lose(state.nodes[0], kill=False)
        assert (await scene.until(ContainerLeaving, "ct-1")).what == "Nomad has lost sight of its node"
        scene.cluster.start(world.placement("ct-2", 1))
        await scene.until(ContainerStarted, "ct-2")
        assert not scene.said(ContainerEnded, "ct-1")
        [pid] = [one["pid"] for one in scene.door.hellos if one["lane"] == 0 and one["alloc"] in lost(world)]
        os.kill(pid, signal.SIGKILL)
        assert (await scene.until(ContainerEnded, "ct-1")).what == "its node node-1 was lost"

    run(scenario)


def lost(world: NomadWorld) -> set[str]:
    return {id for id, alloc in world.double.state.allocs.items() if alloc["ClientStatus"] == "lost"}


def test_an_agent_that_stays_away_is_lost_and_its_room_is_left_alone(
    world: NomadWorld, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nomad_cluster, "AWAY_S", 0.3)

    async def scenario(scene: Scene) -> None:
        scene.cluster.start(world.placement("ct-1"))
        await scene.until(ContainerStarted, "ct-1")
        port = int(scene.door.url.rpartition(":")[2])
        await scene.door.close()
        assert (await scene.until(ContainerEnded, "ct-1")).what == "its agent has been away for 0 s"
        scene.door.server = await asyncio.start_server(scene.door._serve, "127.0.0.1", port)
        await scene.until_true(lambda: len(scene.door.hellos) == 2)
        assert scene.door.hellos[1]["containers"] == ["ct-1"]
        scene.cluster.start(world.placement("ct-2"))
        await scene.until(ContainerStarted, "ct-2")

    run(scenario)


def test_a_nomad_that_is_away_is_named_and_opening_says_what_to_do(tmp_path: Path) -> None:
    async def scenario() -> None:
        door = Door()
        await door.open()
        double = NomadDouble(tmp_path)
        world = NomadWorld(double, "away")
        cluster = NomadCluster(NomadApi(double.address), world.settings(door), lambda job: "t")
        scene = Scene(cluster, door)
        await cluster.open(scene.listen)
        double.close()
        cluster.start(world.placement("ct-1"))
        told = await scene.until_said(PlacementBlocked)
        assert "cannot be reached" in told.why
        assert "check NOMAD_ADDR" in told.why
        await cluster.leave()
        with pytest.raises(ServiceError, match="cannot be reached"):
            await NomadCluster(NomadApi(double.address), world.settings(door), lambda job: "t").open(scene.listen)
        await door.close()

    asyncio.run(scenario())


def test_the_address_is_read_as_the_tools_of_nomad_read_it() -> None:
    address = NomadAddress.from_environ(
        {"NOMAD_ADDR": "https://n:4646/", "NOMAD_TOKEN": "s", "NOMAD_CACERT": "/ca", "NOMAD_SKIP_VERIFY": "true"}
    )
    assert (address.url, address.token, address.ca_path, address.skip_verify) == ("https://n:4646", "s", "/ca", True)
    assert "token" not in repr(address)
    assert NomadAddress.from_environ({}).url == "http://127.0.0.1:4646"
    with pytest.raises(InvalidError, match=r"unix:///run/nomad\.sock' is not supported"):
        NomadAddress.from_environ({"NOMAD_ADDR": "unix:///run/nomad.sock"})
