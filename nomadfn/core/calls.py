"""Calls: taking inputs, cancelling, acknowledging, and what is kept of spawns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec
from nomadfn_agent import wire

from ..exception import NotFoundError, OutputExpiredError
from . import family, limits, pool, records, streams, takeover, variants
from .effects import Accept, DropBlob, Interrupt, Reject, SendResults, Visible
from .model import COMMIT, COMMITTING, DONE, NO_DEADLINE, RUNNING, Batch, Call, Function, Input, Session
from .state import INPUT_BYTES, Commit, State, drop_blob, fail, note_waiting, release_call

CANCELLED_TEXT = "the input was cancelled"
REORDER_RETRY_S = 0.05


class Submission(msgspec.Struct, gc=False):
    """Inputs as they arrive: `wire.Submit` with its deadline as a time of the core's clock."""

    call: str
    function: str
    kind: int
    first: int
    payloads: Sequence[bytes]
    codec: int = wire.PICKLE
    refs: Sequence[int] = ()
    priority: int = 0
    deadline: float = NO_DEADLINE
    parent: str = ""
    method: str = ""
    attempt: int = 0


def submit(state: State, now: float, session: Session, sub: Submission) -> None:
    """Take as many of the inputs as the limits admit; answer with `Accept` (spawns) and `Reject`."""
    function = state.functions.get(sub.function)
    app = state.apps.get(function.app) if function is not None else None
    if function is None or app is None or app.stopping:
        text = f"function {sub.function} is not running here; its app was stopped, or was never started"
        return _reject(state, session, sub, 0, "NotFoundError", text)
    call = state.calls.get(sub.call)
    if call is not None and (call.function is not function or call.kind != sub.kind):
        return _reject(state, session, sub, 0, "InvalidError", f"call id {sub.call} is in use by another call")
    if (sub.method or function.spec.methods) and (text := variants.refusal(function, sub.method)):
        return _reject(state, session, sub, 0, "InvalidError", text)
    if call is not None and call.cancelled:
        return _reject(state, session, sub, 0, "InputCancellation", f"call {sub.call} was cancelled")
    if sub.priority not in limits.PRIORITIES:
        text = f"a priority of {sub.priority} is out of range: {limits.PRIORITY_TEXT}"
        return _reject(state, session, sub, 0, "InvalidError", text)
    if sub.kind != wire.REMOTE and function.spec.gives_parts(sub.method):
        text = f"{sub.method or function.spec.program_name} is a generator: its values can only be read while it runs"
        return _reject(state, session, sub, 0, "InvalidError", text)
    if sub.kind >= wire.SPAWN:
        return _submit_durable(state, now, session, function, call, sub)
    return _submit_attached(state, session, function, call, sub, now)


def _submit_attached(
    state: State, session: Session, function: Function, call: Call | None, sub: Submission, now: float
) -> None:
    if (
        call is None
        and len(sub.payloads) == 1
        and limits.has_room(state.limits, sub.kind, function.pending[0], function.running[0])
    ):
        call = session.calls[sub.call] = _new_call(state, now, function, session.id, sub)
        codec = sub.codec | wire.REF if 0 in sub.refs else sub.codec
        return _enqueue(state, now, function, sub, [Input(call, sub.first, sub.payloads[0], codec, sub.deadline)])
    unknown: Sequence[int] = range(len(sub.payloads))
    if call is not None and not call.empty:
        # Of a part that is sent again after a reconnect some are here, or have their results on the way.
        unknown = [i for i in unknown if call.get(sub.first + i) is None]
        if not unknown:
            return None
    admission = limits.admit(state.limits, load_of(function), sub.kind, len(unknown))
    count = admission.count
    if count:
        if call is None:
            call = session.calls[sub.call] = _new_call(state, now, function, session.id, sub)
        payloads, first, positions = sub.payloads, sub.first, unknown[:count]
        columns = zip(positions, _codecs(sub, positions), strict=True)
        inputs = [Input(call, first + i, payloads[i], codec, sub.deadline) for i, codec in columns]
        _enqueue(state, now, function, sub, inputs)
    if admission.excess is not None:
        for first, length in _runs(unknown[count:]):
            _reject_over(state, session, sub, first, length, admission.excess)
    return None


def _runs(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Rising positions as runs without a gap: the first of each, and how many."""
    start = 0
    for i in range(1, len(positions) + 1):
        if i == len(positions) or positions[i] != positions[i - 1] + 1:
            yield positions[start], i - start
            start = i


def _submit_durable(
    state: State, now: float, session: Session, function: Function, call: Call | None, sub: Submission
) -> None:
    accepted = call.accepted if call is not None else 0
    skip = accepted - sub.first
    if skip < 0:
        text = "inputs before these were refused and have to come first"
        return _reject(state, session, sub, 0, "ResourceExhaustedError", text, REORDER_RETRY_S)
    offered = len(sub.payloads) - skip
    if skip:
        state.withhold(Accept(session.id, sub.call, sub.first, min(skip, len(sub.payloads))))
    if offered <= 0:
        return None
    if call is not None and call.total >= 0:
        text = f"call {sub.call} is closed with {call.total} inputs"
        return _reject(state, session, sub, skip, "InvalidError", text)
    admission = limits.admit(state.limits, load_of(function), sub.kind, offered)
    sizes = [INPUT_BYTES + len(payload) for payload in sub.payloads[skip : skip + admission.count]]
    fits = limits.admit_bytes(state.limits, state.live_bytes, sizes)
    if fits.excess is not None:
        admission = fits
    count = admission.count
    if count:
        first = sub.first + skip
        payloads = list(sub.payloads[skip : skip + count])
        codecs = _codecs(sub, range(skip, skip + count))
        deadline = None if sub.deadline == NO_DEADLINE else sub.deadline
        state.record(
            records.Submitted(
                sub.call,
                function.id,
                sub.kind,
                session.id,
                sub.priority,
                now,
                first,
                payloads,
                codecs,
                deadline,
                sub.method,
                sub.parent,
            )
        )
        call = take_durable(state, now, function, session.id, sub, first, payloads, codecs)
        session.calls[sub.call] = call
        if state.claims or state.early:
            # The leader before had handed them out, and was gone before they were durable.
            taken = (call.get(index) for index in range(first, first + count))
            takeover.settle_claims(state, now, [one for one in taken if one is not None])
        state.withhold(Accept(session.id, sub.call, first, count))
        if call.total >= 0:
            session.calls.pop(sub.call, None)
    if admission.excess is not None:
        _reject_over(state, session, sub, skip + count, offered - count, admission.excess)
    return None


def take_durable(
    state: State,
    now: float,
    function: Function,
    caller: str,
    sub: Submission,
    first: int,
    payloads: Sequence[bytes],
    codecs: Sequence[int],
) -> Call:
    """The state's side of `records.Submitted`: at once when it is made, and again at replay."""
    call = state.calls.get(sub.call)
    if call is None:
        call = _new_call(state, now, function, caller, sub)
    inputs = [Input(call, first + i, payload, codecs[i], sub.deadline) for i, payload in enumerate(payloads)]
    _add_all(call, inputs)
    call.accepted = first + len(inputs)
    state.live_bytes += sum(map(len, payloads)) + INPUT_BYTES * len(inputs)
    if sub.kind == wire.SPAWN:
        call.total = 1
    function.pending[1] += len(inputs)
    function.totals.accepted += len(inputs)
    pool.enqueue(function, now, call, inputs)
    if sub.deadline < state.wake_at:
        state.wake_at = sub.deadline
    state.touch(function)
    return call


def _add_all(call: Call, inputs: list[Input]) -> None:
    call.add(inputs[0])
    if len(inputs) > 1:
        call.add(inputs[1])
    if (table := call.table) is not None:  # As it is from two on.
        for one in inputs:
            table[one.index] = one


def _new_call(state: State, now: float, function: Function, caller: str, sub: Submission) -> Call:
    call = Call(sub.call, sub.kind, function, caller, sub.priority, now, method=sub.method, parent=sub.parent)
    state.calls[sub.call] = call
    if sub.parent:
        family.join(state, call)
    return call


def load_of(function: Function) -> limits.Load:
    mean_s = function.mean_run_s
    at_once = function.ready * function.spec.max_inputs * max(1, function.spec.max_batch_size)
    rate = at_once / mean_s if mean_s and at_once else None
    return limits.Load(function.pending[0], function.running[0], function.pending[1], rate)


def replay_submitted(state: State, record: records.Submitted, function: Function) -> None:
    """Take the inputs of a record; those that a snapshot has brought already are passed over."""
    call = state.calls.get(record.call)
    skip = 0 if call is None else call.accepted - record.first
    if skip >= len(record.payloads):
        return
    sub = Submission(
        record.call,
        record.function,
        record.kind,
        record.first,
        (),
        priority=record.priority,
        deadline=NO_DEADLINE if record.deadline is None else record.deadline,
        method=record.method,
        parent=record.parent,
    )
    payloads, codecs = record.payloads[skip:], record.codecs[skip:]
    take_durable(state, record.at, function, record.caller, sub, record.first + skip, payloads, codecs)


def _codecs(sub: Submission, positions: Sequence[int]) -> list[int]:
    if not sub.refs:
        return [sub.codec] * len(positions)
    references = set(sub.refs)
    return [sub.codec | wire.REF if i in references else sub.codec for i in positions]


def _enqueue(state: State, now: float, function: Function, sub: Submission, inputs: list[Input]) -> None:
    call = inputs[0].call
    if len(inputs) == 1:
        call.add(inputs[0])
    else:
        _add_all(call, inputs)
    function.pending[0] += len(inputs)
    function.totals.accepted += len(inputs)
    pool.enqueue(function, now, call, inputs)
    if sub.deadline < state.wake_at:
        state.wake_at = sub.deadline
    session = state.sessions[call.caller]
    if session.parent and (parent := state.containers.get(session.parent)) is not None:
        note_waiting(state, parent, len(inputs))
    if state.claims or state.early:
        takeover.settle_claims(state, now, inputs)
    if sub.attempt:
        streams.resume(state, now, inputs)
    state.touch(function)


def _reject(
    state: State, session: Session, sub: Submission, skip: int, error: str, text: str, retry_after_s: float = 1.0
) -> None:
    count = len(sub.payloads) - skip
    state.effects.append(Reject(session.id, sub.call, sub.first + skip, count, error, text, retry_after_s))


def _reject_over(state: State, session: Session, sub: Submission, skip: int, count: int, over: limits.Excess) -> None:
    state.effects.append(
        Reject(
            session.id,
            sub.call,
            sub.first + skip,
            count,
            "ResourceExhaustedError",
            over.message,
            over.retry_after_s,
            over.limit,
            over.value,
            over.maximum,
        )
    )


def close(state: State, now: float, call: Call, total: int) -> None:
    """No more inputs will come; what was accepted is all there is when `total` is larger."""
    if call.total >= 0 or not call.durable:
        return
    state.record(records.Closed(call.id, min(total, call.accepted), now))
    apply_close(state, now, call, min(total, call.accepted))


def apply_close(state: State, now: float, call: Call, total: int) -> None:
    call.total = total
    session = state.sessions.get(call.caller)
    if session is not None:
        session.calls.pop(call.id, None)
    state.withhold(Visible(call.id))
    _note_finished(state, now, call)


def cancel(state: State, now: float, call: Call, *, terminate: bool = False, text: str = CANCELLED_TEXT) -> int:
    """Cancel every input of the call that has no result yet; returns how many those were. `text` says why.

    With `terminate` the containers that run them are ended, not only interrupted.
    """
    if call.durable:
        # Results that came before the cancellation stand before it in the journal, too.
        flush_settled(state)
        state.record(records.Cancelled(call.id, now, text))
    count = apply_cancel(state, now, call, terminate=terminate, text=text)
    if call.durable:
        state.withhold(Visible(call.id))
    return count


def apply_cancel(state: State, now: float, call: Call, *, terminate: bool, text: str = CANCELLED_TEXT) -> int:
    count = cancel_inputs(state, now, call, call.inputs(), terminate=terminate, text=text)
    call.cancelled = call.durable
    return count


def cancel_inputs(
    state: State, now: float, call: Call, inputs: Iterable[Input], *, terminate: bool, text: str = CANCELLED_TEXT
) -> int:
    """Cancel those of a call's inputs that have no result yet; returns how many. What runs is interrupted."""
    interrupted: dict[str, list[int]] = {}
    holders: dict[int, str] | None = None
    count = 0
    for one in inputs:
        if one.state >= COMMITTING:
            continue
        if one.state == RUNNING:
            holders = family.holders_of(call) if holders is None else holders
            if (container := holders.get(one.delivery)) is not None:
                interrupted.setdefault(container, []).append(one.delivery)
        fail(state, now, one, "InputCancellation", text)
        count += 1
    call.function.totals.cancelled += count
    for id, deliveries in interrupted.items():
        if terminate:
            pool.stop(state, state.containers[id], "cancelled with terminate_containers=True", grace_s=0.0)
        else:
            state.effects.append(Interrupt(id, deliveries))
    state.touch(call.function)
    return count


def acknowledge(state: State, session: Session, number: int) -> None:
    """The client has every result up to `number`: they are dropped."""
    waiting = session.unacknowledged
    while waiting and waiting[0].number <= number:
        batch = waiting.popleft()
        call = batch.call
        if (table := call.table) is None:
            for index in batch.indexes:
                call.drop(index)
        else:
            for index in batch.indexes:
                table.pop(index, None)
        if state.streams:
            streams.forget(state, call.id, batch.indexes)
        release_call(state, call)


def flush_results(state: State) -> None:
    """Number the results that have come in and send them to the sessions that are there."""
    if not state.unsent:
        return
    for session in state.unsent.values():
        for batch in session.unsent.values():
            session.number += len(batch.indexes)
            batch.number = session.number
            session.unacknowledged.append(batch)
            if session.attached:
                state.effects.append(_results(session, batch))
        session.unsent.clear()
    state.unsent.clear()


def _results(session: Session, batch: Batch) -> SendResults:
    return SendResults(
        session.id, batch.number, batch.call.id, batch.indexes, batch.statuses, batch.payloads, batch.codec
    )


def resend(state: State, session: Session, seen: int) -> None:
    """After a reconnect: acknowledge what the client has, send the rest of what was sent before."""
    acknowledge(state, session, seen)
    streams.resend(state, session)
    for batch in session.unacknowledged:
        state.effects.append(_results(session, batch))


def flush_settled(state: State) -> None:
    """Hand the results of spawns to the journal; they become visible when it has them."""
    for finished in state.settled.values():
        call = state.calls.get(finished.call)
        if call is None:
            continue
        state.record(finished)
        state.withhold(Commit(call, finished.indexes))
        state.withhold(Visible(call.id))
    state.settled.clear()
    for reference in state.spent_blobs:
        state.withhold(DropBlob(reference))
    state.spent_blobs.clear()


def commit(state: State, now: float, commit: Commit) -> None:
    for index in commit.indexes:
        one = commit.call.get(index)
        if one is not None and one.state == COMMITTING:
            one.move(COMMIT)
            commit.call.done += 1
    _note_finished(state, now, commit.call)


def _note_finished(state: State, now: float, call: Call) -> None:
    if call.finished and not call.finished_at:
        call.finished_at = now
        state.expiring.append((now, call.id))


def expire(state: State, now: float) -> None:
    """Forget the spawns whose results were kept for their time."""
    gone = []
    while state.expiring and state.expiring[0][0] + state.limits.retention_s <= now:
        gone.append(state.expiring.popleft()[1])
    if gone:
        state.record(records.Forgotten(gone))
        forget(state, gone)


def forget(state: State, ids: Sequence[str]) -> None:
    for id in ids:
        call = state.calls.pop(id, None)
        if call is None:
            continue
        for one in call.inputs():
            state.live_bytes -= len(one.payload) + INPUT_BYTES
            if one.state == DONE:
                drop_blob(state, one.status, one.payload)


def find_durable(state: State, now: float, id: str) -> Call:
    """The durable call of that id. Raises `NotFoundError`, or `OutputExpiredError` where its id says it is too old."""
    call = state.calls.get(id)
    if call is not None and call.durable:
        return call
    created = created_at(id)
    days = state.limits.retention_s / 86400
    if created is not None and created + state.limits.retention_s <= now:
        raise OutputExpiredError(f"the results of {id} were kept for {days:g} days and are gone")
    raise NotFoundError(f"no spawned call {id} is known here; is this the service that it was spawned on?")


def created_at(id: str) -> float | None:
    """The unix time in a call's id, or None when it is not one of ours."""
    try:
        return float(int(id[3:11], 16)) if id.startswith("fc-") and len(id) == 35 else None
    except ValueError:
        return None


def visible_prefix(call: Call, first: int, count: int, limit_bytes: int) -> list[Input]:
    """The durable results from `first` on without a gap, at most `count` of them and about `limit_bytes`."""
    found: list[Input] = []
    size = 0
    for index in range(first, first + count):
        one = call.get(index)
        if one is None or one.state != DONE or (found and size + len(one.payload) > limit_bytes):
            break
        size += len(one.payload)
        found.append(one)
    return found
