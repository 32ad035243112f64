"""A Nomad, real or not, with what a test of the adapter needs around it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import nomad as nomad_client
from agent_door import Door
from contract_cluster import WAIT_S, Watched
from nomad_double.server import NomadDouble
from real_nomad import RealNomad

from nomadfn.adapters import jobspec
from nomadfn.adapters.jobspec import JobSettings
from nomadfn.adapters.nomad_api import NomadApi
from nomadfn.adapters.nomad_cluster import NomadCluster
from nomadfn.ports import ClusterEvent, Needs, Placement

AGENT = Path(__file__).with_name("tiny_agent.py")
NEEDS = Needs(app="an app", function="embed", cpu_cores=0.005, memory_mib=16)
Kind = TypeVar("Kind", bound=ClusterEvent)


class Scene(Watched):
    """An open cluster, what it has said, and the door that its agents come in by."""

    cluster: NomadCluster

    def __init__(self, cluster: NomadCluster, door: Door) -> None:
        super().__init__(cluster)
        self.door = door

    async def until_true(self, holds: Callable[[], bool]) -> None:
        """Wait for something that no event tells of."""
        async with asyncio.timeout(WAIT_S):
            while not holds():
                await asyncio.sleep(0.02)

    async def until_said(self, kind: type[Kind], holds: Callable[[Kind], bool] = lambda event: True) -> Kind:
        await self.until_true(lambda: any(isinstance(one, kind) and holds(one) for one in self.events))
        return next(one for one in self.events if isinstance(one, kind) and holds(one))


def join_token_of(job_id: str) -> str:
    return f"token of {job_id}"


class NomadWorld:
    def __init__(self, nomad: RealNomad | NomadDouble, name: str) -> None:
        self.nomad = nomad
        self.name = name
        self.api = NomadApi(nomad.address)
        self.signs_identities = self.api.version() >= (1, 7, 0)
        self._client = nomad_client.Nomad(address=nomad.address.url)

    @property
    def double(self) -> NomadDouble | None:
        return self.nomad if isinstance(self.nomad, NomadDouble) else None

    def settings(self, door: Door | None = None, **changes: object) -> JobSettings:
        values: dict[str, object] = {
            "cluster": self.name,
            "driver": "raw_exec",
            "image": "",
            "python": sys.executable,
            "agent_args": (str(AGENT),),
            "control_urls": (door.url,) if door is not None else ("tcp://127.0.0.1:9",),
            "workload_identity": self.signs_identities,
            "kill_timeout_s": 5,
        }
        return JobSettings(**{**values, **changes})  # type: ignore[arg-type]

    @contextlib.asynccontextmanager
    async def opened(self, door: Door | None = None, **changes: object) -> AsyncIterator[Scene]:
        """A cluster without containers, closed at the end, and its door with it, unless that was given."""
        own = door is None
        if door is None:
            door = Door()
            await door.open()
        settings = self.settings(door, **changes)
        join_token = None if settings.workload_identity else join_token_of
        cluster = NomadCluster(NomadApi(self.nomad.address), settings, join_token)
        scene = Scene(cluster, door)
        door.cluster = cluster
        try:
            await cluster.open(scene.listen)
            yield scene
        finally:
            await cluster.close()
            if own:
                await door.close()

    def placement(self, container: str, index: int = 0, needs: Needs = NEEDS, **env: str) -> Placement:
        return Placement(container, "ap-1/embed", index, env, needs)

    def job_text(self, job_id: str) -> str:
        """The job as it stands in Nomad, for everybody who may read it."""
        return json.dumps(self._client.job.get_job(job_id))

    def drain(self) -> None:
        if self.double is not None:
            self.double.state.drain(self.double.state.nodes[0])
        else:
            spec = {"Deadline": 10_000_000_000, "IgnoreSystemJobs": True}
            self._client.node.drain_node_with_spec(self._node(), spec)

    def undrain(self) -> None:
        if self.double is not None:
            self.double.state.undrain(self.double.state.nodes[0])
        else:
            self._client.node.drain_node_with_spec(self._node(), None, mark_eligible=True)

    def _node(self) -> str:
        [node] = self.api.nodes()
        return str(node["ID"])

    def clean_up(self) -> None:
        for job in self.api.jobs(jobspec.prefix(self.settings())):
            self.api.deregister(job["ID"])
        self.api.close()
