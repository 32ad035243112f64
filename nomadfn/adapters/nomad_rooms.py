"""The rooms of a function's job: which container is in which, and what counts Nomad must be told.

A room is a place in the job: a lane and a position, where an allocation runs, or will. Its agent serves it. A
container takes a room; when the container is gone, the room stays for a moment, so that the next one (a new
revision, a replacement) finds an agent that is already there. No I/O here.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nomadfn_agent.wire import Recall, Start, Stop, SupervisorFrame

from nomadfn.core import lanes
from nomadfn.ports import Placement

from . import nomad_words
from .jobspec import Rendered

if TYPE_CHECKING:
    from .nomad_cluster import NomadCluster

Send = Callable[[Start | Stop | Recall], None]
EMPTY_S = 2.0
"""How long a room without a container is kept for the next one."""


@dataclass(frozen=True, slots=True)
class AgentHello:
    """What an agent says when it joins: its allocation, and the containers that it runs already."""

    job: str
    alloc: str
    lane: int
    position: int
    containers: tuple[str, ...] = ()


class Seat:
    """One agent's connection: what it says goes in here."""

    def __init__(self, cluster: NomadCluster, job: Job, alloc: Alloc, send: Send) -> None:
        self._cluster = cluster
        self.job = job
        self.alloc = alloc
        self.send = send

    def on_frame(self, frame: SupervisorFrame) -> None:
        self._cluster.on_frame(self, frame)

    def closed(self) -> None:
        """The connection has ended. The agent may join anew within `AWAY_S`."""
        self._cluster.on_closed(self)


@dataclass(eq=False, slots=True)
class Alloc:
    """One allocation: `record` is what Nomad last said of it, `seat` its agent's connection."""

    id: str
    index: int
    record: dict[str, Any]
    seat: Seat | None = None
    doomed: bool = False
    """The count was lowered below it: Nomad ends it."""
    away: asyncio.TimerHandle | None = None
    """Runs while its agent is away."""
    lost: bool = False
    """Its agent has been away for too long."""

    @property
    def serves(self) -> bool:
        return not self.doomed and not nomad_words.is_leaving(self.record)


@dataclass(eq=False, slots=True)
class Room:
    index: int
    container: str = ""
    placement: Placement | None = None
    alloc: str = ""
    """The allocation whose agent was given the container; empty while it waits for one."""
    started: bool = False
    stopping: bool = False
    leaving: bool = False
    since_index: int = 0
    """Nomad's index when the container took the room: what was known then is no news of it."""
    kept_until: float = -math.inf

    def take(self, placement: Placement, since_index: int) -> None:
        self.container, self.placement, self.alloc = placement.container, placement, ""
        self.started = self.stopping = self.leaving = False
        self.since_index = since_index

    def clear(self, now: float) -> None:
        self.container, self.placement, self.alloc = "", None, ""
        self.kept_until = now + EMPTY_S


@dataclass(eq=False, slots=True)
class Job:
    """One job: its rooms by index, its allocations by id, and the counts that Nomad was told last."""

    id: str
    app: str
    function: str
    lanes: int
    rendered: Rendered | None = None
    """None for a job of an earlier leader for which nothing was started since."""
    exists: bool = False
    """Nomad knows it."""
    current: bool = False
    """It was registered by this control service: the addresses in it are right."""
    abandoned: bool = False
    """Its allocations are of an earlier leader, and none of their agents has come."""
    retired: bool = False
    """No function needs it any more: it goes once it is empty."""
    counts: list[int] = field(default_factory=list)
    rooms: dict[int, Room] = field(default_factory=dict)
    allocs: dict[str, Alloc] = field(default_factory=dict)
    reason: str = ""
    """Why it is scaled, for the message."""
    why: str = ""
    """Why containers of it wait for a place."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the rooms have changed."""

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * self.lanes

    def room_for(self, index: int) -> Room:
        """The room of this index; where that is taken or its agent is lost, the first that is free."""
        for candidate in (index, *range(len(self.rooms) + 1)):
            room = self.rooms.setdefault(candidate, Room(candidate))
            alloc = self.serving(candidate)
            if not room.container and (alloc is None or not alloc.lost):
                return room
        return self.rooms.setdefault(max(self.rooms) + 1, Room(max(self.rooms) + 1))

    def serving(self, index: int) -> Alloc | None:
        """The allocation that a container in this room runs in: the newest that stays."""
        there = [alloc for alloc in self.allocs.values() if alloc.index == index and alloc.serves]
        return max(there, key=lambda alloc: alloc.record["CreateIndex"], default=None)

    def has_lost(self, alloc: Alloc) -> bool:
        """Whether an allocation is no more, and with it what it runs.

        Nomad gives allocations up when their node does not answer. What they run may well be alive: while the agent
        of one is connected, it goes on with what it has.
        """
        if not nomad_words.has_ended(alloc.record):
            return False
        room = self.rooms.get(alloc.index)
        is_used = room is not None and bool(room.container) and room.alloc == alloc.id
        return not (is_used and alloc.seat is not None and alloc.record["ClientStatus"] == "lost")

    def waiting(self) -> Iterator[Room]:
        """Rooms whose container waits, and where there is no allocation yet that could take it."""
        return (room for room in self.rooms.values() if room.container and self.serving(room.index) is None)

    def targets(self, now: float) -> tuple[int, ...]:
        """The count that each lane must have: a kept room ends no allocation, and needs none either."""
        needed = lanes.counts((index for index, room in self.rooms.items() if room.container), self.lanes)
        kept = lanes.counts((index for index, room in self.rooms.items() if room.kept_until > now), self.lanes)
        return tuple(max(one, min(two, count)) for one, two, count in zip(needed, kept, self.counts, strict=True))

    def is_over(self, index: int, lane: int, count: int) -> bool:
        """Whether Nomad ends this place when the lane gets this count."""
        where, position = lanes.place(index, self.lanes)
        return where == lane and position >= count

    def due_s(self, now: float) -> float | None:
        """In how many seconds the next room is kept no more; None if none is."""
        times = [room.kept_until - now for room in self.rooms.values() if not room.container and room.kept_until > now]
        return min(times, default=None)

    def tidy(self, now: float) -> None:
        """Forget rooms that nobody needs."""
        there = {alloc.index for alloc in self.allocs.values()}
        for index, room in list(self.rooms.items()):
            if not room.container and room.kept_until <= now and index not in there:
                del self.rooms[index]

    def keep_none(self) -> None:
        """No empty room is kept any longer."""
        for room in self.rooms.values():
            room.kept_until = -math.inf

    @property
    def registered(self) -> bool:
        """Whether it can be scaled. What runs is never replaced, though the addresses in it may be older."""
        return self.exists and (self.current or (any(self.counts) and not self.abandoned))

    @property
    def empty(self) -> bool:
        return not any(self.counts) and not any(room.container for room in self.rooms.values())
