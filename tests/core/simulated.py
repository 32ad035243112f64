"""What stands around the core in a simulation: clients with their connections, and containers that run inputs.

An input's payload says what it does when it runs, so that every result can be checked against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from nomadfn_agent import wire
from nomadfn_agent.wire import payload as payloads

from nomadfn.core import calls, effects
from nomadfn.core.model import NO_DEADLINE
from nomadfn.exception import NotFoundError

if TYPE_CHECKING:
    from simulation import World

CANCELLED = payloads.encode(payloads.Failure("InputCancellation", "interrupted"))
STOPPED = "exit code 0"
FRAME_INPUTS = 16
SESSION_AWAY_S = 30.0
BACK_OFF_S = 1.0


class Work(NamedTuple):
    """What an input does: `ok`, `raise` the first `times`, `poison`, `hang`, or `nest` a call of `function`.

    A function that calls itself has `times` levels left. `salt` makes each payload one of its own.
    """

    does: str
    seconds: float
    times: int = 0
    function: int = -1
    salt: int = 0

    def encode(self) -> bytes:
        return "|".join(map(str, self)).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Work:
        does, seconds, times, function, salt = payload.decode().split("|")
        return cls(does, float(seconds), int(times), int(function), int(salt))


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
        open_count = len(self.submitted) - len(self.results) if self.kind == wire.MAP else 0
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
        self.connected = True
        if self.world.elapsed - self._cut_at >= SESSION_AWAY_S - 0.5:
            self.orphan()
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
            if call.kind == wire.SPAWN_MAP and call.settled:
                self._close(call)

    def orphan(self) -> None:
        for call in self.calls.values():
            call.orphaned = call.orphaned or not (self.detached and call.durable)

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

    def _later(self, action: Callable[[], None]) -> None:
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
            self._later(lambda part=part: self._submit(call, part))  # type: ignore[misc]

    def _submit(self, call: ClientCall, part: list[int]) -> None:
        world = self.world
        deadline = NO_DEADLINE if call.deadline_s is None else world.now + call.deadline_s
        sent = [call.works[i].encode() for i in part]
        submission = calls.Submission(
            call.id, call.function, call.kind, part[0], sent, wire.PICKLE, (), call.priority, deadline
        )
        world.note("submit", call.id, part[0], len(part))
        world.core.submit(world.now, self.id, submission)

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

        self._later(arrive)

    def _close(self, call: ClientCall) -> None:
        def arrive() -> None:
            if call.accepted:
                self.world.note("close", call.id)
                self.world.core.close_call(self.world.now, call.id, len(call.accepted))

        self._later(arrive)

    # Answers

    def receive(self, effect: effects.SendResults | effects.Accept | effects.Reject) -> None:
        if self.connected:
            self._later(lambda: self._take(effect))

    def _take(self, effect: effects.SendResults | effects.Accept | effects.Reject) -> None:
        call = self.calls[effect.call]
        match effect:
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
            if index in call.refused and (call.cancelled or self.world.is_stopped(call.function)):
                # It was given up after a reconnect, and its result was still on the way.
                continue
            assert index in call.submitted, f"a result of {call.id}[{index}], which is not open"
            assert index not in call.results, f"a second result of {call.id}[{index}]"
            self.world.check_result(call, index, status, payload)
            call.results[index] = status
        if self.world.random.random() < 0.6:
            seen = self.seen
            self._later(lambda: self.world.core.acknowledge(self.id, seen))

    def _take_reject(self, call: ClientCall, effect: effects.Reject) -> None:
        part = set(range(effect.first, effect.first + effect.count))
        gone = self.world.is_stopped(call.function)
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


class Item(NamedTuple):
    delivery: int
    key: tuple[str, int]
    work: Work
    payload: bytes


class SimulatedContainer:
    """One container: starts after a while, runs what it is given in order, answers recalls when it comes to it."""

    def __init__(self, world: World, id: str, function: int, slots: int) -> None:
        self.world = world
        self.id = id
        self.function = function
        self.slots = slots
        self.ready = False
        self.alive = True
        self.condemned = False
        """The core has ordered its end at once."""
        self.queue: list[Item] = []
        self.running: dict[int, Item] = {}
        self.interrupted: set[int] = set()
        self.outstanding: set[int] = set()
        """Deliveries that the core has sent and heard nothing of."""
        self._outputs: list[tuple[int, int, bytes, float]] = []
        self._arrival = 0.0
        self._departure = 0.0
        self._children: list[Client] = []

    # Life

    def start(self) -> None:
        world = self.world
        traits = world.traits[self.function]
        delay_s = traits.start_s * world.random.uniform(0.5, 2)
        if world.random.random() < traits.start_fails:
            way = world.random.randrange(3)
            if way == 0:
                world.after(delay_s, self._fail_start)
            elif way == 1:
                world.after(delay_s, lambda: self.die("exit code 3"))
            # Else it never gets ready, and `startup_timeout` has to end it.
            return
        world.after(delay_s, self._get_ready)

    def _fail_start(self) -> None:
        if self.alive:
            self._send(lambda: self.world.core.container_start_failed(self.world.now, self.id, "ImportError"))
            self.world.after(0.01, lambda: self.die("exit code 1"))

    def _get_ready(self) -> None:
        if self.alive:
            self.ready = True
            self._send(lambda: self.world.core.container_ready(self.world.now, self.id, self.slots))

    def die(self, what: str) -> None:
        if not self.alive:
            return
        world = self.world
        self.alive = self.ready = False
        if what != STOPPED:
            world.lost(f"{world.apps_of[self.id]}/f{self.function}")
        for item in self.running.values():
            world.end_run(item.key, self)
        self.queue.clear()
        self.running.clear()
        for child in self._children:
            child.vanish()
        soon = world.elapsed + world.latency()
        # The news of its end may overtake its last outputs.
        at = max(soon, self._departure) if world.random.random() < 0.5 else soon

        def report() -> None:
            world.containers.pop(self.id)
            world.core.container_lost(world.now, self.id, what, "")

        world.at(at, world.in_this_epoch(report))

    def _send(self, action: Callable[[], None]) -> None:
        world = self.world
        self._departure = max(self._departure, world.elapsed + world.latency())
        world.at(self._departure, world.in_this_epoch(action))

    # What the core asks

    def receive(self, effect: effects.Deliver | effects.Recall | effects.Interrupt | effects.StopContainer) -> None:
        if isinstance(effect, effects.Deliver):
            self.outstanding.update(effect.deliveries)
        elif isinstance(effect, effects.Interrupt):
            self.interrupted.update(effect.deliveries)
        elif isinstance(effect, effects.StopContainer):
            self.condemned = self.condemned or not effect.grace_s
            left = self.outstanding - self.interrupted
            assert not effect.grace_s or not left, f"{self.id} is stopped ({effect.reason}) with {sorted(left)}"
        world = self.world
        self._arrival = max(self._arrival, world.elapsed + world.latency())
        world.at(self._arrival, lambda: self._take(effect))

    def _take(self, effect: effects.Deliver | effects.Recall | effects.Interrupt | effects.StopContainer) -> None:
        if not self.alive:
            return
        match effect:
            case effects.Deliver():
                for delivery, index, payload in zip(effect.deliveries, effect.indexes, effect.payloads, strict=True):
                    self.queue.append(Item(delivery, (effect.call, index), Work.decode(payload), payload))
                self._pump()
            case effects.Recall():
                slow = self.world.random.random() < 0.1
                wait_s = self.world.random.uniform(0, 6) if slow else self.world.latency()
                self.world.after(wait_s, lambda: self._give_back(effect.deliveries))
            case effects.Interrupt():
                self._give_back(effect.deliveries)
                stubborn = self.world.random.random() < 0.2
                for delivery in effect.deliveries:
                    if delivery in self.running and not stubborn:
                        self._finish(delivery, wire.FAILURE, CANCELLED)
            case effects.StopContainer():
                wait_s = 0.0 if effect.grace_s == 0 else self.world.random.uniform(0, min(effect.grace_s, 0.1))
                self.world.after(wait_s, lambda: self.die(STOPPED if effect.grace_s else "killed by SIGKILL"))

    def _give_back(self, deliveries: list[int]) -> None:
        if not self.alive:
            return
        withdrawn = [item.delivery for item in self.queue if item.delivery in deliveries]
        self.queue = [item for item in self.queue if item.delivery not in deliveries]
        self._flush()

        def arrive() -> None:
            self.outstanding -= set(withdrawn)
            self.world.core.returned(self.world.now, self.id, withdrawn)

        self._send(arrive)

    # Running

    def _pump(self) -> None:
        while self.alive and self.queue and len(self.running) < self.slots:
            item = self.queue.pop(0)
            self.running[item.delivery] = item
            self.world.begin_run(item.key, self)
            self._run(item)

    def _run(self, item: Item) -> None:
        world, work = self.world, item.work
        match work.does:
            case "poison":
                world.after(work.seconds, lambda: self._crash(item))
            case "hang":
                pass
            case "nest":
                child = Client(world, f"se-{self.id}-{item.delivery}", world.apps_of[self.id], None, self.id)
                self._children.append(child)
                world.clients.append(child)
                child.connect()
                call = world.make_call(child, work.function, nested_by=self.function, levels=work.times - 1)
                call.on_done = lambda: self._nested(item, child)
                child.start(call)
            case _:
                world.after(work.seconds, lambda: self._complete(item))

    def _crash(self, item: Item) -> None:
        if item.delivery in self.running:
            self.die("killed by SIGSEGV")

    def _nested(self, item: Item, child: Client) -> None:
        self.world.after(item.work.seconds, lambda: self._complete(item))
        self.world.after(item.work.seconds, child.end)

    def _complete(self, item: Item) -> None:
        if item.delivery not in self.running:
            return
        if item.work.does == "raise" and self.world.raised(item.key) <= item.work.times:
            self._finish(item.delivery, wire.EXCEPTION, b"raised")
        else:
            self._finish(item.delivery, wire.OK, b"done " + item.payload)

    def _finish(self, delivery: int, status: int, payload: bytes) -> None:
        item = self.running.pop(delivery)
        self.world.end_run(item.key, self)
        self._outputs.append((delivery, status, payload, item.work.seconds))
        if len(self._outputs) == 1:
            self.world.after(self.world.random.choice((0.0, 0.001, 0.003)), self._flush)
        self._pump()

    def _flush(self) -> None:
        if not self._outputs or not self.alive:
            return
        batch, self._outputs = self._outputs, []
        deliveries = [one[0] for one in batch]
        run_ns = int(sum(one[3] for one in batch) * 1e9)

        def arrive() -> None:
            self.outstanding -= set(deliveries)
            self.world.core.outputs(
                self.world.now, self.id, deliveries, [one[1] for one in batch], [one[2] for one in batch], run_ns
            )

        self._send(arrive)
        if self.world.random.random() < 0.05:
            self._send(arrive)


def failure_of(payload: bytes) -> str:
    return payloads.decode_failure(payload).error
