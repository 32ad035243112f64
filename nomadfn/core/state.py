"""The core's whole state, and the few steps that every part of the core shares."""

from __future__ import annotations

from collections import deque
from heapq import heappush
from math import inf

import msgspec
from nomadfn_agent import wire
from nomadfn_agent.wire import outcome

from ..exception import InternalError
from .calendar import Schedule
from .effects import DropBlob, Effect
from .limits import Limits
from .model import (
    DELAYED,
    FINISH,
    PENDING,
    READY,
    RUNNING,
    SETTLE,
    STARTING,
    STOPPING,
    App,
    Batch,
    Call,
    Container,
    Function,
    Input,
    Session,
    Stream,
)
from .records import Finished, Fired, Record
from .shared import Answers, SharedDict, SharedQueue
from .tally import recount, tally
from .totals import Totals

INPUT_BYTES = 128
"""What an input takes in the journal beside its payload, at the most: a spawn's ids are among it."""
STATUS_MASK = wire.REF - 1
LOOK_S = 0.25
"""The longest that nobody looks at a container which holds something, or starts (`watch`)."""
TOTALS_MAX = 1000
OTHERS = "(others)"
"""Functions beyond `TOTALS_MAX` are counted together under this name."""


class Commit(msgspec.Struct):
    """Results that become visible once the journal has them."""

    call: Call
    indexes: list[int]


class Claim(msgspec.Struct, frozen=True):
    """An input that a container says it runs and whose client has not come back; see `takeover`."""

    container: Container
    input: Input


class Early(msgspec.Struct, frozen=True):
    """What a claim gave before its client came back."""

    status: int
    payload: bytes
    at: float


class State(msgspec.Struct):
    limits: Limits
    epoch: int = 0
    apps: dict[str, App] = msgspec.field(default_factory=dict)
    deployed: dict[str, str] = msgspec.field(default_factory=dict)
    """Name of a deployed app → its id."""
    functions: dict[str, Function] = msgspec.field(default_factory=dict)
    apps_version: int = 0
    """Changes when an app is put in force, or stops."""
    sessions: dict[str, Session] = msgspec.field(default_factory=dict)
    calls: dict[str, Call] = msgspec.field(default_factory=dict)
    containers: dict[str, Container] = msgspec.field(default_factory=dict)
    dirty: dict[str, Function] = msgspec.field(default_factory=dict)
    """Functions whose queue or pool changed since the last `settle`."""
    active: dict[str, Function] = msgspec.field(default_factory=dict)
    """Functions that have containers, inputs or a minimum: the ones that time passes for."""
    effects: list[Effect] = msgspec.field(default_factory=list)
    records: list[Record] = msgspec.field(default_factory=list)
    record_number: int = 0
    durable_number: int = 0
    withheld: deque[tuple[int, Effect | Commit]] = msgspec.field(default_factory=deque)
    """Effects that depend on a record, in the order of their numbers."""
    unsent: dict[str, Session] = msgspec.field(default_factory=dict)
    settled: dict[str, Finished] = msgspec.field(default_factory=dict)
    live_bytes: int = 0
    """Payloads and results of durable calls, with what the journal needs beside them."""
    spent_blobs: list[bytes] = msgspec.field(default_factory=list)
    """References of the payloads of inputs in `settled`."""
    expiring: deque[tuple[float, str]] = msgspec.field(default_factory=deque)
    """When durable calls were finished, oldest first."""
    away: dict[str, Session] = msgspec.field(default_factory=dict)
    first_delivery: int = 1
    """Smaller ones were given by earlier leaders."""
    next_delivery: int = 1
    next_container: int = 1
    wake_at: float = inf
    """When `Core.tick` shall be called at the latest: the next thing that time alone brings about."""
    looks: list[tuple[float, str]] = msgspec.field(default_factory=list)
    """A heap of containers by when `watch` looks at them; of several entries for one its `look_at` is the valid one."""
    capacity: int | None = None
    capacity_reason: str = ""
    shares_ports: bool = False
    """All containers are on one machine, without a network of their own."""
    recovering: bool = False
    """Containers of an earlier leader are expected back: nothing is handed out, nothing scaled."""
    claims: dict[tuple[str, int], Claim] = msgspec.field(default_factory=dict)
    """By call and index."""
    early: dict[tuple[str, int], Early] = msgspec.field(default_factory=dict)
    temporary: dict[str, Function] = msgspec.field(default_factory=dict)
    """Functions with settings that revert by themselves; see `live`."""
    streams: dict[tuple[str, int], Stream] = msgspec.field(default_factory=dict)
    """By call and index, until the client has the input's result."""
    resuming: list[Input] = msgspec.field(default_factory=list)
    """Inputs whose client has parts of an attempt, while its container may still come back; see `streams`."""
    schedules: dict[str, Schedule] = msgspec.field(default_factory=dict)
    """By function, like the next two."""
    dicts: dict[str, SharedDict] = msgspec.field(default_factory=dict)
    """By id, see `dicts`."""
    dict_names: dict[str, str] = msgspec.field(default_factory=dict)
    dict_bytes: int = 0
    """What all of them hold in memory and in the journal."""
    dict_blob_bytes: int = 0
    dicts_expire_at: float = 0.0
    """When old entries are looked for next."""
    queues: dict[str, SharedQueue] = msgspec.field(default_factory=dict)
    """By id, see `shared_queues`."""
    queue_names: dict[str, str] = msgspec.field(default_factory=dict)
    answers: Answers = msgspec.field(default_factory=Answers)
    fired: dict[str, Fired] = msgspec.field(default_factory=dict)
    """Up to when everything that was due is done."""
    runs: dict[str, deque[Call]] = msgspec.field(default_factory=dict)
    """The last runs that nobody has asked for."""
    next_due: float = inf
    """When the next of them is due (wall clock)."""
    last_wall: float = 0.0
    """The latest time of the wall clock that anything was done by."""
    totals: dict[tuple[str, str], Totals] = msgspec.field(default_factory=dict)
    """By the names of app and function; a bounded number, since anybody may run apps of new names."""

    def totals_of(self, app: str, function: str) -> Totals:
        key = (app, function)
        if key not in self.totals and len(self.totals) >= TOTALS_MAX:
            key = (OTHERS, OTHERS)
        if key not in self.totals:
            self.totals[key] = Totals(*key)
        return self.totals[key]

    def touch(self, function: Function) -> None:
        if self.functions.get(function.id) is function:
            self.dirty[function.id] = function
            self.active[function.id] = function

    def look(self, container: Container, at: float) -> None:
        """Have `watch` look at a container at this time, or before."""
        if at < container.look_at:
            container.look_at = at
            heappush(self.looks, (at, container.id))
            self.wake_at = min(self.wake_at, at)

    def record(self, one: Record) -> int:
        self.records.append(one)
        self.record_number += 1
        return self.record_number

    def withhold(self, effect: Effect | Commit) -> None:
        """Release `effect` once every record up to now is durable."""
        if self.record_number > self.durable_number or self.withheld or isinstance(effect, Commit):
            self.withheld.append((self.record_number, effect))
        else:
            self.effects.append(effect)


def failure(error: str, message: str) -> bytes:
    return outcome.encode(outcome.Failure(error, message))


def is_live(one: Input) -> bool:
    return one.state == PENDING


def blob_name(reference: bytes) -> str:
    """The name in a blob reference; empty when it is none, which a client is free to send."""
    try:
        return outcome.decode_ref(reference).name
    except msgspec.DecodeError:
        return ""


def drop_blob(state: State, codec_or_status: int, payload: bytes) -> None:
    if codec_or_status & wire.REF:
        state.effects.append(DropBlob(payload))


def withhold_drop(state: State, codec: int, payload: bytes) -> None:
    """Let a blob go once the journal says that it is needed no more."""
    if codec & wire.REF:
        state.withhold(DropBlob(payload))


def fail(state: State, now: float, one: Input, error: str, message: str) -> None:
    """End an input that gets no result from a container."""
    one.call.function.totals.failed += 1
    finish(state, now, one, wire.FAILURE, failure(error, message))


def finish(state: State, now: float, one: Input, status: int, payload: bytes) -> None:
    """Give an input its result. A durable one is shown once the journal has it. Who calls this counts it."""
    call = one.call
    function = call.function
    durable = call.kind >= wire.SPAWN
    if one.state == RUNNING:
        function.running[durable] -= 1
    else:
        function.pending[durable] -= 1
    one.move(SETTLE if durable else FINISH)
    if one.codec & wire.REF and durable:
        # Until its result is durable, a restart would run the input again, and need its payload.
        state.spent_blobs.append(one.payload)
    elif one.codec & wire.REF:
        state.effects.append(DropBlob(one.payload))
    if durable:
        state.live_bytes += len(payload) - len(one.payload)
    one.payload = payload
    one.status = status
    one.suspect = False
    if call.family is not None:
        call.family.note(one, status, payload)
    if durable:
        batch = state.settled.get(call.id)
        if batch is None:
            batch = state.settled[call.id] = Finished(call.id, [], [], [], now)
        batch.indexes.append(one.index)
        batch.statuses.append(status)
        batch.payloads.append(payload)
        return
    session = state.sessions.get(call.caller)
    if session is not None and session.parent and (parent := state.containers.get(session.parent)) is not None:
        note_waiting(state, parent, -1)
    if is_claim(one):
        state.claims.pop((call.id, one.index), None)
        function.totals.count([status], -1)  # It counts once its client is back.
        state.early[call.id, one.index] = Early(status, payload, now)
        return
    if session is None:
        call.drop(one.index)
        state.streams.pop((call.id, one.index), None)
        drop_blob(state, status, payload)
        return
    _queue_result(state, session, call, one)


def is_claim(one: Input) -> bool:
    return one.call.kind < 0


def forget_claim(state: State, one: Input) -> None:
    """It cannot be run again here, without a payload: its client sends it anew."""
    one.call.function.running[0] -= 1
    state.claims.pop((one.call.id, one.index), None)
    state.streams.pop((one.call.id, one.index), None)


def note_waiting(state: State, container: Container, change: int) -> None:
    """Count what a container waits for itself: while it does, it is not what the machine's capacity is for."""
    before = container.waiting
    container.waiting = max(0, before + change)
    if (before == 0) != (container.waiting == 0):
        function = container.function
        function.changed[container.id] = container
        state.dirty[function.id] = function


def _queue_result(state: State, session: Session, call: Call, one: Input) -> None:
    codec = one.codec & STATUS_MASK
    batch = session.unsent.get(call.id)
    if batch is not None and (
        len(batch.indexes) >= wire.MAX_INPUTS_PER_FRAME
        or batch.size_bytes + len(one.payload) > wire.MAX_FRAME_BYTES
        or batch.codec != codec
    ):
        # The full batch keeps its place in the order under a key that no call has.
        session.unsent[f"{call.id}#{len(session.unsent)}"] = session.unsent.pop(call.id)
        batch = None
    if batch is None:
        batch = session.unsent[call.id] = Batch(call, codec)
        state.unsent[session.id] = session
    batch.indexes.append(one.index)
    batch.statuses.append(one.status)
    batch.payloads.append(one.payload)
    batch.size_bytes += len(one.payload)


def release_call(state: State, call: Call) -> None:
    """Forget a call that is not durable once it holds nothing."""
    if call.empty and not call.durable:
        state.calls.pop(call.id, None)
        session = state.sessions.get(call.caller)
        if session is not None:
            session.calls.pop(call.id, None)


def check_invariants(state: State) -> None:
    """What must be true between any two events; raises `InternalError` with what is not. For tests and simulation."""
    _check_counts(state)
    holders: dict[int, str] = {}
    for container in state.containers.values():
        if container.alone and container.used > 1:
            raise InternalError(f"{container.id} holds {container.used} inputs or batches beside a suspect one")
        _check_slots(container)
        if (container.held or container.interrupted) and container.look_at == inf and container.state != STOPPING:
            raise InternalError(f"{container.id} holds {len(container.held)} inputs, and nobody will look at it")
        for delivery, one in container.held.items():
            if one.state != RUNNING or one.delivery != delivery:
                continue
            if id(one) in holders:
                raise InternalError(f"input {one.index} of {one.call.id} is in two containers")
            holders[id(one)] = container.id
    running = sum(sum(function.running) for function in state.functions.values())
    if len(holders) != running:
        raise InternalError(f"{len(holders)} inputs are held by containers, {running} are said to run")

    for call_id, index in state.streams:
        owner = state.calls.get(call_id)
        if (owner is None or owner.get(index) is None) and (call_id, index) not in {*state.claims, *state.early}:
            raise InternalError(f"the stream of {call_id}[{index}] belongs to nothing")


def _check_slots(container: Container) -> None:
    """Where several run at once: `begun` and `queued` hold what is held, no more slots than there are."""
    if not container.counts_slots or container.state == STARTING:
        return
    units = set(container.batches) if container.batches else set(container.held)
    known = set(container.begun) | {one for one in container.queued if one in container.held}
    if units != known or len(container.begun) > container.slots:
        raise InternalError(f"{container.id} holds {sorted(units)}, and its {container.slots} slots {sorted(known)}")
    if container.batches and sum(container.batches.values()) != len(container.held):
        raise InternalError(f"{container.id} holds {len(container.held)} inputs, its batches {container.batches}")


def _check_counts(state: State) -> None:
    counts: dict[str, list[int]] = {name: [0, 0, 0, 0] for name in state.functions}
    for claim in state.claims.values():
        counts[claim.container.function.id][2] += 1
    for call in state.calls.values():
        counted = counts.get(call.function.id)
        if counted is None:
            continue
        for one in call.inputs():
            if one.state == RUNNING:
                counted[2 + call.durable] += 1
            elif one.state in (PENDING, DELAYED):
                counted[call.durable] += 1
    for name, function in state.functions.items():
        said = [*function.pending, *function.running]
        if counts[name] != said:
            raise InternalError(f"{name}: counted {counts[name]}, the function says {said}")
    for function in state.functions.values():
        ready = sum(1 for container in function.containers.values() if container.state == READY)
        if ready != function.ready:
            raise InternalError(f"{function.id}: {ready} containers are ready, the function says {function.ready}")
        if any(not one.held or one.state != READY for one in function.ahead.stuck.values()):
            raise InternalError(f"{function.id}: one of {list(function.ahead.stuck)} holds nothing and gets nothing")
        if (fresh := recount(function)) != tally(function):
            raise InternalError(f"{function.id}: its containers add up to {fresh}, its tally is {function.tally}")
