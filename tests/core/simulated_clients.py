"""Clients of a simulated world, with their calls and their connections.

An input's payload says what it does when it runs, so that every result can be checked against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from nomadfn_agent import wire
from nomadfn_agent.wire import payload as payloads
from simulated_streams import Reader, check_result

from nomadfn.core import calls, effects
from nomadfn.core.model import NO_DEADLINE
from nomadfn.exception import NotFoundError

if TYPE_CHECKING:
    from simulation import World

FRAME_INPUTS = 16
SESSION_AWAY_S = 30.0
BACK_OFF_S = 1.0


Answer = effects.SendParts | effects.SendResults | effects.Accept | effects.Reject


class Work(NamedTuple):
    """What an input does: `ok`, `raise` the first `times`, `poison`, `hang`, or `nest` a call of `function`.

    A function that calls itself has `times` levels left. `salt` makes each payload one of its own. A generator gives
    `parts` before that.
    """

    does: str
    seconds: float
    times: int = 0
    function: int = -1
    salt: int = 0
    parts: int = 0

    def encode(self) -> bytes:
        return "|".join(map(str, self)).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Work:
        does, seconds, *numbers = payload.decode().split("|")
        return cls(does, float(seconds), *map(int, numbers))


def index_of(function: str) -> int:
    """Which of the programs' functions an id is of, a variant's too."""
    return int(function.rpartition("/f")[2].partition("@")[0])


@dataclass(eq=False)
class ClientCall:
    """One call as its client sees it."""

    id: str
    kind: int
    function: str
    works: list[Work]
    priority: int = 0
    deadline_s: float | None = None
    window: int = 20
    on_done: Callable[[], None] | None = None
    submitted: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    accepted: set[int] = field(default_factory=set)
    results: dict[int, int] = field(default_factory=dict)
    """Index → status; of spawns what became visible."""
    waits: bool = False
    """A refused part is tried again after a while."""
    cancelled: bool = False
    reader: Reader | None = None
    """Who takes its parts, of a generator."""
    orphaned: bool = False
    """Its session or app ended, so that cancellation is a right answer."""

    @property
    def durable(self) -> bool:
        return self.kind in wire.DURABLE_KINDS

    @property
    def settled(self) -> bool:
        """The client has nothing to wait for any more."""
        answered = self.accepted if self.durable else self.results
        return len(answered) + len(self.refused) >= len(self.works)

    def next_part(self) -> list[int]:
        """Indexes to submit now, without a gap."""
        open_count = len(self.submitted) - len(self.accepted if self.durable else self.results)
        room = min(self.window - open_count, FRAME_INPUTS)
        known = self.submitted | self.refused
        first = next((i for i in range(len(self.works)) if i not in known), None)
        part: list[int] = []
        while first is not None and len(part) < room and first < len(self.works) and first not in known:
            part.append(first)
            first += 1
        return part


class Client:
    """One session: sends its calls, sends again what is open after a reconnect, checks every answer."""

    def __init__(self, world: World, id: str, app: str, spec: wire.AppSpec | None, parent: str = "") -> None:
        self.world = world
        self.id = id
        self.app = app
        self.spec = spec
        """The ephemeral app that belongs to the session, or None."""
        self.parent = parent
        self.connected = False
        self.gone = False
        self.detached = False
        """Its app has been detached and outlives it."""
        self.generation = 0
        self.seen = 0
        self.calls: dict[str, ClientCall] = {}
        self._arrival = 0.0
        self._epoch = world.epoch
        self._cut_at = world.elapsed

    # Connection

    def connect(self) -> None:
        if self.gone or self.connected:
            return
        core, now = self.world.core, self.world.now
        self.generation += 1
        if self.may_have_ended:
            self.orphan()
        self.connected = True
        resumed = core.open_session(self.id, self.parent, self.seen)
        if not resumed or self._epoch != self.world.epoch:
            self.seen = 0
        self._epoch = self.world.epoch
        if self.spec is not None and not self.detached:
            core.start_app(now, self.app, self.spec, self.id)
        for call in self.calls.values():
            call.waits = False
            call.submitted &= call.accepted if call.durable else set(call.results)
            self.pump(call)
            if call.reader is not None:
                call.reader.tell()
            if call.kind == wire.SPAWN_MAP and call.settled:
                self._close(call)

    def orphan(self) -> None:
        """Its session has ended, or may have: what it has open may have been cancelled, and all of its app."""
        for call in self.calls.values():
            call.orphaned = call.orphaned or not (self.detached and call.durable)
        if self.spec is not None and not self.detached:
            self.world.orphan_calls_of(self.app)

    @property
    def may_have_ended(self) -> bool:
        return self.gone or (not self.connected and self.world.elapsed - self._cut_at >= SESSION_AWAY_S - 0.5)

    def detach_and_end(self) -> None:
        """`run --detach`: its spawns go on without it."""
        if self.connected and not self.gone and self.settled and self.spec is not None:
            self.detached = True
            self.world.note("detach", self.app)
            self.world.core.detach_app(self.app)
            self.end()

    def disconnect(self) -> None:
        if self.connected:
            self.cut()
            self.world.core.detach_session(self.world.now, self.id)

    def cut(self) -> None:
        """The connection is gone; here nobody tells the core."""
        if self.connected:
            self._cut_at = self.world.elapsed
        self.connected = False

    def vanish(self) -> None:
        """The program ends without a word."""
        self.disconnect()
        self.gone = True
        self.orphan()

    def end(self) -> None:
        if self.connected:
            self.orphan()
            self.world.core.end_session(self.world.now, self.id)
        else:
            self.orphan()
        self.gone = True
        self.connected = False

    def later(self, action: Callable[[], None]) -> None:
        """Run `action` when a message over this connection has arrived, in order; never if it is cut before."""
        generation = self.generation
        world = self.world
        self._arrival = max(self._arrival, world.elapsed + world.latency())

        def arrive() -> None:
            if self.connected and self.generation == generation:
                action()

        world.at(self._arrival, arrive)

    # Calls

    def start(self, call: ClientCall) -> None:
        self.calls[call.id] = call
        if any(work.parts for work in call.works):
            call.reader = Reader(self, call)
        self.pump(call)

    def pump(self, call: ClientCall) -> None:
        if not self.connected or call.waits:
            return
        if call.cancelled:
            call.refused.update(set(range(len(call.works))) - call.submitted)
            self._note_done(call)
            return
        while part := call.next_part():
            call.submitted.update(part)
            self.later(lambda part=part: self._submit(call, part))  # type: ignore[misc]

    def _submit(self, call: ClientCall, part: list[int]) -> None:
        world = self.world
        deadline = NO_DEADLINE if call.deadline_s is None else world.now + call.deadline_s
        sent = [call.works[i].encode() for i in part]
        submission = calls.Submission(
            call.id, call.function, call.kind, part[0], sent, wire.PICKLE, (), call.priority, deadline
        )
        if call.reader is not None and call.reader.attempt:
            submission.attempt, call.reader.resumed = call.reader.attempt, True
        world.note("submit", call.id, part[0], len(part))
        # A refusal that is sent now may arrive when its reason is gone.
        call.orphaned = call.orphaned or world.is_stopped(call.function)
        function = world.core.state.functions.get(call.function)
        before = list(function.pending) if function is not None else [0, 0]
        world.core.submit(world.now, self.id, submission)
        if function is not None:
            limits = world.core.state.limits
            for durable, limit in enumerate((limits.pending_inputs, limits.pending_spawns)):
                assert function.pending[durable] <= max(before[durable], limit), "more was taken than the limit"

    def cancel(self, call: ClientCall, terminate: bool) -> None:
        if not self.connected:
            return

        def arrive() -> None:
            call.cancelled = True
            self.world.note("cancel", call.id, terminate)
            try:
                self.world.core.cancel_call(self.world.now, call.id, terminate=terminate)
            except NotFoundError:
                assert not call.accepted, f"accepted call {call.id} is unknown"
            self.pump(call)

        self.later(arrive)

    def _close(self, call: ClientCall) -> None:
        def arrive() -> None:
            if call.accepted:
                self.world.note("close", call.id)
                self.world.core.close_call(self.world.now, call.id, len(call.accepted))

        self.later(arrive)

    # Answers

    def receive(self, effect: Answer) -> None:
        if self.connected:
            self.later(lambda: self._take(effect))

    def _take(self, effect: Answer) -> None:
        call = self.calls[effect.call]
        match effect:
            case effects.SendParts():
                assert call.reader is not None, f"{call.id} is no generator"
                call.reader.receive(effect)
                return
            case effects.SendResults():
                self._take_results(call, effect)
            case effects.Accept():
                call.accepted.update(range(effect.first, effect.first + effect.count))
                call.submitted |= call.accepted
                self.world.accepted(call)
                if call.kind == wire.SPAWN_MAP and call.settled:
                    self._close(call)
            case effects.Reject():
                self._take_reject(call, effect)
        self.pump(call)
        self._note_done(call)

    def _take_results(self, call: ClientCall, effect: effects.SendResults) -> None:
        if effect.number <= self.seen:
            return
        assert effect.number == self.seen + len(effect.indexes), "a result is missing between two frames"
        self.seen = effect.number
        for index, status, payload in zip(effect.indexes, effect.statuses, effect.payloads, strict=True):
            if index in call.refused and (call.cancelled or call.orphaned or self.world.is_stopped(call.function)):
                # It was given up after a reconnect, and its result was still on the way.
                continue
            assert index in call.submitted, f"a result of {call.id}[{index}], which is not open"
            assert index not in call.results, f"a second result of {call.id}[{index}]"
            self.world.check_result(call, index, status, payload)
            if call.reader is not None:
                error = failure_of(payload) if status == wire.FAILURE else ""
                check_result(call, status, error, (call.id, index) in self.world.broken)
            call.results[index] = status
        if self.world.random.random() < 0.6:
            seen = self.seen
            self.later(lambda: self.world.core.acknowledge(self.id, seen))

    def _take_reject(self, call: ClientCall, effect: effects.Reject) -> None:
        part = set(range(effect.first, effect.first + effect.count))
        gone = call.orphaned or self.world.is_stopped(call.function)
        assert call.durable or gone or not part & set(call.results), "an input with a result was refused"
        call.submitted -= part - call.accepted
        retries = call.kind in (wire.MAP, wire.SPAWN_MAP)
        if effect.error == "ResourceExhaustedError" and retries:
            call.waits = True
            generation = self.generation

            def again() -> None:
                if self.generation == generation:
                    call.waits = False
                    self.pump(call)

            self.world.after(max(effect.retry_after_s, BACK_OFF_S), again)
            return
        if effect.error == "NotFoundError":
            assert call.orphaned or self.world.is_stopped(call.function), effect.message
        elif effect.error == "InvalidError":
            assert call.orphaned or call.cancelled, effect.message
        elif effect.error == "InputCancellation":
            assert call.cancelled or call.orphaned, effect.message
        else:
            assert effect.error == "ResourceExhaustedError", effect.message
        call.refused |= part - call.accepted
        if call.kind == wire.SPAWN_MAP:
            call.refused |= set(range(effect.first, len(call.works))) - call.accepted

    def _note_done(self, call: ClientCall) -> None:
        if call.settled and call.on_done is not None:
            done, call.on_done = call.on_done, None
            done()

    @property
    def settled(self) -> bool:
        return self.gone or all(call.settled for call in self.calls.values())


def failure_of(payload: bytes) -> str:
    return payloads.decode_failure(payload).error
