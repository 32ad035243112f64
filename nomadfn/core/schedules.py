"""Deployed functions that run by themselves: each due time becomes one spawn, whoever leads then.

The call's id is made of the function and the due time, so that the same time can be handed in twice and runs once;
the record `Fired` behind it says up to when everything that was due is done. Times that pass while nobody leads are
made up for by one run. Times here are the wall clock's.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from math import inf

from nomadfn_agent import wire
from nomadfn_agent.wire import outcome

from . import calendar, calls, records
from .apps import open_session
from .calendar import Schedule
from .effects import Notice
from .model import PENDING, App, Call
from .state import STATUS_MASK, Commit, State

SCHEDULER = "se-schedule"
"""The session of runs that nobody has asked for; it is always there."""
NO_ARGUMENTS = b"\x80\x05)\x85."
"""The payload of a call without arguments, `((),)` as a pickle."""
MAX_WAITING = 100
"""So many runs of one function may wait for a container; a due time beyond that is left out."""
LATE_S = 10.0
"""A run that is later than this is said to be one that is made up for."""
CLOCK_BACK_S = 3600.0
"""A clock that has gone back by more than this was wrong: what was done since by it counts no more."""


def plan(state: State, app: App, at: float) -> None:
    """An app is deployed, or brought back, that was deployed `at` this time: its periods begin then."""
    for function in app.functions.values():
        spec, known = function.spec.schedule, state.schedules.get(function.id)
        if spec is None:
            _forget(state, function.id)
        elif known is None or known.spec != spec or not spec.cron or known.function is not function:
            one = state.schedules[function.id] = Schedule(function, spec, at)
            _catch_up(state, one)
    _note_next(state)


def _forget(state: State, function: str) -> None:
    for table in (state.schedules, state.fired, state.runs):
        table.pop(function, None)


def _catch_up(state: State, one: Schedule) -> None:
    fired = state.fired.get(one.function.id)
    _move_on(one, one.after if fired is None else max(one.after, fired.at))


def _move_on(one: Schedule, after: float) -> None:
    one.after = after
    due = calendar.next_after(one.spec, one.since, after)
    one.due = inf if due is None else due


def _note_next(state: State) -> None:
    state.next_due = min((one.due for one in state.schedules.values()), default=inf)


def run(state: State, now: float, wall: float) -> None:
    """Hand in what is due."""
    if wall < state.last_wall - CLOCK_BACK_S:
        for one in state.schedules.values():
            one.since = min(one.since, wall)
            _move_on(one, min(one.after, wall))
        _note_next(state)
    state.last_wall = wall
    if wall < state.next_due:
        return
    for one in list(state.schedules.values()):
        app = state.apps.get(one.function.app)
        if app is None or app.stopping or app.functions.get(one.function.spec.name) is not one.function:
            _forget(state, one.function.id)
        elif one.due <= wall:
            _fire(state, now, wall, one)
    _note_next(state)


def _fire(state: State, now: float, wall: float, one: Schedule) -> None:
    function, due = one.function, one.due
    when = f"its run of {calendar.shown_time(due)}"
    runs = state.runs.get(function.id)
    if runs is not None and len(runs) == MAX_WAITING and _waits(runs[0]):
        text = f"{when} is left out: {MAX_WAITING} earlier ones still wait for a container"
    else:
        id = call_id(function.id, due)
        if SCHEDULER not in state.sessions:
            open_session(state, SCHEDULER, "", 0)
        submission = calls.Submission(id, function.id, wire.SPAWN, 0, [NO_ARGUMENTS])
        calls.submit(state, now, state.sessions[SCHEDULER], submission)
        if (call := state.calls.get(id)) is None:
            text = f"{when} was refused: the function has as many spawns as it may; see `nomadfn function explain`"
        else:
            note_run(state, call)
            text = f"{when} is handed in as {id}"
            text += f", {wall - due:.0f} s late: it stands for all that were missed" if wall - due > LATE_S else ""
    fired = records.Fired(function.id, due, wall)
    apply_fired(state, fired)
    state.record(fired)
    state.effects.append(Notice(function.app, function.spec.name, text))
    _move_on(one, wall)


def _waits(call: Call) -> bool:
    return call.single is not None and call.single.state == PENDING


def note_run(state: State, call: Call) -> None:
    """A run was handed in, also one that an earlier leader had handed in already."""
    runs = state.runs.setdefault(call.function.id, deque(maxlen=MAX_WAITING))
    if not runs or runs[-1] is not call:
        runs.append(call)


def call_id(function: str, due: float) -> str:
    """The same at every leader: what is handed in twice is one call."""
    return f"fc-{int(due):08x}{hashlib.sha256(f'{function} {due!r}'.encode()).hexdigest()[:24]}"


def apply_fired(state: State, record: records.Fired) -> None:
    """Up to then it is done."""
    state.fired[record.function] = record
    state.last_wall = max(state.last_wall, record.at)


def end_replay(state: State) -> None:
    """What is deployed is known, and what was done of it."""
    for one in state.schedules.values():
        _catch_up(state, one)
    for id in {*state.fired, *state.runs} - set(state.schedules):
        _forget(state, id)
    _note_next(state)


def records_of(state: State) -> Iterator[records.Fired]:
    """What brings them back as they are."""
    yield from list(state.fired.values())


def report_failures(state: State, commit: Commit) -> None:
    """Runs that nobody waits for say what went wrong where the app's output is read."""
    for index in commit.indexes:
        one = commit.call.get(index)
        if one is not None and one.status & STATUS_MASK != wire.OK:
            function = commit.call.function
            text = f"its scheduled run {commit.call.id} failed: {_why(one.status, one.payload)}"
            state.effects.append(Notice(function.app, function.spec.name, text))


def _why(status: int, payload: bytes) -> str:
    if status & wire.REF:
        return "the exception is a large one; read it with nomadfn.FunctionCall.from_id"
    if status == wire.FAILURE:
        failure = outcome.decode_failure(payload)
        return f"{failure.error}: {failure.message}"
    raised = outcome.decode_raised(payload)
    return f"{raised.type_name}: {raised.text}"
