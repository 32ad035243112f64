"""Applying the journal's records to a core that serves nobody: at a start, or all along, on a standby.

The records go through the functions that made them. What those leave for somebody to do is dropped, since it was done
by who wrote the journal; a standby that reads along for days must not grow by it. `end` makes of it the state to serve
from, in a time that grows with what is open, not with what is kept.
"""

from __future__ import annotations

from collections.abc import Iterable

from nomadfn_agent import wire

from . import apps, batching, calls, dicts, records, schedules, shared_queues
from .model import COMMITTING, Call, Function
from .state import Commit, State, finish, is_live

PRUNE_FROM = 1024


class Replay:
    """One core's replay, from its first segment to its end."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._open: dict[str, Call] = {}
        """Calls that may get more inputs."""
        self._dead: dict[str, int] = {}
        """By function, how many inputs have ended since its queue was last rid of such."""
        self._calls: dict[str, int] = {}
        """By function, how many calls there are."""

    def take(self, segment: Iterable[records.Record]) -> None:
        for record in segment:
            self._apply(record)
        state = self._state
        state.records.clear()
        state.effects.clear()
        state.withheld.clear()
        state.spent_blobs.clear()

    def _apply(self, record: records.Record) -> None:
        state = self._state
        match record:
            case records.Submitted():
                self._apply_submitted(record)
            case records.Closed():
                if (call := self._open.pop(record.call, None) or state.calls.get(record.call)) is not None:
                    calls.apply_close(state, record.at, call, record.total)
            case records.Cancelled():
                if (known := state.calls.get(record.call)) is not None:
                    text = record.text or calls.CANCELLED_TEXT
                    count = calls.apply_cancel(state, record.at, known, terminate=False, text=text)
                    self._note_dead(known.function, count)
            case records.Finished():
                self._apply_finished(record)
            case records.Forgotten():
                self._apply_forgotten(record)
            case records.Fired():
                schedules.apply_fired(state, record)
            case records.QueueMade() | records.QueuePut() | records.QueueTaken() | records.QueueDropped():
                shared_queues.apply(state, record)
            case _:
                dicts.apply(state, record)

    def _apply_submitted(self, record: records.Submitted) -> None:
        state, id = self._state, record.function
        function = state.functions.get(id)
        if function is None:
            app, _, name = id.partition("/")
            function = state.functions[id] = Function(id, app, wire.FunctionSpec(name=name))
        if record.call not in state.calls:
            self._calls[id] = self._calls.get(id, 0) + 1
        calls.replay_submitted(state, record, function)
        call = state.calls[record.call]
        if call.total < 0:
            self._open[call.id] = call
        if record.caller == schedules.SCHEDULER:
            schedules.note_run(state, call)

    def _apply_forgotten(self, record: records.Forgotten) -> None:
        state = self._state
        known = [call for id in record.calls if (call := state.calls.get(id)) is not None]
        calls.forget(state, record.calls)
        for call in known:
            self._open.pop(call.id, None)
            self._calls[call.function.id] -= 1
            if not self._calls[call.function.id]:
                del self._calls[call.function.id]
                self._drop_placeholder(call.function)
        while state.expiring and state.expiring[0][1] not in state.calls:
            state.expiring.popleft()

    def _drop_placeholder(self, function: Function) -> None:
        if function.app not in self._state.apps:
            self._dead.pop(function.id, None)
            for table in (self._state.functions, self._state.dirty, self._state.active):
                table.pop(function.id, None)

    def _apply_finished(self, record: records.Finished) -> None:
        state = self._state
        call = state.calls.get(record.call)
        if call is None:
            return
        for index, status, payload in zip(record.indexes, record.statuses, record.payloads, strict=True):
            one = call.get(index)
            if one is not None and one.state < COMMITTING:
                finish(state, record.at, one, status, payload)
        state.settled.pop(call.id, None)
        calls.commit(state, record.at, Commit(call, record.indexes))
        self._note_dead(call.function, len(record.indexes))

    def _note_dead(self, function: Function, count: int) -> None:
        """What has ended stays in line until its turn comes, which it does not here."""
        dead = self._dead.get(function.id, 0) + count
        if dead > max(PRUNE_FROM, function.waiting_inputs):
            function.queue.prune(is_live)
            dead = 0
        self._dead[function.id] = dead

    def end(self, now: float) -> None:
        """Make the state the one to serve from: what was visible is, what was open goes on."""
        state = self._state
        known = {function.id for app in state.apps.values() for function in app.functions.values()}
        unknown = {id for id in state.functions if id not in known}
        if unknown:
            self._end_calls(now, unknown)
        for call in self._open.values():
            if call.total < 0:
                apps.expect_session(state, now, call.caller).calls[call.id] = call
        for id in unknown:
            for table in (state.functions, state.dirty, state.active):
                table.pop(id, None)
        for function in state.functions.values():
            batching.forget_arrivals(function)  # They waited by another clock, and long enough.
        schedules.end_replay(state)
        owners = {one.session for one in state.dicts.values()} | {one.session for one in state.queues.values()}
        for session in owners - {""}:
            apps.expect_session(state, now, session)
        self._sort_expiring(now)
        self._open.clear()
        self._dead.clear()
        self._calls.clear()
        for totals in state.totals.values():
            totals.reset()

    def _end_calls(self, now: float, functions: set[str]) -> None:
        """The app of these functions is gone, and with it what was to run."""
        for call in list(self._state.calls.values()):
            if not call.finished and call.function.id in functions:
                calls.close(self._state, now, call, call.accepted)
                calls.cancel(self._state, now, call)

    def _sort_expiring(self, now: float) -> None:
        """By when their results came: snapshots tell of calls in another order."""
        state = self._state
        entries = list(state.expiring)
        in_order = sorted(entries)
        if in_order == entries and (not entries or entries[0][0]):
            return
        ended: dict[str, float] = {}
        for _, id in in_order:
            if (call := state.calls.get(id)) is not None:
                # Its last result may have become durable by a snapshot that was made before it was shown.
                ended[id] = call.finished_at = call.finished_at or now
        state.expiring.clear()
        state.expiring.extend(sorted((at, id) for id, at in ended.items()))
