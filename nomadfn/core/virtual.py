"""A world around one core whose clock is a number: `nomadfn simulate`, and what fairness and order are tested with.

The core is asked what the control service asks of it, so its policies run unchanged. Made up are the containers,
which take the time that they are told, the clients, and the time that a message takes. Nothing fails here.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nomadfn_agent import wire

from . import calls, effects
from .core import Core
from .limits import Limits
from .model import NO_DEADLINE

APP = "ap-virtual"
FRAME_INPUTS = 256
BACK_OFF_S = 0.05


@dataclass(frozen=True)
class Conditions:
    """What the world is like; times in seconds."""

    start_s: float = 0.5
    """From the order of a container until it takes inputs."""
    hop_s: float = 0.0002
    """From one process to the next; an input and its result make four of them."""
    flush_s: float = 0.001
    """How long a busy container keeps outputs before it sends them."""
    capacity: int | None = None
    """Containers that the cluster has room for."""


@dataclass(slots=True)
class Call:
    """One call of a client, and what has come of it."""

    id: str
    caller: str
    function: str
    runs: Sequence[float]
    """How long each input runs."""
    at: float
    priority: int = 0
    deadline: float = NO_DEADLINE
    on_done: Callable[[Call], None] | None = None
    asked_at: list[float] = field(default_factory=list)
    """When each input was handed in, by its index."""
    done_at: dict[int, float] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    """Those without a result: past their deadline, or refused."""
    waits: bool = False

    @property
    def is_map(self) -> bool:
        return len(self.runs) > 1

    @property
    def finished(self) -> bool:
        return len(self.done_at) == len(self.runs)

    @property
    def latencies(self) -> list[float]:
        """Seconds from handing an input in to having its result, of those that have one."""
        return [at - self.asked_at[index] for index, at in self.done_at.items() if index not in self.failed]


Unit = list[tuple[int, str, int]]
"""Delivery, call and index of the inputs that run together."""


class VirtualContainer:
    """Runs units in the order in which they come, as many at once as it has slots."""

    def __init__(self, world: VirtualWorld, id: str, spec: wire.FunctionSpec) -> None:
        self.id = id
        self.spec = spec
        self.ordered_at = world.now
        self.ended_at: float | None = None
        self.ended = False
        """It is gone; the core may not have heard of it."""
        self._world = world
        self._waiting: deque[Unit] = deque()
        self._running: dict[int, Unit] = {}
        self._batch: Unit = []
        self._outputs: list[tuple[int, int]] = []
        self._run_s = 0.0
        self._began_at = 0.0
        self._flushes = False
        self._leaves = False

    def receive(self, effect: effects.Effect) -> None:
        if self.ended:
            return
        match effect:
            case effects.Deliver():
                for delivery, index in zip(effect.deliveries, effect.indexes, strict=True):
                    self._waiting.append([(delivery, effect.call, index)])
            case effects.DeliverBatch():
                self._batch += zip(effect.deliveries, effect.calls, effect.indexes, strict=True)
                if effect.last:
                    self._waiting.append(self._batch)
                    self._batch = []
            case effects.Recall():
                self._give_back(set(effect.deliveries))
            case effects.Interrupt():
                self._give_back(set(effect.deliveries))
                for first in [one for one in self._running if one in effect.deliveries]:
                    self._finish(first, wire.EXCEPTION, 0.0)
            case effects.StopContainer():
                self._leaves = True
                if effect.grace_s == 0:
                    self._end()
        self._fill()

    def _fill(self) -> None:
        world = self._world
        while self._waiting and len(self._running) < self.spec.max_inputs:
            unit = self._waiting.popleft()
            first = unit[0][0]
            run_s = max(world.calls[call].runs[index] for _, call, index in unit)
            self._running[first] = unit
            self._began_at = world.now
            world.after(run_s, lambda first=first, run_s=run_s: self._finish(first, wire.OK, run_s))  # type: ignore[misc]
        if self._leaves and not self._running and not self._waiting and not self.ended:
            self._flush()
            self._end()

    def _finish(self, first: int, status: int, run_s: float) -> None:
        unit = self._running.pop(first, None)
        if unit is None or self.ended:
            return
        self._outputs += [(delivery, status) for delivery, _, _ in unit]
        self._run_s += run_s
        self._fill()
        if self.ended:
            return
        if not self._running and not self._waiting:
            self._flush()
        elif not self._flushes:
            self._flushes = True
            self._world.after(self._world.conditions.flush_s, self._flush)

    def _flush(self) -> None:
        self._flushes = False
        if not self._outputs or self.ended:
            return
        outputs, self._outputs = self._outputs, []
        run_ns, self._run_s = int(self._run_s * 1e9), 0.0
        stuck_ns = int((self._world.now - self._began_at) * 1e9) if self._running and self.spec.max_inputs == 1 else 0
        deliveries, statuses = [one[0] for one in outputs], [one[1] for one in outputs]
        world = self._world
        world.message(
            lambda: world.core.outputs(world.now, self.id, deliveries, statuses, [b""] * len(outputs), run_ns, stuck_ns)
        )

    def _give_back(self, deliveries: set[int]) -> None:
        self._flush()
        back: list[int] = []
        kept: deque[Unit] = deque()
        for unit in self._waiting:
            back += [item[0] for item in unit if item[0] in deliveries]
            if left := [item for item in unit if item[0] not in deliveries]:
                kept.append(left)
        self._waiting = kept
        world = self._world
        world.message(lambda: world.core.returned(world.now, self.id, back))

    def _end(self) -> None:
        self.ended = True
        self.ended_at = self._world.now
        world = self._world
        world.message(lambda: world.forget(self))


class VirtualWorld:
    """Functions, the clients that call them, and their containers. `run` lets it all happen."""

    def __init__(
        self, functions: Sequence[wire.FunctionSpec], conditions: Conditions | None = None, limits: Limits | None = None
    ) -> None:
        self.conditions = conditions or Conditions()
        self.limits = limits or Limits()
        self.now = 0.0
        self.core = Core(self.limits, epoch=1, capacity=self.conditions.capacity, capacity_reason="the capacity")
        self.core.deploy(0.0, APP, wire.AppSpec(name="virtual", functions=list(functions)), 1)
        self.calls: dict[str, Call] = {}
        self.containers: dict[str, VirtualContainer] = {}
        self.all_containers: list[VirtualContainer] = []
        self._open = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._callers: set[str] = set()
        self._next_tick = 0.0

    # Time

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (max(when, self.now), self._sequence, action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.at(self.now + delay_s, action)

    def message(self, action: Callable[[], None]) -> None:
        """`action` happens once a message has arrived."""
        self.after(self.conditions.hop_s, action)

    def run(self, until: float = math.inf) -> None:
        """Until every call has its results, or the clock says `until`."""
        self._tick()
        while self._events and self.now < until and (self._open or until < math.inf):
            self.now = self._events[0][0]
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            self._settle()

    def _tick(self) -> None:
        if self.now < self._next_tick:
            return  # There is an earlier one by now.
        self._plan_tick(self.now + self.core.tick(self.now))

    def _plan_tick(self, when: float) -> None:
        self._next_tick = when
        self.at(when, self._tick)

    def _settle(self) -> None:
        for effect in self.core.settle(self.now):
            self._carry_out(effect)
        wake_at = max(self.core.wake_at, self.now)
        if wake_at < self._next_tick:
            self._plan_tick(wake_at)

    # Clients

    def call(
        self,
        at: float,
        caller: str,
        function: str,
        runs: Sequence[float],
        *,
        priority: int = 0,
        deadline_s: float | None = None,
        on_done: Callable[[Call], None] | None = None,
    ) -> Call:
        """A `.remote`, or a `.map` where there are several `runs`. `on_done` hears of its end."""
        deadline = NO_DEADLINE if deadline_s is None else at + deadline_s
        made = Call(f"fc-{len(self.calls):032x}", caller, f"{APP}/{function}", runs, at, priority, deadline, on_done)
        self.calls[made.id] = made
        self._open += 1
        if caller not in self._callers:
            self._callers.add(caller)
            self.core.open_session(caller)
        self.at(at, lambda: self._pump(made))
        return made

    def _pump(self, call: Call) -> None:
        """Hand in what there is room for, as the client of a map does."""
        window = self.limits.map_in_flight
        while not call.waits and len(call.asked_at) < len(call.runs):
            under_way = len(call.asked_at) - len(call.done_at)
            room = window - under_way
            if room < FRAME_INPUTS and under_way > window // 2:
                return
            first = len(call.asked_at)
            count = min(room, FRAME_INPUTS, len(call.runs) - first)
            call.asked_at += [self.now] * count
            self._submit(call, first, count)

    def _submit(self, call: Call, first: int, count: int) -> None:
        kind = wire.MAP if call.is_map else wire.REMOTE
        submission = calls.Submission(
            call.id, call.function, kind, first, [b""] * count, priority=call.priority, deadline=call.deadline
        )
        self.message(lambda: self.core.submit(self.now, call.caller, submission))

    def _take(self, effect: effects.SendResults) -> None:
        call = self.calls[effect.call]
        self.core.acknowledge(effect.session, effect.number)
        self._done(call, zip(effect.indexes, effect.statuses, strict=True))

    def _done(self, call: Call, outcomes: Sequence[tuple[int, int]] | zip[tuple[int, int]]) -> None:
        for index, status in outcomes:
            call.done_at[index] = self.now
            if status != wire.OK:
                call.failed.add(index)
        if not call.finished:
            return self._pump(call)
        self._open -= 1
        if call.on_done is not None:
            call.on_done(call)
        return None

    def _refused(self, effect: effects.Reject) -> None:
        call = self.calls[effect.call]
        if not call.is_map:
            return self._done(call, [(0, wire.FAILURE)])

        def again() -> None:
            call.waits = False
            self._submit(call, effect.first, effect.count)
            self._pump(call)

        call.waits = True
        self.after(max(effect.retry_after_s, BACK_OFF_S), again)
        return None

    # Containers

    def _carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.StartContainer():
                self._start(effect)
            case (
                effects.Deliver()
                | effects.DeliverBatch()
                | effects.Recall()
                | effects.Interrupt()
                | effects.StopContainer()
            ):
                if (container := self.containers.get(effect.container)) is not None:
                    self.message(lambda: container.receive(effect))
            case effects.SendResults():
                self.message(lambda: self._take(effect))
            case effects.Reject():
                self.message(lambda: self._refused(effect))
            case _:
                pass

    def _start(self, effect: effects.StartContainer) -> None:
        container = VirtualContainer(self, effect.container.id, effect.container.function.spec)
        self.containers[container.id] = container
        self.all_containers.append(container)

        def ready() -> None:
            if not container.ended:
                self.core.container_ready(self.now, container.id, container.spec.max_inputs)

        self.after(self.conditions.start_s, ready)

    def forget(self, container: VirtualContainer) -> None:
        del self.containers[container.id]
        self.core.container_lost(self.now, container.id, "exit code 0")

    def container_seconds(self, function: str, until: float) -> float:
        """How long its containers were there, from the order on, those that still are until then."""
        mine = [one for one in self.all_containers if one.spec.name == function and one.ordered_at < until]
        return sum(min(until, math.inf if one.ended_at is None else one.ended_at) - one.ordered_at for one in mine)
