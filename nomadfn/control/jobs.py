"""What can be asked about the Nomad jobs of functions, before they are deployed and after."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgspec
from nomadfn_agent import wire

from nomadfn import ports
from nomadfn.adapters import jobspec, nomad_plan
from nomadfn.adapters.jobspec import JobSettings
from nomadfn.adapters.nomad_api import NomadApi
from nomadfn.adapters.nomad_cluster import NomadCluster
from nomadfn.control.containers import needs_for
from nomadfn.control.operations import Operations
from nomadfn.control.tokens import Identity


class Jobs:
    """Rendered with what `deploy` uses, so what is shown here is what is registered."""

    def __init__(self, api: NomadApi, settings: JobSettings, cluster: NomadCluster | None = None) -> None:
        self._api = api
        self._settings = settings
        self._cluster = cluster

    def add_to(self, operations: Operations) -> None:
        operations.add("app.render", self._asked(self.render))
        operations.add("app.plan", self._asked(self.plan))
        operations.add("app.fit", self._asked(self.fit))
        operations.add("app.register", self._register)

    def _asked(self, answer: Callable[[ports.Needs], dict[str, Any]]) -> Any:
        """An operation that answers for each function of the app in `spec`."""

        async def operation(body: dict[str, Any], identity: Identity, session: str) -> Any:
            identity.require_owner()
            spec = msgspec.convert(body["spec"], wire.AppSpec)
            found = {}
            for function in spec.functions:
                found[function.name] = await asyncio.to_thread(answer, needs_for(spec.name, function))
            return {"functions": found}

        return operation

    async def _register(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        """Have the jobs of a deployed app in Nomad, before anybody calls it; says what room there is for each."""
        identity.require_owner()
        spec = msgspec.convert(body["spec"], wire.AppSpec)
        assert self._cluster is not None
        found = {}
        for function in spec.functions:
            needs = needs_for(spec.name, function)
            found[function.name] = {
                "job_id": await self._cluster.register(needs),
                **await asyncio.to_thread(self.fit, needs),
            }
        return {"functions": found}

    def render(self, needs: ports.Needs) -> dict[str, Any]:
        """The job spec, its variables, and the job that Nomad's API takes. Blocks."""
        rendered = jobspec.render(needs, self._settings)
        job = self._api.parse(rendered.hcl, rendered.variables)
        variables = json.loads(rendered.variables)
        return {"job_id": rendered.job_id, "hcl": rendered.hcl, "variables": variables, "job": job}

    def plan(self, needs: ports.Needs) -> dict[str, Any]:
        """Nomad's diff against what is registered. Blocks."""
        return {"diff": nomad_plan.plan(self._api, self._settings, needs)}

    def fit(self, needs: ports.Needs) -> dict[str, Any]:
        """How many containers have room now, where, and what is missing for more. Blocks."""
        report = nomad_plan.capacity_report(self._api, self._settings, needs)
        return {**asdict(report), "text": str(report)}
