"""The agents of a cluster: each joins with its identity, is given its seat, and tells what its containers do.

An agent's credential is no token for anything else: a connection that came with one can only `Join`, and only as the
allocation, or the job, that the credential names.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from nomadfn_agent import wire

from nomadfn import ports
from nomadfn.control.join_tokens import PREFIX, AgentIdentity
from nomadfn.exception import AuthError, Error

if TYPE_CHECKING:
    from nomadfn.control.connections import Connection
    from nomadfn.control.service import Service


SILENT_S = 6.0
"""An agent that sends no ping for so long is cut off, or its machine has no power: its connection does not count."""


class Seat(Protocol):
    """The cluster's side of one agent."""

    @property
    def containers(self) -> list[str]:
        """Those that the cluster has given to this agent."""
        ...

    def on_frame(self, frame: wire.SupervisorFrame) -> None: ...

    def closed(self) -> None: ...


Attach = Callable[[wire.Join, Callable[[wire.Start | wire.Stop | wire.Recall], None]], Awaitable[Seat]]
"""Gives an agent its seat. Raises one of nomadfn's errors for an allocation that has none."""
Verify = Callable[[str], AgentIdentity]
"""Who holds a credential; may block. Raises `AuthError`."""


class Agents:
    """Every agent's connection. Nobody can join before `open`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._attach: Attach | None = None
        self._verify: Verify | None = None
        self._seats: dict[Connection, Seat] = {}
        self._by_alloc: dict[str, Connection] = {}
        self._joining: set[asyncio.Task[None]] = set()
        self._urls: list[str] = []

    @property
    def count(self) -> int:
        """Agents that are connected."""
        return len(self._seats)

    def open(self, attach: Attach, verify: Verify) -> None:
        """Take agents in from now on."""
        self._attach, self._verify = attach, verify

    def look_at(self, urls: list[str]) -> None:
        """Tell all agents, now and when they join, where control services are."""
        self._urls = urls
        for connection in self._seats:
            connection.send(self._joined())

    def _joined(self) -> wire.Joined:
        return wire.Joined(self._service.core.state.epoch, self._urls)

    def expects(self, bearer: str) -> bool:
        """Whether this looks like an agent's credential; it is looked at once the agent joins."""
        return self._verify is not None and (bearer.startswith(PREFIX) or bearer.count(".") == 2)

    def on_join(self, connection: Connection, join: wire.Join) -> None:
        task = asyncio.create_task(self._join(connection, join))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _join(self, connection: Connection, join: wire.Join) -> None:
        try:
            seat = await self._admit(connection, join)
        except Error as error:
            self._service.log(f"the agent of allocation {join.alloc} was not taken in: {error}")
            connection.close(str(error))
            return
        if connection.closed:
            seat.closed()
            return
        former = self._by_alloc.get(join.alloc)
        self._seats[connection], self._by_alloc[join.alloc] = seat, connection
        if former is not None:
            former.close("the agent has joined anew")
        connection.send(self._joined())
        self._look_after(connection)

    def _look_after(self, connection: Connection) -> None:
        """Nobody closes the connection of a machine that is gone."""
        if connection.closed:
            return
        if time.monotonic() - connection.heard_at > SILENT_S:
            self._service.log(f"the agent of allocation {connection.id} has said nothing for {SILENT_S:.0f} s")
            connection.abandon()
        else:
            self._service.loop.call_later(SILENT_S / 2, self._look_after, connection)

    async def _admit(self, connection: Connection, join: wire.Join) -> Seat:
        assert self._attach is not None
        assert self._verify is not None
        if join.version != wire.VERSION:
            raise AuthError(
                f"the agent speaks version {join.version} of the protocol, not {wire.VERSION}; deploy again"
            )
        identity = await asyncio.to_thread(self._verify, connection.bearer)
        if join.job != identity.job or identity.alloc not in ("", join.alloc):
            raise AuthError("an agent can only join as its own allocation")
        return await self._attach(join, connection.send)

    def on_frame(self, connection: Connection, frame: wire.AgentFrame) -> None:
        seat = self._seats.get(connection)
        if seat is None:
            connection.close("an agent waits until it is taken in")
        elif isinstance(frame, wire.Leaving):
            for container in seat.containers:
                self._service.containers.on_cluster_event(ports.ContainerLeaving(container, frame.what))
            self._service.poke()
        else:
            seat.on_frame(frame)

    def on_disconnect(self, connection: Connection) -> None:
        seat = self._seats.pop(connection, None)
        if seat is not None:
            if self._by_alloc.get(connection.id) is connection:
                del self._by_alloc[connection.id]
            seat.closed()

    def close(self, why: str) -> None:
        """Let all agents go; they look for the next leader."""
        for connection in list(self._seats):
            connection.close(why)
