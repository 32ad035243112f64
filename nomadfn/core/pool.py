"""A function's containers: who gets which inputs, what comes back, and what happens when one is lost.

A container holds as many inputs as it has slots. For functions whose run time is known to be short it is
sent more ahead, about `AHEAD_S` of work, and what it has not started is recalled when it stops making
progress. After a loss, what the container held runs again alone: only so can the input that kills its
container be told from those that were with it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from nomadfn_agent import wire

from . import batching, limits, retries, streams, web
from .effects import Deliver, StopContainer
from .lateness import in_time, may_retry, miss_deadline
from .model import (
    DISPATCH,
    DRAINING,
    NO_DEADLINE,
    READY,
    REQUEUE,
    RETRY,
    RUNNING,
    STARTING,
    STOPPING,
    Call,
    Container,
    Function,
    Input,
)
from .state import LOOK_S, STATUS_MASK, State, drop_blob, fail, finish, forget_claim, is_claim, is_live

AHEAD_S = 0.005
SHARED_AHEAD_S = 0.0005
"""The same while callers come with an input now and then: it stands behind what was sent ahead of it."""
SHARED_FOR_S = 1.0
"""How long a function counts as shared after somebody came while others waited."""
ALL_AT_ONCE = 2
"""So much more where several inputs run at once: those that began together end together."""
AHEAD_MAX = 512
AHEAD_BELOW_S = 0.05
"""Functions that take longer get nothing ahead."""
SHARE_S = 0.0005
"""A container is sent at least so much work in one frame, where there is so much: more containers are no faster."""
STUCK_S = 0.005
"""A container that gave no output for this long (or `STUCK_RUNS` of its usual run times, if that is more), though it
has work ahead, is asked for it back. It gives one each millisecond while it runs short inputs, unless it gets no
processor: then it is asked in vain, which costs two messages."""
STUCK_RUNS = 3
QUIET_S = 0.002
"""After so long without an output a container gets nothing more ahead, and is asked for what it has if another one has
nothing to do."""
RECALL_AGAIN_S = 0.25
"""The answer to a recall may be lost with a connection."""
STOP_GRACE_S = 5.0
EXIT_GRACE_S = 20.0
"""For a class with an `@exit` method."""
_WEIGHT = 0.3
_GROWTH, _STEP_S = 4, 0.0001
"""With one frame a usual run time grows at most by this factor, and this time spread over its outputs: one long input
among many short ones says little."""


def enqueue(function: Function, now: float, call: Call, inputs: Sequence[Input]) -> None:
    """Inputs of one call begin to wait."""
    function.queue.add(call.caller, call.priority, inputs)
    if inputs[0].deadline != NO_DEADLINE:
        function.deadlines.add(inputs[0].deadline, inputs)
    if function.spec.max_batch_size:
        batching.note_arrival(function, now, len(inputs))


def ahead(function: Function) -> int:
    """How many inputs a container may hold beyond its slots."""
    mean_s, spec = function.mean_run_s, function.spec
    if mean_s is None or mean_s > AHEAD_BELOW_S or spec.max_batch_size or spec.streams or spec.is_web:
        return 0
    ahead_s = function.ahead_s if spec.max_inputs == 1 else ALL_AT_ONCE * function.ahead_s
    return min(AHEAD_MAX, math.ceil(ahead_s * spec.max_inputs / max(mean_s, 1e-6)))


def stuck_after_s(function: Function) -> float:
    """How long a container may give no output before it is asked for what it has ahead."""
    return quiet_after_s(function) if function.ahead.hungry else max(STUCK_S, STUCK_RUNS * (function.mean_run_s or 0.0))


def quiet_after_s(function: Function) -> float:
    return max(QUIET_S, STUCK_RUNS * (function.mean_run_s or 0.0))


def list_container(function: Function, container: Container, extra: int) -> None:
    """Put a container that has room into the heap that `dispatch` takes from."""
    if container.state != READY or container.alone or container.id in container.function.ahead.stuck:
        return
    used = container.used
    kind = 1 if used < min(function.target, container.slots) else 2 if used < container.slots + extra else 0
    if kind == 0 or container.listed == 1 or container.listed == kind:
        return
    container.listed = kind
    heapq.heappush(function.idle_heap if kind == 1 else function.roomy_heap, (container.index, container.id))


def dispatch(state: State, now: float, function: Function) -> None:
    """Give pending inputs to containers with room, the lowest index first, evenly where there is work ahead."""
    if function.waiting_inputs == 0 or not function.ready:
        _note_hunger(state, function)
        return
    if function.queue.visited:
        function.queue.visited = False
        function.ahead_s, function.shared_until = SHARED_AHEAD_S, now + SHARED_FOR_S
    elif function.shared_until <= now:
        function.ahead_s = AHEAD_S
    extra = ahead(function)
    if function.queue.alone:
        _dispatch_alone(state, now, function, extra)
    if function.spec.max_batch_size:
        _dispatch_batches(state, now, function)
    else:
        _dispatch_inputs(state, now, function, extra)
        _note_hunger(state, function)


def _note_hunger(state: State, function: Function) -> None:
    """Once a container has nothing to do, what others have ahead is asked for sooner."""
    heap, sent = function.idle_heap, function.ahead
    before, sent.hungry = sent.hungry, False
    if not heap or not sent.holders or function.waiting_inputs:
        return
    while heap and ((idle := function.containers.get(heap[0][1])) is None or idle.listed != 1):
        heapq.heappop(heap)
    if not heap:
        return
    sent.hungry = True
    if not before:
        for container in list(sent.holders.values()):
            if container.used > container.slots and container.state == READY:
                state.look(container, container.progress + quiet_after_s(function))
            else:
                del sent.holders[container.id]


def _dispatch_inputs(state: State, now: float, function: Function, extra: int) -> None:
    if function.queue.parts:
        batching.put_parts_back(function)
    reserved = _reserve(function)
    takers = function.ready + 1 - len(function.ahead.stuck)
    visited: list[Container] = []
    for heap, kind in ((function.idle_heap, 1), (function.roomy_heap, 2)):
        while heap and function.waiting_inputs:
            container = function.containers.get(heapq.heappop(heap)[1])
            if container is None or container.listed != kind:
                continue
            container.listed = 0
            if container.state != READY or container.alone or container.id in function.ahead.stuck:
                continue
            visited.append(container)
            if reserved:
                reserved -= 1
            elif not _fill(state, now, function, container, extra, takers - len(visited)):
                break
    for container in visited:
        list_container(function, container, extra)


def _dispatch_batches(state: State, now: float, function: Function) -> None:
    reserved = _reserve(function)
    kept: list[Container] = []
    while batching.is_ready(state, now, function) and (container := batching.next_container(function)) is not None:
        if reserved:
            reserved -= 1
            kept.append(container)
            continue
        inputs = in_time(state, now, batching.take_next(function))
        if inputs:
            batching.hand_over(state, now, function, container, inputs)
        list_container(function, container, 0)
    for container in kept:
        list_container(function, container, 0)


def _reserve(function: Function) -> int:
    """How many containers get nothing more, so that they become empty for the inputs that have to run alone."""
    waiting = len(function.queue.alone)
    if not waiting:
        return 0
    busy_alone = sum(container.alone for container in function.containers.values())
    return max(0, min(waiting, max(1, function.ready - 1)) - busy_alone)


def _dispatch_alone(state: State, now: float, function: Function, extra: int) -> None:
    """Suspect inputs go to containers that hold nothing, one each."""
    alone = function.queue.alone
    skipped: list[Container] = []
    heap = function.idle_heap
    while alone and heap:
        part = in_time(state, now, [one for one in alone[0] if is_live(one)])
        if not part:
            alone.popleft()
            continue
        container = function.containers.get(heapq.heappop(heap)[1])
        if container is None or container.listed != 1:
            continue
        container.listed = 0
        if container.state != READY or container.alone:
            continue
        if container.used:
            skipped.append(container)
            continue
        container.alone = True
        alone.popleft()
        hand_over = batching.hand_over if function.spec.max_batch_size else _hand_over
        hand_over(state, now, function, container, part)
    for container in skipped:
        list_container(function, container, extra)


def _fill(state: State, now: float, function: Function, container: Container, extra: int, takers: int) -> bool:
    """Give one container its share, with `takers` of them left to serve; False when nothing live was left."""
    used = container.used
    if used and now - container.progress > quiet_after_s(function):
        extra = 0
    room = container.slots + extra - used
    share = max(
        min(function.target, container.slots) - used,
        math.ceil(function.waiting_inputs / max(1, takers)),
        math.ceil(extra * (SHARE_S / function.ahead_s)),
    )
    if min(room, share) <= 0:
        return True
    taken = function.queue.take(min(room, share), is_live)
    inputs = in_time(state, now, taken)
    if inputs:
        hand_over = _hand_over if function.spec.web is None else web.hand_over
        hand_over(state, now, function, container, inputs)
    return bool(taken)


def _hand_over(state: State, now: float, function: Function, container: Container, inputs: list[Input]) -> None:
    if not container.held:
        container.progress = now
        container.late = False
    held = container.held
    counts_slots = container.slots > 1
    delivery = state.next_delivery
    deliveries: list[int] = []
    indexes: list[int] = []
    payloads: list[bytes] = []
    codecs: list[int] = []
    call = None
    size = 0
    for one in inputs:
        one.move(DISPATCH)
        one.delivery = delivery
        held[delivery] = one
        durable = one.call.kind >= wire.SPAWN
        function.pending[durable] -= 1
        function.running[durable] += 1
        size += len(one.payload)
        if one.call is not call or size > wire.MAX_FRAME_BYTES:
            call = one.call
            size = len(one.payload)
            deliveries, indexes, payloads, codecs = [], [], [], []
            state.effects.append(Deliver(container.id, call.id, deliveries, indexes, payloads, codecs, call.method))
        deliveries.append(delivery)
        indexes.append(one.index)
        payloads.append(one.payload)
        codecs.append(one.codec | wire.DURABLE if durable else one.codec)
        if counts_slots:
            container.begin(now, delivery)
        delivery += 1
    state.next_delivery = delivery
    function.changed[container.id] = container
    if len(held) > container.slots:
        function.ahead.holders[container.id] = container
        state.look(container, now + stuck_after_s(function))
    elif container.look_at == math.inf:
        state.look(container, now + min(LOOK_S, function.spec.timeout_s))
    if state.streams:
        streams.begin(state, container, inputs)


def take_outputs(
    state: State,
    now: float,
    container: Container,
    deliveries: list[int],
    statuses: list[int],
    payloads: list[bytes],
    run_ns: int,
    stuck_ns: int = 0,
) -> None:
    """What a container gave back. A delivery that it does not hold is of an old attempt and is ignored."""
    function = container.function
    held = container.held
    function.totals.count(statuses)
    raised = batching.whole_batches(container, deliveries, statuses) if wire.BATCH_RAISED in statuses else {}
    done = _release(container, now, deliveries) if container.counts_slots else len(deliveries)
    if done:
        function.mean_run_s = _mean_run_s(function.mean_run_s, run_ns / 1e9 / done, done)
        function.failures = 0
    for delivery, status, payload in zip(deliveries, statuses, payloads, strict=True):
        one = held.pop(delivery, None)
        if one is None or one.state != RUNNING or one.delivery != delivery:
            function.totals.count([status], -1)
            # What an earlier leader has seen may be the result that it has kept: the sweep of blobs decides.
            if delivery >= state.first_delivery:
                drop_blob(state, status, payload)
            continue
        if status == wire.BATCH_RAISED:
            function.totals.count([status], -1)
            raised[delivery].append(one)
            continue
        if status & STATUS_MASK == wire.EXCEPTION and may_retry(state, now, one):
            drop_blob(state, status, payload)
            function.totals.count([status], -1)
            retry_later(state, now, function, one)
            continue
        if one.call.durable and (over := limits.check_result(state.limits, state.live_bytes, len(payload))) is not None:
            drop_blob(state, status, payload)
            function.totals.count([status], -1)
            fail(state, now, one, over.error, over.message)
            continue
        finish(state, now, one, status, payload)
    if raised:
        batching.run_again(state, function, raised.values())
    if stuck_ns and held:
        _note_stuck(state, now, container, stuck_ns / 1e9)
    else:
        container.progress = now
        container.late = False
        function.ahead.stuck.pop(container.id, None)
    _after_release(state, now, container)


def _note_stuck(state: State, now: float, container: Container, stuck_s: float) -> None:
    """What it runs has done so for a while: what it gave back was finished before that, and is no progress."""
    function = container.function
    container.progress = max(container.progress, now - stuck_s)
    if stuck_s > quiet_after_s(function):
        mark_stuck(container)
    if container.used > container.slots:
        state.look(container, container.progress + stuck_after_s(function))


def mark_stuck(container: Container) -> None:
    """It was asked for what it has ahead. Where several inputs run at once, some may still make progress."""
    if not container.counts_slots and container.state == READY:
        container.function.ahead.stuck[container.id] = container


def _mean_run_s(old: float | None, mean_s: float, count: int) -> float:
    """What is usual after `count` more outputs of one frame: many say more than one."""
    if old is None:
        return mean_s
    weight = 1.0 - (1.0 - _WEIGHT) ** count
    return old + weight * (min(mean_s, _GROWTH * old + _STEP_S / count) - old)


def _release(container: Container, now: float, deliveries: list[int]) -> int:
    """Free the slots of these deliveries; returns how many inputs, or whole batches, those were."""
    done = 0
    for delivery in deliveries:
        container.interrupted.pop(delivery, None)
        done += container.release(now, delivery)
    return done


def retry_later(state: State, now: float, function: Function, one: Input) -> None:
    if is_claim(one):
        forget_claim(state, one)
        return
    one.retries += 1
    function.totals.retried += 1
    durable = one.call.durable
    function.running[durable] -= 1
    function.pending[durable] += 1
    one.move(RETRY)
    function.queue.delay(one, now + retries.delay_s(function.spec.retries, one.retries))


def give_back(state: State, now: float, container: Container, deliveries: list[int]) -> None:
    """The answer to a recall: these were not started and come first again."""
    container.recalled = -math.inf
    inputs = [container.held.pop(d) for d in deliveries if d in container.held]
    if container.counts_slots:
        _release(container, now, deliveries)
    requeue(state, now, container.function, inputs)
    _after_release(state, now, container)


def requeue(state: State, now: float, function: Function, inputs: list[Input]) -> None:
    """Inputs that a container had and does not run wait again, before all others: suspects alone, a batch by halves."""
    back: dict[tuple[str, int], list[Input]] = {}
    suspects: list[Input] = []
    for one in inputs:
        if one.state != RUNNING:
            continue
        if is_claim(one):
            forget_claim(state, one)
            continue
        call = one.call
        one.move(REQUEUE)
        function.running[call.durable] -= 1
        function.pending[call.durable] += 1
        if one.deadline <= now:
            miss_deadline(state, now, one)
        elif one.suspect:
            suspects.append(one)
        else:
            back.setdefault((call.caller, call.priority), []).append(one)
    for (caller, priority), group in back.items():
        function.queue.put_back(caller, priority, group)
    batched = function.spec.max_batch_size > 0
    function.queue.alone.extend(batching.halves(suspects) if batched else [[one] for one in suspects])
    if back and batched:
        batching.note_return(function, now, sum(map(len, back.values())))
    state.touch(function)


def _after_release(state: State, now: float, container: Container) -> None:
    function = container.function
    function.changed[container.id] = container
    if not container.held:
        function.ahead.stuck.pop(container.id, None)
        container.alone = False
        container.idle_since = now
        if container.state == DRAINING:
            stop(state, container, container.stop_reason or "drained")
    list_container(function, container, ahead(function))
    state.touch(function)


def add(state: State, now: float, function: Function, index: int) -> Container:
    id = f"ct-{state.epoch:06x}{state.next_container:010x}"
    state.next_container += 1
    container = Container(id, function, index, now)
    function.containers[id] = container
    state.containers[id] = container
    function.changed[id] = container
    state.look(container, now + min(LOOK_S, function.spec.startup_timeout_s))
    state.touch(function)
    return container


def ready(state: State, now: float, container: Container, slots: int) -> None:
    """The container has loaded its function."""
    if container.state != STARTING:
        return
    container.state = READY
    container.adopted = False
    container.slots = slots
    container.progress = container.idle_since = now
    function = container.function
    function.ready += 1
    function.changed[container.id] = container
    list_container(function, container, 0)
    state.touch(function)


def stop(state: State, container: Container, reason: str, grace_s: float | None = None) -> None:
    """End a container. One that holds inputs is drained first, unless `grace_s` is 0."""
    if grace_s is None:
        grace_s = EXIT_GRACE_S if container.function.spec.has_exit else STOP_GRACE_S
    container.function.changed[container.id] = container
    if container.state == READY:
        container.function.ready -= 1
        container.function.ahead.stuck.pop(container.id, None)
    if container.held and grace_s:
        if container.state in (STARTING, READY):
            container.state = DRAINING
            container.stop_reason = reason
        return
    if container.state != STOPPING or grace_s == 0:
        container.state = STOPPING
        container.stop_reason = reason
        state.effects.append(StopContainer(container.id, grace_s, reason))
