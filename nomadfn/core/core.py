"""The core as the control service uses it: commands in, effects and records out.

    every event → its method, which changes the state at once
    settle()    → dispatches, scales, and returns the effects to carry out
    records     → what the journal has to hold; effects that depend on them come out of `durable(number)`
    tick()      → the same for what happens by the passing of time alone

`now` is in seconds on one clock that never goes back while this core lives: unix time when the service
started, plus the time since. A restart may see an earlier or later one; times in records are only compared
with it, so a clock that was set makes results stay longer or shorter, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from nomadfn_agent import wire

from ..exception import InvalidError, NotFoundError
from . import (
    apps,
    batching,
    calls,
    dicts,
    inputs,
    lateness,
    live,
    losses,
    pool,
    records,
    scaling,
    schedules,
    shared_queues,
    streams,
    takeover,
    variants,
    watch,
)
from .effects import Effect
from .limits import Limits
from .model import COMMITTING, DELAYED, STOPPING, WAKE, App, Container, Function, Session
from .replaying import Replay
from .state import Commit, State, blob_name, check_invariants, note_waiting

TICK_S = 0.25
TICK_LEAST_S = 0.001
FORGET_EVERY_S = 60.0


class Core:
    """One shard's queues, pools and policies. Deterministic: the same events give the same effects."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        epoch: int = 0,
        capacity: int | None = None,
        capacity_reason: str = "",
        first_delivery: int = 1,
        shares_ports: bool = False,
    ) -> None:
        """`first_delivery` is beyond what any earlier leader has given whose containers may still run."""
        self.state = State(limits or Limits(), epoch=epoch, capacity=capacity, capacity_reason=capacity_reason)
        self.state.shares_ports = shares_ports
        self.state.first_delivery = self.state.next_delivery = first_delivery
        self._replay = Replay(self.state)
        self._next_sweep = 0.0
        self._next_forgetting = 0.0

    # Sessions

    def open_session(self, id: str, parent: str = "", seen: int = 0) -> bool:
        """A client connects; `seen` is the number of the last result it has. True when the session was known."""
        return apps.open_session(self.state, id, parent, seen)

    def detach_session(self, now: float, id: str) -> None:
        apps.detach_session(self.state, now, id)

    def end_session(self, now: float, id: str) -> None:
        session = self.state.sessions.get(id)
        if session is not None:
            apps.end_session(self.state, now, session)

    def acknowledge(self, id: str, number: int) -> None:
        session = self.state.sessions.get(id)
        if session is not None:
            calls.acknowledge(self.state, session, number)

    # Apps

    def start_app(self, now: float, id: str, spec: wire.AppSpec, session: str) -> dict[str, str]:
        """Start an ephemeral app, or say again that it is there; returns function ids by name."""
        app, _ = apps.put_app(self.state, now, id, spec, session=session)
        return _ids(app)

    def deploy(
        self, now: float, id: str, spec: wire.AppSpec, version: int, wall: float | None = None
    ) -> tuple[dict[str, str], list[str]]:
        """Put a deployed app in force; returns function ids by name, and the functions that changed."""
        wall = now if wall is None else wall
        schedules.run(self.state, now, wall)  # what was due by the version before
        app, changed = apps.put_app(self.state, now, id, spec, deployed=True)
        app.version, app.deployed_at = version, wall
        schedules.plan(self.state, app, wall)
        return _ids(app), changed

    def restore_app(
        self,
        now: float,
        id: str,
        spec: wire.AppSpec,
        session: str,
        deployed: bool,
        version: int,
        deployed_at: float | None = None,
    ) -> None:
        """Bring back an app after a restart. The session of an ephemeral one is away until it comes back."""
        if session:
            apps.expect_session(self.state, now, session)
        app, _ = apps.put_app(self.state, now, id, spec, session=session, deployed=deployed)
        app.version = version
        if deployed:
            app.deployed_at = now if deployed_at is None else deployed_at
            schedules.plan(self.state, app, app.deployed_at)

    def detach_app(self, id: str) -> None:
        app = self._app(id)
        session = self.state.sessions.get(app.session)
        if session is not None:
            session.apps.discard(id)
        app.session = ""

    def stop_app(self, now: float, id: str) -> int:
        """Stop an app; returns how many inputs were cancelled. `AppGone` follows when its containers are gone."""
        cancelled = apps.stop_app(self.state, now, self._app(id), "its app was stopped")
        apps.sweep(self.state, now)
        return cancelled

    def override(
        self, function_id: str, settings: dict[str, Any], until: float | None = None, reset: Collection[str] = ()
    ) -> wire.AutoscalerSettings:
        """Change autoscaler settings until the next deploy or, by the wall clock, `until` a time."""
        return live.change(self.state, self.function(function_id), settings, until, reset)

    def put_variant(self, now: float, app_id: str, variation: wire.Variation) -> tuple[Function, bool]:
        """The variant, and whether it was there already. Raises InvalidError or ResourceExhaustedError."""
        return apps.put_variant(self.state, now, self._app(app_id), variation)

    def _app(self, id: str) -> App:
        app = self.state.apps.get(id)
        if app is None:
            raise NotFoundError(f"no app {id} is running here; `nomadfn app list` shows those that are")
        return app

    def function(self, id: str) -> Function:
        function = self.state.functions.get(id)
        if function is None:
            raise NotFoundError(f"no function {id} is running here; `nomadfn function list` shows those that are")
        return function

    # Calls

    def submit(self, now: float, session_id: str, submission: calls.Submission) -> None:
        calls.submit(self.state, now, self.session(session_id), submission)

    def session(self, id: str) -> Session:
        session = self.state.sessions.get(id)
        if session is None:
            raise InvalidError(f"session {id} was ended; connect again")
        return session

    def close_call(self, now: float, id: str, total: int) -> None:
        calls.close(self.state, now, calls.find_durable(self.state, now, id), total)

    def cancel_call(self, now: float, id: str, *, terminate: bool = False) -> int:
        """Cancel what has no result yet; returns how many. An unknown call that is not durable has nothing left."""
        call = self.state.calls.get(id)
        if call is None:
            call = calls.find_durable(self.state, now, id)
        return calls.cancel(self.state, now, call, terminate=terminate)

    # Streams

    def parts(self, id: str, delivery: int, number: int, statuses: list[int], payloads: list[bytes]) -> None:
        """What an input in the container `id` gives out while it runs; `number` is that of the last of them."""
        if (container := self.state.containers.get(id)) is not None:
            streams.take_parts(self.state, container, delivery, number, statuses, payloads)

    def parts_taken(self, session_id: str, call: str, index: int, number: int) -> None:
        if (session := self.state.sessions.get(session_id)) is not None:
            streams.taken(self.state, session, call, index, number)

    def feed(self, call: str, index: int, payloads: list[bytes], *, last: bool = False) -> int:
        """Parts for an input that waits or runs; returns the number of the last, 0 where the input is done."""
        return streams.feed(self.state, call, index, payloads, last=last)

    def fed(self, id: str, delivery: int, number: int) -> None:
        if (container := self.state.containers.get(id)) is not None:
            streams.fed(self.state, container, delivery, number)

    def drop_stream(self, call: str, index: int) -> None:
        """Nobody reads the rest of it."""
        streams.drop(self.state, call, index)

    def cancel_input(self, now: float, id: str, *, terminate: bool = False) -> bool:
        """Cancel one input; False where it has its result already."""
        return inputs.cancel(self.state, now, inputs.find(self.state, now, id), terminate=terminate)

    def retry_input(self, now: float, id: str) -> None:
        """Let an input that waits for its next attempt wait no longer."""
        inputs.retry_now(self.state, now, inputs.find(self.state, now, id))

    # Containers

    def container_ready(self, now: float, id: str, slots: int = 1) -> None:
        container = self.state.containers.get(id)
        if container is not None:
            pool.ready(self.state, now, container, slots)

    def container_start_failed(self, now: float, id: str, text: str, raised: bytes = b"") -> None:
        """`raised` is the exception that inputs fail with after the last try; empty for one that tells the text."""
        container = self.state.containers.get(id)
        if container is not None:
            losses.start_failed(self.state, now, container, text, raised=raised)

    def container_preparing(self, id: str, what: str) -> None:
        """The container waits for its environment, `what` in words, and has not begun to start."""
        if (container := self.state.containers.get(id)) is not None:
            container.preparing = what

    def container_leaving(self, now: float, id: str, what: str) -> None:
        """The cluster is about to end the container: it gets nothing more, and ends when its inputs are done."""
        container = self.state.containers.get(id)
        if container is not None and container.state != STOPPING:
            pool.stop(self.state, container, what)
            self.state.touch(container.function)

    def container_found(self, now: float, id: str, app: str, function: str, index: int) -> Container | None:
        """A container that an earlier leader has left. None where nothing here needs it any more."""
        found = self.state.apps.get(self.state.deployed.get(app, app))
        needed = found.functions.get(function) if found is not None and not found.stopping else None
        if needed is None or id in self.state.containers:
            return None
        return takeover.adopt(self.state, now, needed, id, index)

    def container_attached(
        self, now: float, id: str, slots: int, deliveries: list[int], held_calls: list[str], indexes: list[int]
    ) -> None:
        """The runner of a found container is here, with what it holds."""
        if (container := self.state.containers.get(id)) is not None:
            takeover.attach(self.state, now, container, slots, deliveries, held_calls, indexes)

    def hold_back(self, recovering: bool) -> None:
        """While an earlier leader's containers are expected back, nothing is handed out, and nothing scaled."""
        self.state.recovering = recovering
        for function in self.state.functions.values():
            self.state.touch(function)

    def placement_blocked(self, function_id: str, why: str) -> None:
        """The cluster has no place for containers of a function; `why` in words, empty once it has."""
        function = self.state.functions.get(function_id)
        if function is not None:
            function.unplaced = why
            function.blocked = why or function.blocked
            function.next_decision = 0.0
            self.state.touch(function)

    def container_lost(self, now: float, id: str, what: str, tail: str = "") -> None:
        container = self.state.containers.get(id)
        if container is not None:
            takeover.drop_claims(self.state, container)
            losses.lost(self.state, now, container, what, tail)
            app = self.state.apps.get(container.app)
            if app is None or app.stopping:
                apps.sweep(self.state, now)

    def outputs(
        self,
        now: float,
        id: str,
        deliveries: list[int],
        statuses: list[int],
        payloads: list[bytes],
        run_ns: int,
        stuck_ns: int = 0,
    ) -> None:
        """`stuck_ns`: for so long the container has run its next input already."""
        container = self.state.containers.get(id)
        if container is not None:
            pool.take_outputs(self.state, now, container, deliveries, statuses, payloads, run_ns, stuck_ns)

    def returned(self, now: float, id: str, deliveries: list[int]) -> None:
        container = self.state.containers.get(id)
        if container is not None:
            pool.give_back(self.state, now, container, deliveries)

    def waits(self, container_id: str, change: int) -> None:
        """A container's own client began (1) or ceased (-1) to wait for results of a spawn."""
        if (container := self.state.containers.get(container_id)) is not None:
            note_waiting(self.state, container, change)

    def container(self, id: str) -> Container | None:
        return self.state.containers.get(id)

    # Time

    def settle(self, now: float) -> list[Effect]:
        """Dispatch and scale what changed; returns everything that is to be done now, in order."""
        state = self.state
        if state.dirty and not state.recovering:
            if state.resuming:
                streams.end_recovery(state, now)
            for function in list(state.dirty.values()):
                pool.dispatch(state, now, function)
            scaling.scale(state, now)
            state.dirty.clear()
        calls.flush_results(state)
        calls.flush_settled(state)
        effects, state.effects = state.effects, []
        return effects

    def tick(self, now: float, wall: float | None = None) -> float:
        """Let time pass; returns the seconds until it has to be called again. `settle` comes after it.

        `wall` is the time of day in unix seconds, which may be set and goes on while a machine sleeps; `now` unless
        it is given.
        """
        state = self.state
        state.wake_at = math.inf
        self._keep_appointments(now, now if wall is None else wall)
        for function in list(state.active.values()):
            self._wake_delayed(now, function)
            if function.deadlines.next <= now:
                lateness.drop_late(state, now, function)
            due_at = function.next_decision
            if function.arrivals:
                due_at = min(due_at, batching.due_at(function))
            if due_at <= now:
                state.dirty[function.id] = function
            else:
                state.wake_at = min(state.wake_at, due_at)
            state.wake_at = min(state.wake_at, function.deadlines.next, function.queue.next_due or math.inf)
        watch.watch_due(state, now)
        if now >= self._next_sweep:
            self._next_sweep = now + TICK_S
            apps.end_away_sessions(state, now)
            apps.sweep(state, now)
            calls.expire(state, now)
            takeover.forget_early(state, now)
            takeover.give_up_streams(state, now)
            variants.note_use(state, now)
        if now >= self._next_forgetting:
            self._next_forgetting = now + FORGET_EVERY_S
            apps.forget_variants(state, now)
            dicts.expire(state, now)
            shared_queues.expire(state, now)
        return min(TICK_S, max(TICK_LEAST_S, state.wake_at - now))

    def _keep_appointments(self, now: float, wall: float) -> None:
        """What was said to happen at a time of day."""
        state = self.state
        if state.temporary:
            live.expire(state, wall)
            state.wake_at = min(state.wake_at, now + live.next_end(state) - wall)
        if state.schedules:
            schedules.run(state, now, wall)
            state.wake_at = min(state.wake_at, now + state.next_due - wall)

    @property
    def wake_at(self) -> float:
        """When `tick` shall be called at the latest, whatever it said itself; inputs that came since may be why."""
        return self.state.wake_at

    def _wake_delayed(self, now: float, function: Function) -> None:
        due = function.queue.next_due
        if due is None or due > now:
            return
        for one in function.queue.due(now):
            if one.state == DELAYED:
                one.move(WAKE)
                if one.suspect:
                    function.queue.alone.append([one])
                else:
                    pool.enqueue(function, now, one.call, [one])
        self.state.touch(function)

    # What survives

    def take_records(self) -> tuple[list[records.Record], int]:
        """The records made since the last time, and the number of the last of them."""
        taken, self.state.records = self.state.records, []
        return taken, self.state.record_number

    def durable(self, now: float, number: int) -> None:
        """The journal has every record up to `number`: what waited for that comes out of the next `settle`."""
        state = self.state
        state.durable_number = number
        while state.withheld and state.withheld[0][0] <= number:
            effect = state.withheld.popleft()[1]
            if isinstance(effect, Commit):
                calls.commit(state, now, effect)
                if effect.call.caller == schedules.SCHEDULER:
                    schedules.report_failures(state, effect)
            else:
                state.effects.append(effect)

    def replay(self, segment: Iterable[records.Record]) -> None:
        """Apply records of the journal to a state that has served nobody yet."""
        self._replay.take(segment)

    def end_replay(self, now: float) -> None:
        """Make the replayed state the one to serve from: what was visible is, what was open goes on."""
        self._replay.end(now)

    def lead(self, *, epoch: int, capacity: int | None, capacity_reason: str, first_delivery: int) -> None:
        """What only who leads knows, for a core that has read the journal along as a standby's."""
        state = self.state
        state.epoch, state.capacity, state.capacity_reason = epoch, capacity, capacity_reason
        state.first_delivery = state.next_delivery = first_delivery

    @property
    def live_bytes(self) -> int:
        """About how much of the journal is still of use."""
        return self.state.live_bytes

    def snapshot(self) -> Iterator[records.Record]:
        """Records that bring back every durable call as it is when its turn comes."""
        for call in list(self.state.calls.values()):
            if call.durable:
                yield from records.records_of(call)
        yield from schedules.records_of(self.state)
        yield from shared_queues.records_of(self.state)
        yield from dicts.records_of(self.state)

    def live_blobs(self) -> set[str]:
        """The names of all blobs that something refers to: code, functions, payloads and results."""
        names: set[str] = set()
        for app in self.state.apps.values():
            names.add(app.code.digest)
            names.update(function.spec.serialized_ref for function in app.functions.values())
        for call in self.state.calls.values():
            for one in call.inputs():
                if (one.codec if one.state < COMMITTING else one.status) & wire.REF:
                    names.add(blob_name(one.payload))
        for stream in self.state.streams.values():
            names.update(map(blob_name, streams.references(stream)))
        names.update(map(blob_name, dicts.blobs(self.state)))
        names.update(map(blob_name, shared_queues.blobs(self.state)))
        return names

    def check_invariants(self) -> None:
        """Raises `InternalError` for anything that must not be; for tests and simulation."""
        check_invariants(self.state)


def _ids(app: App) -> dict[str, str]:
    """Ids of the app's functions by name, without variants."""
    return {name: function.id for name, function in app.functions.items() if function.variation is None}
