"""One world around one core, from one seed: random programs, random faults, a clock that jumps.

`World(seed).run()` lets it all happen, looks at the invariants after every step, waits until everything has
drained, and returns the hash of the trace. A fault raises `AssertionError` or `InternalError` with the seed.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from math import inf

from nomadfn_agent import wire
from simulated_clients import Client, ClientCall, failure_of, index_of
from simulated_containers import SimulatedContainer
from simulated_journal import Journal
from simulated_programs import Programs, Traits
from simulated_streams import check_kept

from nomadfn.core import effects, records
from nomadfn.core.core import Core
from nomadfn.core.model import DONE, NO_DEADLINE, PENDING, READY, RUNNING, STARTING
from nomadfn.core.pool import ahead

DRAIN_LIMIT_S = 4_000.0
CLOCK_STEP_S = 7_200.0
LOSS_EXCUSES_S = 10.0
"""After a loss or a deploy there may be fewer containers than `min_containers` for a while."""
STATUSES = {wire.OK: "ok", wire.EXCEPTION: "exception", wire.FAILURE: "failure"}


class World:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.elapsed = 0.0
        self.offset = 1_700_000_000.0
        self.epoch = 0
        self.steps = 0
        self._next_tick = inf
        self.containers: dict[str, SimulatedContainer] = {}
        self.clients: list[Client] = []
        self.apps_of: dict[str, str] = {}
        self.visible: dict[tuple[str, int], tuple[int, bytes]] = {}
        self.gone_apps: set[str] = set()
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = 0
        self._runs: dict[tuple[str, int], list[SimulatedContainer]] = {}
        self.broken: set[tuple[str, int]] = set()
        """Streams whose container was lost after it had given something."""
        self._raised: dict[tuple[str, int], int] = {}
        self._stopped: set[str] = set()
        self._passed: dict[str, dict[str, tuple[int, int]]] = {}
        """Function → caller → how many inputs of others were started since its turn, and how many waited at most."""
        self._lost_at: dict[str, float] = {}
        self._story: deque[str] = deque(maxlen=60)
        self._trace = hashlib.sha256()
        self._journal = Journal()
        self.programs = Programs(self)
        self.core = self._new_core()
        self._restore_apps()

    # Time

    @property
    def now(self) -> float:
        """The core's clock."""
        return self.offset + self.elapsed

    def at(self, when: float, action: Callable[[], object]) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (max(when, self.elapsed), self._sequence, action))

    def after(self, delay_s: float, action: Callable[[], object]) -> None:
        self.at(self.elapsed + delay_s, action)

    def in_this_epoch(self, action: Callable[[], object]) -> Callable[[], None]:
        """`action`, which does nothing any more once the control service has crashed."""
        epoch = self.epoch

        def act() -> None:
            if self.epoch == epoch:
                action()

        return act

    def latency(self) -> float:
        return self.random.choice((0.0, 0.0002, 0.0005, 0.002, 0.02))

    def note(self, *what: object) -> None:
        line = f"{self.elapsed:.6f} {' '.join(map(str, what))}"
        self._trace.update(line.encode())
        self._story.append(line)

    # Running

    def run(self) -> str:
        """Returns the hash of the trace."""
        try:
            self._tick()
            self.programs.begin()
            self._until(lambda: not self.programs.open_plans and self._all_settled(), "every call has its results")
            self._end_clients()
            self._until(self._at_rest, "the pools are at rest")
            self._check_visible()
            self._stop_everything()
            self._until(lambda: not self.core.state.containers and not self.core.state.apps, "all apps are gone")
            self._check_nothing_left()
        except BaseException as error:
            story = "\n".join(self._story)
            error.add_note(f"seed {self.seed}, at {self.elapsed:.3f} s, epoch {self.epoch}; what came before:\n{story}")
            raise
        return self._trace.hexdigest()

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        limit_s = self.elapsed + DRAIN_LIMIT_S
        while not condition():
            assert self._events, "nothing happens any more"
            assert self.elapsed < limit_s, f"never came true: {what}; {self._describe()}"
            self.elapsed, _, action = heapq.heappop(self._events)
            action()
            self._turn()

    def _turn(self) -> None:
        """As the control service does after every event."""
        self.steps += 1
        for effect in self.core.settle(self.now):
            self._carry_out(effect)
        batch, number = self.core.take_records()
        if batch:
            self._journal.queue.append((batch, number))
        self._write()
        self._check()
        if self.core.wake_at < self.now + self._next_tick - self.elapsed:
            self._tick_within(self.core.wake_at - self.now)

    def _tick(self) -> None:
        delay_s = self.core.tick(self.now)
        self._next_tick = inf
        self._tick_within(delay_s)

    def _tick_within(self, delay_s: float) -> None:
        """Tick then, if not before. A loaded machine ticks late."""
        at = self.elapsed + max(0.0005, delay_s) * self.random.choice((1, 3, 6))
        if at < self._next_tick:
            self._next_tick = at
            self.at(at, self.in_this_epoch(lambda: self._tick() if self._next_tick == at else None))

    # The journal

    def _write(self) -> None:
        journal = self._journal
        if journal.writing or not journal.queue:
            return
        journal.writing = True
        self.after(self.random.choice((0.0, 0.001, 0.01, 0.1)), self.in_this_epoch(self._written))

    def _written(self) -> None:
        self._journal.writing = False
        number = self._journal.write(len(self._journal.queue))
        self.note("durable", number)
        if number:
            self.core.durable(self.now, number)

    def compact(self) -> None:
        """Take a snapshot, a few records at a time, while everything goes on."""
        journal = self._journal
        if journal.compacting:
            return
        journal.compacting = True
        self.note("compact")
        batch, number = self.core.take_records()
        if batch:
            journal.queue.append((batch, number))
        snapshot = self.core.snapshot()
        journal.queue.append(snapshot)
        self._take_slice(snapshot, [])

    def _take_slice(self, snapshot: Iterator[records.Record], bodies: list[bytes]) -> None:
        part = list(itertools.islice(snapshot, self.random.randint(1, 2)))
        if not part:
            self._journal.queue.append(bodies)
            return
        bodies.append(records.encode_segment(part))
        wait_s = self.random.choice((0.0, 0.01, 0.1, 0.3))
        self.after(wait_s, self.in_this_epoch(lambda: self._take_slice(snapshot, bodies)))

    # The core: its first start, its crashes

    def _new_core(self) -> Core:
        return Core(self.programs.limits, epoch=self.epoch, capacity=self.programs.capacity, capacity_reason="cores")

    def _restore_apps(self) -> None:
        """Its journal as it is, or all that a standby has read of it, which knows the apps only once it leads."""
        core, now = self.core, self.now
        as_standby = self.epoch % 2 == 1
        if as_standby:
            for segment in self._journal.chain:
                core.replay(records.decode_segment(segment))
        core.restore_app(now, "ap-deployed", self.programs.spec, "", True, self.programs.version)
        for client in self.clients:
            if client.spec is not None and not self.is_stopped(client.app) and not client.parent:
                core.restore_app(now, client.app, client.spec, "" if client.detached else client.id, False, 0)
        for id, variation in self.programs.variants.items():
            app = id.partition("/")[0]
            if app in core.state.apps and variation.base in core.state.apps[app].functions:
                core.put_variant(now, app, variation)
        if not as_standby:
            for segment in self._journal.segments:
                core.replay(records.decode_segment(segment))
        core.end_replay(now)

    def crash(self) -> None:
        """kill -9 of the control service; its containers end with it."""
        self.note("crash")
        journal = self._journal
        if journal.writing and self.random.random() < 0.5:
            journal.write(self.random.randint(0, len(journal.queue)))
        self._journal = Journal(journal.segments, journal.chain)
        for container in self.containers.values():
            container.die("the supervisor ended")
        self.epoch += 1
        self.containers.clear()
        self._runs.clear()
        for client in self.clients:
            client.cut()
        self.offset += self.random.uniform(-CLOCK_STEP_S, CLOCK_STEP_S)
        self.core = self._new_core()
        self._restore_apps()
        self._check_visible()
        for call in self.core.state.calls.values():
            self._take_visible(call.id)
        for client in self.clients:
            self.after(self.random.uniform(0, 2), client.connect)
        self._tick()

    # Effects

    def _carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Deliver():
                self.note("deliver", effect.container, effect.call, effect.deliveries, effect.indexes)
                self._check_turns(effect)
                for one in self.core.state.containers[effect.container].held.values():
                    late = one.delivery in effect.deliveries and one.deadline <= self.now
                    assert not late, f"{one.call.id}[{one.index}] is started after its deadline"
                self.containers[effect.container].receive(effect)
            case effects.DeliverBatch():
                self.note("batch", effect.container, effect.calls, effect.deliveries, effect.indexes)
                self._check_batch(effect)
                self.containers[effect.container].receive(effect)
            case effects.Consumed():
                if effect.container in self.containers:
                    self.containers[effect.container].receive(effect)
            case effects.Recall() | effects.Interrupt():
                self.note(type(effect).__name__, effect.container, effect.deliveries)
                if effect.container in self.containers:
                    self.containers[effect.container].receive(effect)
            case effects.StopContainer():
                self.note("stop", effect.container, effect.grace_s, effect.reason)
                self._check_stop(effect)
                if effect.container in self.containers:
                    self.containers[effect.container].receive(effect)
            case effects.StartContainer():
                self._start(effect)
            case effects.SendResults() | effects.SendParts() | effects.Accept() | effects.Reject():
                self.note(type(effect).__name__, effect.session, effect.call)
                for client in self.clients:
                    if client.id == effect.session:
                        client.receive(effect)
            case effects.Visible():
                self.note("visible", effect.call)
                self._take_visible(effect.call)
            case effects.AppGone():
                self.note("gone", effect.app)
                self.gone_apps.add(effect.app)
            case effects.Notice():
                self.note("notice", effect.text)
            case effects.FunctionGone():
                self.note("function gone", effect.app, effect.name)
                self.programs.variants.pop(f"{effect.app}/{effect.name}", None)
            case effects.DropBlob() | effects.FunctionChanged():
                pass

    def _start(self, effect: effects.StartContainer) -> None:
        container = effect.container
        function = container.function
        index = int(function.spec.program_name[1:])
        self.note("start", container.id, function.id, container.index)
        self.apps_of[container.id] = function.app
        there = len(function.containers)
        maximum = function.settings.max_containers
        assert maximum is None or there <= maximum, f"{there} containers of {function.id}, at most {maximum} may be"
        taken = [one.index for one in function.containers.values()]
        assert len(set(taken)) == len(taken), f"two containers of {function.id} have one index: {sorted(taken)}"
        if self.programs.capacity is not None and not any(traits.nests for traits in self.programs.traits):
            most = self.programs.capacity + len(self.core.state.functions)
            # Those that finish what they have are beside those that take over from them.
            total = sum(one.state in (STARTING, READY) for one in self.core.state.containers.values())
            assert total <= most, f"{total} containers over a capacity of {self.programs.capacity}"
        simulated = SimulatedContainer(self, container.id, index, function.spec.max_inputs)
        self.containers[container.id] = simulated
        simulated.start()

    def _take_visible(self, call_id: str) -> None:
        call = self.core.state.calls.get(call_id)
        known = self.programs.calls[call_id]
        if call is None:
            return
        for one in call.inputs():
            if one.state != DONE:
                continue
            key = (call_id, one.index)
            if key in self.visible:
                assert self.visible[key] == (one.status, one.payload), f"{key} has a second result"
                continue
            self.check_result(known, one.index, one.status, one.payload)
            self.visible[key] = (one.status, one.payload)
            known.results[one.index] = one.status

    # What containers and clients tell

    def begin_run(self, key: tuple[str, int], container: SimulatedContainer) -> None:
        others = self._runs.setdefault(key, [])
        for other in others:
            superseded = other.condemned or any(
                item.key == key and item.delivery in other.interrupted for item in other.running.values()
            )
            assert superseded or not other.alive, f"{key} runs in {other.id} and in {container.id}"
        others.append(container)
        self.note("run", container.id, *key)

    def end_run(self, key: tuple[str, int], container: SimulatedContainer) -> None:
        runs = self._runs.get(key, [])
        if container in runs:
            runs.remove(container)

    def lost(self, function: str) -> None:
        self._lost_at[function] = self.elapsed

    def raised(self, key: tuple[str, int]) -> int:
        self._raised[key] = self._raised.get(key, 0) + 1
        return self._raised[key]

    def accepted(self, call: ClientCall) -> None:
        """A durable call's inputs are safe from now on, whatever crashes."""
        known = self.core.state.calls.get(call.id)
        assert known is not None, f"accepted call {call.id} is unknown"
        assert known.accepted >= len(call.accepted), f"{call.id} has {known.accepted} of {len(call.accepted)}"

    def orphan_calls_of(self, app_or_function: str) -> None:
        for call in self.programs.calls.values():
            app, base = call.function.partition("/")[0], call.function.partition("@")[0]
            call.orphaned = call.orphaned or app_or_function in (app, base)

    def is_stopped(self, app_or_function: str) -> bool:
        app = app_or_function.partition("/")[0]
        known = self.core.state.apps.get(app)
        if known is not None and known.stopping and app not in self._stopped:
            owner = next(client for client in self.clients if client.app == app and client.spec is not None)
            assert owner.may_have_ended or owner.detached, f"{app} was stopped, its session is there"
            return True
        return (
            app in self._stopped or app in self.gone_apps or app_or_function.partition("@")[0] in self.programs.removed
        )

    def check_result(self, call: ClientCall, index: int, status: int, payload: bytes) -> None:
        """Whether this may be the result of that input."""
        work = call.works[index]
        function = self.programs.specs[index_of(call.function)]
        traits = self._traits_of(call.function)
        batched = function.max_batch_size > 0
        where = f"{call.id}[{index}] ({work})"
        self.note("result", call.id, index, STATUSES[status])
        if status == wire.OK:
            assert payload == b"done " + work.encode(), f"{where}: the result of another input"
            assert work.does not in ("poison", "hang"), f"{where}: cannot have run"
            return
        if status == wire.EXCEPTION:
            assert work.does == "raise", f"{where}: never raises"
            shared = batched and traits.hangs  # a batch that hangs costs all of it a retry
            # No attempt begins after the deadline, and none of what has given parts.
            excused = shared or call.deadline_s is not None or work.parts > 0
            assert work.times > function.retries.max_retries or excused, f"{where}: had retries left"
            return
        error = failure_of(payload)
        allowed = {
            "InputCancellation": call.cancelled or call.orphaned or self.is_stopped(call.function),
            "TimeoutError": call.deadline_s is not None and call.durable,
            "DeadlineExceededError": call.deadline_s is not None and not call.durable,
            "ExecutionError": traits.start_fails > 0,
            "FunctionTimeoutError": work.does == "hang" or (traits.hangs and (batched or work.parts > 0)),
            "InternalFailure": work.does == "poison" or work.parts > 0,
        }
        assert allowed.get(error, False), f"{where}: failed with {payload!r}"

    # Invariants

    def _check(self) -> None:
        self.core.check_invariants()
        check_kept(self)
        state = self.core.state
        assert state.containers.keys() == self.containers.keys(), "the core counts other containers than there are"
        for container in state.containers.values():
            if container.state == READY and container.used > 1:
                alone = not any(one.suspect and one.state == RUNNING for one in container.held.values())
                assert alone, f"{container.id} holds something beside an input that has to run alone"

    def _check_visible(self) -> None:
        """What was shown once stays, through every crash, until its time is over."""
        for (call_id, index), (status, payload) in self.visible.items():
            call = self.core.state.calls.get(call_id)
            one = call.get(index) if call is not None else None
            assert one is not None, f"the result of {call_id}[{index}] is lost"
            assert one.state == DONE, f"the result of {call_id}[{index}] is open again"
            assert (one.status, one.payload) == (status, payload), f"{call_id}[{index}] has another result"

    def _check_turns(self, effect: effects.Deliver) -> None:
        """Callers take turns: nobody waits while others get much more than one container's fill each."""
        container = self.core.state.containers.get(effect.container)
        served = self.core.state.calls.get(effect.call)
        if container is None or served is None or container.alone:
            return
        function = container.function
        waiting, timed = set(), set()
        for call in self.core.state.calls.values():
            if call.function is function and call.priority >= served.priority:
                pending = [one for one in call.inputs() if one.state == PENDING and not one.suspect]
                if pending:
                    waiting.add(call.caller)
                if any(one.deadline != NO_DEADLINE for one in pending):
                    timed.add(call.caller)
        # Somebody's turn may pass with an input whose deadline is over, which nobody sees here.
        waiting -= timed
        passed = self._passed.setdefault(function.id, {})
        for caller in list(passed):
            if caller not in waiting:
                del passed[caller]
        for caller in sorted(waiting - {served.caller}):
            count, most = passed.get(caller, (0, 0))
            count, most = count + len(effect.indexes), max(most, len(waiting))
            passed[caller] = count, most
            patience = 3 * (most + 1) * (container.slots + ahead(function))
            assert count <= patience, f"{caller} waits while {served.caller} is served, {count} inputs"
        passed.pop(served.caller, None)

    def _check_batch(self, effect: effects.DeliverBatch) -> None:
        """A batch is no larger than it may be, and takes a slot that was free."""
        container = self.core.state.containers[effect.container]
        assert len(container.batches) <= container.slots, f"{container.id} has {container.batches}"
        size = container.function.spec.max_batch_size
        assert 0 < len(effect.deliveries) <= size, f"a batch of {len(effect.deliveries)}, at most {size} may be in one"

    def _check_stop(self, effect: effects.StopContainer) -> None:
        container = self.core.state.containers.get(effect.container)
        if container is None or not effect.grace_s:
            return
        function = container.function
        app = self.core.state.apps.get(function.app)
        if app is None or app.stopping or container.revision != function.revision:
            return
        left = sum(one.state in (STARTING, READY) for one in function.containers.values())
        settings = function.settings
        least = min(settings.min_containers, settings.max_containers or settings.min_containers)
        lost_at_s = self._lost_at.get(function.id, -LOSS_EXCUSES_S)
        excused = self.elapsed - lost_at_s < LOSS_EXCUSES_S or self._traits_of(function.id).start_fails
        capacity = self.programs.capacity
        minimums = sum(one.settings.min_containers for one in self.core.state.functions.values())
        if capacity is not None and minimums > capacity:
            return  # There is no room for all of them, and each has its share.
        assert excused or left >= least, f"{function.id} goes down to {left}, below min_containers={least}"

    def _all_settled(self) -> bool:
        return all(client.settled for client in self.clients) and all(
            (call.id, index) in self.visible for call in self.programs.calls.values() for index in call.accepted
        )

    def _traits_of(self, function: str) -> Traits:
        return self.programs.traits[index_of(function)]

    def _at_rest(self) -> bool:
        """Every pool has what its settings say for no inputs, and everything is durable."""
        state = self.core.state
        if state.withheld or state.records or self._journal.queue or self._journal.writing:
            return False
        for function in state.functions.values():
            if function.waiting_inputs or function.running_inputs:
                return False
            traits = self._traits_of(function.id)
            app = state.apps.get(function.app)
            minimum = function.settings.min_containers if app is not None and not app.stopping else 0
            if self.programs.capacity is not None or traits.start_fails:
                if len(function.containers) > minimum:
                    return False
            elif function.ready != minimum or len(function.containers) != minimum:
                return False
        return True

    def _check_nothing_left(self) -> None:
        # Twice, because ending the sessions that are still away closes their calls.
        for _ in range(2):
            self.elapsed += self.programs.limits.retention_s + 10 * CLOCK_STEP_S
            self.core.tick(self.now)
            self._turn()
        state = self.core.state
        assert not state.calls, f"calls are left: {list(state.calls)[:5]}"
        assert not state.sessions, f"sessions are left: {list(state.sessions)[:5]}"
        for name in (
            "apps",
            "functions",
            "containers",
            "active",
            "dirty",
            "away",
            "unsent",
            "settled",
            "effects",
            "looks",
            "streams",
            "resuming",
        ):
            assert not getattr(state, name), f"{name} is not empty"

    def _describe(self) -> str:
        lines = []
        for function in self.core.state.functions.values():
            held = {one.id: (one.state, sorted(one.held)) for one in function.containers.values()}
            lines.append(
                f"{function.id}: pending {function.pending}, running {function.running}, wanted {function.wanted}, "
                f"containers {held}, blocked {function.blocked!r}, {list(function.decisions)[-2:]}"
            )
        for client in self.clients:
            open_calls = [call for call in client.calls.values() if not call.settled and not client.gone]
            lines += [
                f"{client.id} (connected={client.connected}): {call.id} of kind {call.kind}: {len(call.works)} inputs, "
                f"{len(call.results)} results, {len(call.accepted)} accepted, {len(call.refused)} refused, "
                f"waits={call.waits}"
                for call in open_calls
            ]
        return "\n".join(lines)

    def _end_clients(self) -> None:
        for client in self.clients:
            if not client.gone:
                if client.spec is not None:
                    self._stopped.add(client.app)
                client.end()
        self._turn()

    def _stop_everything(self) -> None:
        for app in list(self.core.state.apps.values()):
            self._stopped.add(app.id)
            if not app.stopping:
                self.core.stop_app(self.now, app.id)
        self._turn()
