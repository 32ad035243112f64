"""What stands between the agents that join a control service and the `NomadCluster` that they belong to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import requests
from nomadfn_agent.wire import Join, SupervisorFrame

from nomadfn.exception import ServiceError

from .nomad_api import TIMEOUT_S, NomadAddress, _NamedServer
from .nomad_cluster import NomadCluster
from .nomad_rooms import AgentHello, Seat, Send

KEYS_PATH = "/.well-known/jwks.json"


class AgentSeat:
    """A seat, and which container the cluster has given to it."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat

    @property
    def containers(self) -> list[str]:
        alloc = self._seat.alloc
        room = self._seat.job.rooms.get(alloc.index)
        return [room.container] if room is not None and room.alloc == alloc.id and room.container else []

    def on_frame(self, frame: SupervisorFrame) -> None:
        self._seat.on_frame(frame)

    def closed(self) -> None:
        self._seat.closed()


def door(cluster: NomadCluster) -> Callable[[Join, Send], Awaitable[AgentSeat]]:
    """Where `control.agents` has agents seated."""

    async def attach(join: Join, send: Send) -> AgentSeat:
        hello = AgentHello(join.job, join.alloc, join.lane, join.position, tuple(join.containers))
        return AgentSeat(await cluster.attach(hello, send))

    return attach


def fetch_keys(address: NomadAddress) -> dict[str, Any]:
    """The public keys of Nomad's workload identities. Blocks; raises `ServiceError`."""
    try:
        with requests.Session() as session:
            if address.server_name:
                session.mount("https://", _NamedServer(address.server_name))
            response = session.get(
                address.url + KEYS_PATH,
                headers={"X-Nomad-Token": address.token} if address.token else {},
                verify=not address.skip_verify and (address.ca_path or True),
                cert=(address.client_cert, address.client_key) if address.client_cert else None,
                timeout=TIMEOUT_S,
            )
            response.raise_for_status()
            keys = response.json()
    except (requests.RequestException, ValueError) as error:
        raise ServiceError(
            f"Nomad at {address.url} does not give its public keys ({error}); check NOMAD_ADDR, and that it is 1.7 or "
            f"newer, or have agents join with tokens: workload_identity = false"
        ) from None
    if not isinstance(keys, dict):
        raise ServiceError(f"Nomad at {address.url} gives something else than its public keys; check NOMAD_ADDR")
    return keys
