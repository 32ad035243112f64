"""Containers as allocations of Nomad: the `Cluster` port on a Nomad cluster.

    start      the container takes a room of its function's job (`nomad_rooms`); the counts follow
    attach     the agent of an allocation joins, and is told to start the container that waits in its room
    observe    allocations and evaluations, by Nomad's event stream and by polling beside it
    stop       the agent ends the container; its room is kept a moment, then the lane's count is lowered

What a container is started with (its token, the function's environment) goes to the agent when it joins, never into
the job. All state lives on the event loop; Nomad is asked on threads. What Nomad refuses is tried again, with the
refusal as the reason why containers wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from nomadfn_agent.wire import Ended, Log, Preparing, Recall, Start, Started, Stop, SupervisorFrame, Withdrawn

from nomadfn.core import lanes
from nomadfn.exception import Error, InvalidError, NotFoundError, PermissionDeniedError
from nomadfn.ports import (
    ClusterEvent,
    ContainerEnded,
    ContainerFound,
    ContainerLeaving,
    ContainerOutput,
    ContainerPreparing,
    ContainerStarted,
    ContainerWithdrawn,
    Needs,
    Placement,
    PlacementBlocked,
)

from . import jobspec, nomad_words
from .jobspec import JobSettings
from .local import describe_exit
from .nomad_api import NomadApi
from .nomad_keeper import Keeper
from .nomad_rooms import AgentHello, Alloc, Job, Room, Seat, Send
from .nomad_watch import Watch

AWAY_S = 10.0
"""An agent that is away for longer is lost, and its container with it."""
REJOIN_S = 15.0
"""How long allocations of an earlier leader are kept for their agents to join."""
CLOSE_S = 60.0
"""The longest that `close` waits for Nomad to end everything."""
TAIL_BYTES, TAIL_LINES, TAIL_WAIT_S = 4096, 20, 2.0
NODES_AGE_S = 5.0
THREADS = 6
Json = dict[str, Any]
Result = TypeVar("Result")


class NomadCluster:
    """The `Cluster` port. `join_token` gives the token for a job's agents where Nomad signs no identities."""

    def __init__(self, api: NomadApi, settings: JobSettings, join_token: Callable[[str], str] | None = None) -> None:
        if settings.workload_identity == (join_token is not None):
            raise InvalidError("agents join with a workload identity or else with a join_token; give exactly one")
        if api.address.namespace != settings.namespace:
            raise InvalidError(
                f"jobs are to be in the namespace {settings.namespace}, but Nomad is asked in {api.address.namespace}; "
                "set NOMAD_NAMESPACE to the same"
            )
        self._api = api
        self._settings = settings
        self._join_token = join_token
        self.still_leads: Callable[[], bool] = lambda: True
        """Asked, on a thread, before a count is lowered or a job removed."""
        self._listener: Callable[[ClusterEvent], None] = lambda event: None
        self._jobs: dict[str, Job] = {}
        self._places: dict[str, tuple[Job, Room]] = {}
        """Where each container is, or shall be."""
        self._reasons: dict[str, str] = {}
        self._keepers: dict[str, Keeper] = {}
        self._blocked: dict[str, set[str]] = {}
        """By job, the functions that have been told why they wait."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="nomad")
        self._watch = Watch(api, jobspec.prefix(settings), self)
        self._changed = asyncio.Event()
        self._index = 0
        """The highest index of Nomad's state that was seen in an allocation."""
        self._nodes: tuple[float, list[nomad_words.Node] | None] = (float("-inf"), None)
        self._left = False
        self._found = False

    @property
    def capacity(self) -> int | None:
        return self._settings.ceiling

    @property
    def capacity_reason(self) -> str:
        return f"the ceiling of {self._settings.ceiling:,} containers that is set for this cluster"

    async def open(self, listener: Callable[[ClusterEvent], None]) -> None:
        """Find what an earlier leader has left, if `find` has not, and begin to watch. Raises nomadfn's errors."""
        self._listener = listener
        if not self._found:
            await self.find()
        await self._watch.open()

    async def find(self) -> None:
        """Find the jobs that an earlier leader has left; may be done before there is a listener."""
        self._found = True
        self._loop = asyncio.get_running_loop()
        found = []
        for stub in await self.ask(self._api.jobs, jobspec.prefix(self._settings)):
            meta = stub.get("Meta") or {}
            if meta.get("nomadfn") == self._settings.cluster and not stub.get("Stop"):
                found.append(self._find(stub["ID"], meta))
        await asyncio.gather(*found)

    async def _find(self, job_id: str, meta: dict[str, str]) -> None:
        job = Job(job_id, meta["nomadfn_app"], meta["nomadfn_function"], int(meta["nomadfn_lanes"]))
        keeper = self._add(job)
        await keeper.read_counts()
        until = self._loop.time() + REJOIN_S
        for lane, count in enumerate(job.counts):
            for position in range(count):
                index = lanes.index_at(lane, position, job.lanes)
                job.rooms[index] = Room(index, kept_until=until)
        self._loop.call_later(REJOIN_S, self._give_up, job)
        job.wake.set()

    def _give_up(self, job: Job) -> None:
        """Agents of an earlier leader that look for it where it is no more cannot be reached: others take over."""
        if not job.current and all(alloc.seat is None for alloc in job.allocs.values()):
            job.abandoned = True
            job.wake.set()

    async def register(self, needs: Needs) -> str:
        """Have the job of a function registered, without containers; returns its id. Raises nomadfn's errors."""
        job = self._job(needs)
        await self._keepers[job.id].register()
        return job.id

    def retire(self, app: str, function: str = "") -> None:
        """The jobs of an app, or of one function of it, go once their last container has ended."""
        for job in self._jobs.values():
            if job.app == app and function in ("", job.function):
                job.retired = True
                job.wake.set()

    def note(self, function: str, reason: str) -> None:
        """Why the function's containers become more or less: it stands in the message of the next scaling."""
        self._reasons[function] = reason

    def check(self, needs: Needs) -> None:
        jobspec.render(needs, self._settings)

    def start(self, placement: Placement) -> None:
        if placement.needs is None:
            raise InvalidError(f"container {placement.container} cannot be placed: its placement has no needs")
        job = self._job(placement.needs)
        room = job.room_for(placement.index)
        room.take(placement, self._index)
        job.reason = self._reasons.get(placement.function, job.reason)
        self._places[placement.container] = (job, room)
        self._hand_out(job, room)
        job.wake.set()

    def stop(self, container: str, grace_s: float) -> None:
        place = self._places.get(container)
        if place is None:
            return
        job, room = place
        if room.placement is not None:
            job.reason = self._reasons.get(room.placement.function, job.reason)
        room.stopping = True
        alloc = job.allocs.get(room.alloc)
        if not room.alloc:
            self._end(job, room, "stopped", "")
        elif alloc is not None and alloc.seat is not None:
            alloc.seat.send(Stop(container, grace_s))

    def recall(self, container: str, up_to: int) -> None:
        place = self._places.get(container)
        alloc = None if place is None else place[0].allocs.get(place[1].alloc)
        if alloc is not None and alloc.seat is not None:
            alloc.seat.send(Recall(container, up_to))

    def may_stop(self, indexes: frozenset[int], idle: frozenset[int]) -> frozenset[int]:
        """By the usual number of lanes; a function with fewer of them asks `core.lanes.may_stop` itself."""
        return lanes.may_stop(indexes, idle)

    def container_at(self, job_id: str, lane: int, position: int) -> str | None:
        """The container of an allocation, by its job, lane and position."""
        job = self._jobs.get(job_id)
        room = job.rooms.get(lanes.index_at(lane, position, job.lanes)) if job is not None else None
        return room.container or None if room is not None else None

    def place_of(self, container: str) -> tuple[str, int, int, str] | None:
        """Job, lane, position and allocation of a container; the allocation is empty while it waits for one."""
        place = self._places.get(container)
        if place is None:
            return None
        job, room = place
        return job.id, *lanes.place(room.index, job.lanes), room.alloc

    @property
    def rejoining(self) -> int:
        """How many running allocations there are whose agent has not joined yet."""
        return sum(alloc.seat is None for job in self._jobs.values() for alloc in job.allocs.values() if alloc.serves)

    async def attach(self, hello: AgentHello, send: Send) -> Seat:
        """An agent has joined; `send` gives it frames. The caller has checked its identity.

        Raises `NotFoundError` for an allocation that is none of this cluster's, and `PermissionDeniedError` for one
        that is at another place than the agent says.
        """
        job = self._jobs.get(hello.job)
        if job is None or hello.alloc not in job.allocs:
            record = await self.ask(self._api.allocation, hello.alloc)
            if record is not None:
                self.observe(record)
            job = self._jobs.get(hello.job)
        alloc = job.allocs.get(hello.alloc) if job is not None else None
        if job is None or alloc is None:
            raise NotFoundError(f"allocation {hello.alloc} is none of this cluster's, or it has ended; the agent ends")
        if alloc.index != lanes.index_at(hello.lane, hello.position, job.lanes):
            raise PermissionDeniedError(f"allocation {hello.alloc} is not at lane {hello.lane}, {hello.position}")
        alloc.seat = Seat(self, job, alloc, send)
        if alloc.away is not None:
            alloc.away.cancel()
        alloc.away, alloc.lost = None, False
        self._compare(job, alloc, hello.containers)
        return alloc.seat

    def _compare(self, job: Job, alloc: Alloc, containers: tuple[str, ...]) -> None:
        """What the agent runs, against what its room shall hold."""
        room = job.rooms.setdefault(alloc.index, Room(alloc.index))
        assert alloc.seat is not None
        for container in containers:
            if container == room.container and room.stopping:
                alloc.seat.send(Stop(container, 0.0))
            elif not room.container and container not in self._places:
                room.container, room.alloc, room.started = container, alloc.id, True
                self._places[container] = (job, room)
                self._tell(ContainerFound(container, job.app, job.function, alloc.index))
            elif container != room.container:
                alloc.seat.send(Stop(container, 0.0))
        if room.alloc == alloc.id and room.container not in containers:
            self._end(job, room, "stopped" if room.stopping else "its agent was started anew", "")
        self._hand_out(job, room)

    def _hand_out(self, job: Job, room: Room) -> None:
        alloc = job.serving(room.index)
        if room.placement is not None and not room.alloc and alloc is not None and alloc.seat is not None:
            room.alloc = alloc.id
            alloc.seat.send(Start(room.container, room.placement.env, room.placement.environment))

    def on_frame(self, seat: Seat, frame: SupervisorFrame) -> None:
        place = self._places.get(frame.container)
        if place is None or place[1].alloc != seat.alloc.id:
            return
        job, room = place
        match frame:
            case Started(container, pid):
                room.started = True
                self._tell(ContainerStarted(container, pid))
            case Ended(_, exit_code, tail):
                what = "stopped" if room.stopping else frame.what or describe_exit(exit_code)
                self._end(job, room, what, tail)
            case Preparing(container, text):
                self._tell(ContainerPreparing(container, text))
            case Log(container, stream, text):
                self._tell(ContainerOutput(container, stream, text))
            case Withdrawn():
                self._tell(ContainerWithdrawn(*msgspec.structs.astuple(frame)))

    def on_closed(self, seat: Seat) -> None:
        alloc = seat.alloc
        if alloc.seat is seat:
            alloc.seat = None
            if alloc.id not in seat.job.allocs or self._left:
                return
            if nomad_words.has_ended(alloc.record):
                self.observe(alloc.record)  # Nomad has lost its node, and now it is out of our sight, too.
            else:
                alloc.away = self._loop.call_later(AWAY_S, self._on_away, seat.job, alloc)

    def _on_away(self, job: Job, alloc: Alloc) -> None:
        alloc.lost = True
        room = job.rooms.get(alloc.index)
        if room is not None and room.alloc == alloc.id:
            self._end(job, room, f"its agent has been away for {AWAY_S:.0f} s", "")

    def observe(self, record: Json) -> None:
        """What Nomad says of one allocation, newer or older than what is known."""
        job = self._jobs.get(record["JobID"])
        if job is None:
            return
        alloc = job.allocs.get(record["ID"])
        if alloc is not None and record["ModifyIndex"] < alloc.record["ModifyIndex"]:
            return
        before = 0 if alloc is None else nomad_words.restarts(alloc.record)
        self._index = max(self._index, record["ModifyIndex"])
        index = lanes.index_at(nomad_words.lane_of(record), nomad_words.name_index(record), job.lanes)
        if alloc is None:
            alloc = Alloc(record["ID"], index, record)
        alloc.record = record
        room = job.rooms.get(index)
        if job.has_lost(alloc):
            self._forget(job, alloc)
        else:
            job.allocs[alloc.id] = alloc
        if room is not None and room.container:
            self._follow(job, room, alloc, before)
        self._clear_block(job)
        self._changed.set()

    def _forget(self, job: Job, alloc: Alloc) -> None:
        job.allocs.pop(alloc.id, None)
        if alloc.away is not None:
            alloc.away.cancel()
        job.wake.set()

    def _follow(self, job: Job, room: Room, alloc: Alloc, restarts_before: int) -> None:
        """What the news of an allocation means for the container in its room."""
        record = alloc.record
        ended = job.has_lost(alloc)
        failed = ended and record["ClientStatus"] != "complete" and not nomad_words.is_leaving(record)
        again = nomad_words.restarts(record) > restarts_before
        waits = not room.alloc and job.serving(room.index) in (None, alloc) and record["ModifyIndex"] > room.since_index
        if (room.alloc == alloc.id and (ended or again)) or (waits and (failed or again)):
            memory = job.rendered.needs.memory_mib if job.rendered is not None else None
            words = "stopped" if room.stopping else nomad_words.describe_end(record, memory)
            self._end_with_tail(job, room, words, alloc.id)
        elif room.alloc == alloc.id and not (alloc.doomed or room.leaving or not nomad_words.is_leaving(record)):
            room.leaving = True
            self._tell(ContainerLeaving(room.container, nomad_words.is_leaving(record)))

    def _end(self, job: Job, room: Room, what: str, tail: str) -> None:
        container = self._vacate(job, room)
        self._tell(ContainerEnded(container, what, tail))

    def _end_with_tail(self, job: Job, room: Room, what: str, alloc_id: str) -> None:
        container = self._vacate(job, room)

        async def end() -> None:
            tail = ""
            if what != "stopped":
                try:
                    read = self.ask(self._api.log_tail, alloc_id, nomad_words.TASK, "stderr", TAIL_BYTES)
                    tail = "\n".join((await asyncio.wait_for(read, TAIL_WAIT_S)).splitlines()[-TAIL_LINES:])
                except (Error, TimeoutError):
                    pass  # The words of Nomad are told without it.
            self._tell(ContainerEnded(container, what, tail))

        self._spawn(end())

    def _vacate(self, job: Job, room: Room) -> str:
        container = room.container
        self._places.pop(container, None)
        alloc = job.allocs.get(room.alloc)
        if alloc is not None and nomad_words.has_ended(alloc.record):
            self._forget(job, alloc)
        room.clear(self._loop.time())
        self._clear_block(job)
        job.wake.set()
        self._changed.set()
        return container

    def _job(self, needs: Needs) -> Job:
        """The job for these needs; other jobs of the same function have had their time."""
        rendered = jobspec.render(needs, self._settings)
        job = self._jobs.get(rendered.job_id)
        if job is None:
            job = Job(rendered.job_id, needs.app, needs.function, rendered.lanes)
            self._add(job)
        job.rendered, job.retired = rendered, False
        for other in self._jobs.values():
            if other is not job and (other.app, other.function) == (needs.app, needs.function):
                other.retired = True
                other.wake.set()
        return job

    def _add(self, job: Job) -> Keeper:
        self._jobs[job.id] = job
        leads, changed = lambda: self.still_leads(), self._changed.set
        keeper = Keeper(job, self._api, self.ask, self._join_token, self._block, changed, self._gone, leads)
        self._keepers[job.id] = keeper
        return keeper

    def jobs(self) -> list[Job]:
        return list(self._jobs.values())

    async def recheck(self, job: Job) -> None:
        """Look at the counts, which others may have changed, and at why containers wait."""
        await self._keepers[job.id].recheck()
        if any(job.waiting()):
            for evaluation in sorted(await self.ask(self._api.evaluations, job.id), key=lambda one: one["ModifyIndex"]):
                await self._on_evaluation(evaluation)

    def on_evaluation_event(self, evaluation: Json) -> None:
        if evaluation.get("FailedTGAllocs") and evaluation["JobID"] in self._jobs and not self._left:
            self._spawn(self._on_evaluation(evaluation))

    async def _on_evaluation(self, evaluation: Json) -> None:
        """Tell why Nomad has found no place for some of a job's containers."""
        job = self._jobs.get(evaluation["JobID"])
        failed = evaluation.get("FailedTGAllocs")
        if job is None or not failed or job.rendered is None:
            return
        waiting = [f"lane-{room.index % job.lanes}" for room in job.waiting()]
        metrics = next((failed[group] for group in waiting if group in failed), None)
        if metrics is not None:
            nodes = await self._read_nodes()
            needs = job.rendered.needs
            self._block(job, nomad_words.explain_placement(needs, self._settings.driver, metrics, nodes))

    async def _read_nodes(self) -> list[nomad_words.Node] | None:
        """What nodes there are, no older than some seconds; None where the token may not read them."""
        read_at, known = self._nodes
        if self._loop.time() - read_at > NODES_AGE_S:
            try:
                known = nomad_words.read_nodes(await self.ask(self._api.nodes))
            except Error:
                known = None
            self._nodes = (self._loop.time(), known)
        return known

    def _block(self, job: Job, why: str) -> None:
        waiting = {room.placement.function for room in job.waiting() if room.placement is not None}
        if waiting and why != job.why:
            job.why = why
            for function in sorted(waiting):
                self._tell(PlacementBlocked(function, why))
            self._blocked[job.id] = self._blocked.get(job.id, set()) | waiting

    def _clear_block(self, job: Job) -> None:
        if job.why and not any(job.waiting()):
            job.why = ""
            for function in sorted(self._blocked.pop(job.id, ())):
                self._tell(PlacementBlocked(function, ""))

    def _gone(self, job: Job) -> None:
        del self._jobs[job.id], self._keepers[job.id]
        self._changed.set()

    def _tell(self, event: ClusterEvent) -> None:
        self._loop.call_soon(self._listener, event)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def ask(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """Make a call of `NomadApi` on a thread."""
        return await self._loop.run_in_executor(self._threads, call, *arguments)

    async def close(self) -> None:
        """End every container, wait until Nomad says so, and stop watching. More than once is no error."""
        if self._left:
            return
        for container in list(self._places):
            self.stop(container, 0.0)
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._until(lambda: not self._places)
                for job in self._jobs.values():
                    job.keep_none()
                    job.wake.set()
                await self._until(lambda: not any(job.allocs or any(job.counts) for job in self._jobs.values()))
        except TimeoutError:
            for container, (job, room) in list(self._places.items()):
                self._end(job, room, f"Nomad did not end {container} within {CLOSE_S:.0f} s", "")
        await self.leave()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    async def leave(self) -> None:
        """Stop watching and leave every container as it is, for the next leader. More than once is no error."""
        if self._left:
            return
        self._left = True
        await self._watch.close()
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._tasks, *(keeper.task for keeper in self._keepers.values()), return_exceptions=True)
        for job in self._jobs.values():
            for alloc in job.allocs.values():
                if alloc.away is not None:
                    alloc.away.cancel()
        self._threads.shutdown(wait=False)
        self._api.close()
        await asyncio.sleep(0)
