"""One test's cluster: a name of its own on a real Nomad and a real Consul, its control services, its programs."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from consul_server import ConsulServer
from nomad_double.server import NomadDouble
from real_nomad import NomadAgents, RealNomad
from world import NOMADFN, Running, World, eventually

from nomadfn.adapters.nomad_api import NomadApi
from nomadfn.exception import Error
from nomadfn.profiles import load_profile
from nomadfn.sdk import leader

START_S = 60.0
ON_DOUBLE: dict[str, Any] = {"agent_args": ["-m", "nomadfn_agent"], "workload_identity": False}
"""The double fetches no artifacts and signs nothing."""


class ClusterWorld(World):
    """A `World` whose commands speak to a cluster."""

    def __init__(
        self, folder: Path, nomad: RealNomad | NomadAgents | NomadDouble, consul: ConsulServer, job: dict[str, Any]
    ) -> None:
        super().__init__(folder)
        self.nomad = nomad
        self.consul = consul
        self.name = f"t{secrets.token_hex(4)}"
        self.toml = folder / "nomadfn.toml"
        self.env |= {
            "NOMADFN_CONFIG": str(self.toml),
            "NOMADFN_PROFILE": "test",
            "NOMADFN_TOKEN": f"nf_{secrets.token_urlsafe(32)}",
            "CONSUL_HTTP_TOKEN": consul.token,
        }
        self.job = job
        self.store_blobs_in(str(folder / "blobs"))
        self.controls: list[Running] = []

    def store_blobs_in(self, blobs: str) -> None:
        """Before a control service is started."""
        self.blobs = blobs
        self.configure(self.job)

    def configure(self, job: dict[str, Any]) -> None:
        values = {"driver": "raw_exec", "python": sys.executable, "cpu_cores": 0.01, "memory_mib": 32}
        values |= {"kill_timeout_s": 3, "environments": self.env["NOMADFN_ENVIRONMENTS"], **job}
        lines = [
            "[profiles.test]",
            f'nomad = "{self.nomad.address.url}"',
            f'consul = "{self.consul.address}"',
            f'cluster = "{self.name}"',
            f'blobs = "{self.blobs}"',
            "[profiles.test.job]",
            *(f"{key} = {json.dumps(value)}" for key, value in values.items()),
        ]
        self.toml.write_text("\n".join(lines) + "\n")

    def start_control(self) -> Running:
        """One more control service; the first one leads, the others stand by."""
        control = self.start(NOMADFN, "control")
        self.controls.append(control)
        return control

    def leader(self) -> leader.Leader | None:
        return leader.find_leader(load_profile("test", self.env), self.env)

    def led(self) -> leader.Leader:
        """Wait until a control service leads and serves."""
        eventually(lambda: self.leader() is not None or self._all_ended(), "a leader", START_S)
        found = self.leader()
        assert found is not None, "\n".join(map(str, self.controls))
        return found

    def _all_ended(self) -> bool:
        return all(one.ended for one in self.controls)

    def reached_at(self) -> tuple[str, str]:
        return self.led().http_url, self.env["NOMADFN_TOKEN"]

    def leading(self) -> Running:
        """The control service that leads."""
        url = self.led().http_url
        return next(one for one in self.controls if not one.ended and f"leads at {url}" in one.out)

    def api(self) -> NomadApi:
        return NomadApi(self.nomad.address)

    def count(self) -> int:
        """Containers that Nomad is asked for."""
        api = self.api()
        try:
            return sum(sum((api.counts(job["ID"]) or {}).values()) for job in api.jobs(f"{self.name}-fn-"))
        finally:
            api.close()

    def story(self) -> str:
        """What everything of this test has printed: pytest shows it when the test fails."""
        told = [str(one) for one in self._running]
        api = self.api()
        for one in api.allocations(f"{self.name}-"):
            try:
                told.append(f"{one['Name']} {one['ClientStatus']}\n{api.log_tail(one['ID'], 'agent', 'stderr', 8192)}")
            except Error as error:
                told.append(f"{one['Name']} {one['ClientStatus']}: {error}")
        api.close()
        return "\n\n".join(told)

    def close(self) -> None:
        print(self.story())
        for control in self.controls:
            control.process.terminate()
        api = self.api()
        try:
            for control in self.controls:
                control.wait()
            for job in api.jobs(self.name):
                api.deregister(job["ID"])
            if not isinstance(self.nomad, NomadDouble):  # The double ends what it has started when it is closed.
                eventually(lambda: not self._live(api), "all allocations have ended")
        finally:
            api.close()
            super().close()

    def _live(self, api: NomadApi) -> list[str]:
        found = api.allocations(f"{self.name}-")
        return [one["Name"] for one in found if one["ClientStatus"] in ("pending", "running")]


@contextmanager
def made_in(
    folder: Path, nomad: RealNomad | NomadAgents | NomadDouble, consul: ConsulServer, job: dict[str, Any] | None = None
) -> Iterator[ClusterWorld]:
    world = ClusterWorld(folder, nomad, consul, job or {})
    try:
        yield world
    finally:
        world.close()


@contextmanager
def made_on_double(folder: Path, consul: ConsulServer, job: dict[str, Any] | None = None) -> Iterator[ClusterWorld]:
    """On a double of Nomad of its own."""
    (folder / "double").mkdir()
    with (
        closing(NomadDouble(folder / "double")) as double,
        made_in(folder, double, consul, ON_DOUBLE | (job or {})) as made,
    ):
        yield made
