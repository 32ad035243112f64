"""Every cluster keeps the contract."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from contract_cluster import ClusterContract, ClusterWorld, Watched

from nomadfn.adapters.local import LocalCluster
from nomadfn.adapters.memory import MemoryCluster
from nomadfn.adapters.warm_parent import WarmParent
from nomadfn.ports import ClusterEvent, ContainerEnded, Placement


class MemoryWorld:
    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Watched]:
        watched = Watched(MemoryCluster(capacity=4))
        await watched.cluster.open(watched.listen)
        yield watched
        await watched.cluster.close()

    def placement(self, container: str, index: int = 0) -> Placement:
        return Placement(container, "ap-1/f", index, {})


class LocalWorld:
    """Containers that wait for a control service which takes their connection and says nothing."""

    def __init__(self, listener: socket.socket) -> None:
        self.url = f"ws://127.0.0.1:{listener.getsockname()[1]}/v1/connect"
        self.parent = WarmParent.launch()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Watched]:
        watched = Watched(LocalCluster(self.parent, 4))
        await watched.cluster.open(watched.listen)
        try:
            yield watched
        finally:
            await watched.cluster.close()

    def placement(self, container: str, index: int = 0) -> Placement:
        env = {"NOMADFN_DATA_URL": self.url, "NOMADFN_TOKEN": "nf_test", "NOMADFN_CONTAINER_ID": container}
        return Placement(container, "ap-1/f", index, env)


WORLDS: dict[str, Callable[[socket.socket], ClusterWorld]] = {
    "memory": lambda listener: MemoryWorld(),
    "local": LocalWorld,
}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[ClusterWorld]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield WORLDS[request.param](listener)


class TestCluster(ClusterContract):
    pass


def test_a_memory_cluster_tells_what_it_is_told_to() -> None:
    async def scenario() -> None:
        cluster = MemoryCluster(answers=False)
        events: list[ClusterEvent] = []
        await cluster.open(events.append)
        placement = Placement("ct-1", "ap-1/f", 0, {})
        cluster.start(placement)
        cluster.stop("ct-1", 5.0)
        assert cluster.starts == [placement]
        assert cluster.stops == [("ct-1", 5.0)]
        assert list(cluster.running) == ["ct-1"]
        lost = ContainerEnded("ct-1", "killed by SIGKILL", "last words")
        cluster.emit(lost)
        assert events == []
        await asyncio.sleep(0)
        assert events == [lost]
        assert not cluster.running
        await cluster.close()

    asyncio.run(scenario())
