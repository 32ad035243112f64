"""A function's containers: who gets which inputs, what comes back, and what happens when one is lost.

A container holds as many inputs as it has slots. For functions whose run time is known to be short it is
sent more ahead, about `AHEAD_S` of work, and what it has not started is recalled when it stops making
progress. After a loss, what the container held runs again alone: only so can the input that kills its
container be told from those that were with it.
"""

from __future__ import annotations

import heapq
import math

from nomadfn_agent import wire

from . import limits, retries
from .effects import Deliver, Interrupt, Notice, Recall, StopContainer
from .model import (
    DELAYED,
    DISPATCH,
    DRAINING,
    PENDING,
    READY,
    REQUEUE,
    RETRY,
    RUNNING,
    STARTING,
    STOPPING,
    Container,
    Function,
    Input,
)
from .state import STATUS_MASK, State, drop_blob, fail, finish, forget_claim, is_claim, is_live

AHEAD_S = 0.005
AHEAD_MAX = 256
AHEAD_BELOW_S = 0.05
"""Functions that take longer get nothing ahead."""
STUCK_S = 0.02
"""A container that gave no output for this long (or `STUCK_RUNS` of its usual run times, if that is more), though it
has work ahead, is asked for it back."""
STUCK_RUNS = 3
RECALL_AGAIN_S = 0.25
"""The answer to a recall may be lost with a connection."""
MAX_LOSSES = 8
START_TRIES = 3
START_BACKOFF_MAX_S = 30.0
STOP_GRACE_S = 5.0
DEADLINE_TEXT = "its deadline passed before it was started"
_WEIGHT = 0.3
_STEP_S = 0.001
"""A usual run time at most doubles, and this, with one frame: one long input among many short ones says little."""


def ahead(function: Function) -> int:
    """How many inputs a container may hold beyond its slots."""
    mean_s = function.mean_run_s
    if mean_s is None or mean_s > AHEAD_BELOW_S or function.spec.max_batch_size:
        return 0
    return min(AHEAD_MAX, math.ceil(AHEAD_S / max(mean_s, 1e-6)))


def stuck_after_s(function: Function) -> float:
    return max(STUCK_S, STUCK_RUNS * (function.mean_run_s or 0.0))


def list_container(function: Function, container: Container, extra: int) -> None:
    """Put a container that has room into the heap that `dispatch` takes from."""
    if container.state != READY or container.alone:
        return
    held = len(container.held)
    kind = 1 if held < container.slots else 2 if held < container.slots + extra else 0
    if kind == 0 or container.listed == 1 or container.listed == kind:
        return
    container.listed = kind
    heapq.heappush(function.idle_heap if kind == 1 else function.roomy_heap, (container.index, container.id))


def dispatch(state: State, now: float, function: Function) -> None:
    """Give pending inputs to containers with room, the lowest index first, evenly where there is work ahead."""
    if function.waiting_inputs == 0 or not function.ready:
        return
    extra = ahead(function)
    if function.queue.alone:
        _dispatch_alone(state, now, function, extra)
    reserved = _reserve(function)
    visited: list[Container] = []
    for heap, kind in ((function.idle_heap, 1), (function.roomy_heap, 2)):
        while heap and function.waiting_inputs:
            container = function.containers.get(heapq.heappop(heap)[1])
            if container is None or container.listed != kind:
                continue
            container.listed = 0
            if container.state != READY or container.alone:
                continue
            visited.append(container)
            if reserved:
                reserved -= 1
            elif not _fill(state, now, function, container, extra, function.ready - len(visited) + 1):
                break
    for container in visited:
        list_container(function, container, extra)


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
        if not is_live(alone[0]):
            alone.popleft()
            continue
        if alone[0].deadline <= now:
            fail(state, now, alone.popleft(), "TimeoutError", DEADLINE_TEXT)
            continue
        container = function.containers.get(heapq.heappop(heap)[1])
        if container is None or container.listed != 1:
            continue
        container.listed = 0
        if container.state != READY or container.alone:
            continue
        if container.held:
            skipped.append(container)
            continue
        container.alone = True
        _hand_over(state, now, function, container, [alone.popleft()])
    for container in skipped:
        list_container(function, container, extra)


def _fill(state: State, now: float, function: Function, container: Container, extra: int, takers: int) -> bool:
    """Give one container its share, with `takers` of them left to serve; False when nothing live was left."""
    held = len(container.held)
    if held and now - container.progress > stuck_after_s(function):
        extra = 0
    room = container.slots + extra - held
    share = max(container.slots - held, math.ceil(function.waiting_inputs / max(1, takers)))
    if min(room, share) <= 0:
        return True
    inputs = function.queue.take(min(room, share), is_live)
    expired = [one for one in inputs if one.deadline <= now]
    if expired:
        for one in expired:
            fail(state, now, one, "TimeoutError", DEADLINE_TEXT)
        inputs = [one for one in inputs if one.state != RUNNING and is_live(one)]
    if inputs:
        _hand_over(state, now, function, container, inputs)
    return bool(inputs or expired)


def _hand_over(state: State, now: float, function: Function, container: Container, inputs: list[Input]) -> None:
    if not container.held:
        container.progress = now
    held = container.held
    delivery = state.next_delivery
    deliver: Deliver | None = None
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
        if deliver is None or one.call is not call or size > wire.MAX_FRAME_BYTES:
            call = one.call
            size = len(one.payload)
            deliver = Deliver(container.id, call.id, [], [], [], [])
            state.effects.append(deliver)
        deliver.deliveries.append(delivery)
        deliver.indexes.append(one.index)
        deliver.payloads.append(one.payload)
        deliver.codecs.append(one.codec | wire.DURABLE if durable else one.codec)
        delivery += 1
    state.next_delivery = delivery


def take_outputs(
    state: State,
    now: float,
    container: Container,
    deliveries: list[int],
    statuses: list[int],
    payloads: list[bytes],
    run_ns: int,
) -> None:
    """What a container gave back. A delivery that it does not hold is of an old attempt and is ignored."""
    function = container.function
    held = container.held
    policy = function.spec.retries
    function.totals.count(statuses)
    if deliveries:
        mean_s = run_ns / 1e9 / len(deliveries)
        old = function.mean_run_s
        function.mean_run_s = mean_s if old is None else old + _WEIGHT * (min(mean_s, 2 * old + _STEP_S) - old)
        function.failures = 0
    for delivery, status, payload in zip(deliveries, statuses, payloads, strict=True):
        one = held.pop(delivery, None)
        if one is None or one.state != RUNNING or one.delivery != delivery:
            function.totals.count([status], -1)
            # What an earlier leader has seen may be the result that it has kept: the sweep of blobs decides.
            if delivery >= state.first_delivery:
                drop_blob(state, status, payload)
            continue
        if status & STATUS_MASK == wire.EXCEPTION and retries.may_retry(policy, one.retries + 1):
            drop_blob(state, status, payload)
            function.totals.count([status], -1)
            _retry(state, now, function, one)
            continue
        if one.call.durable and (over := limits.check_result(state.limits, state.live_bytes, len(payload))) is not None:
            drop_blob(state, status, payload)
            function.totals.count([status], -1)
            fail(state, now, one, over.error, over.message)
            continue
        finish(state, now, one, status, payload)
    container.progress = now
    _after_release(state, now, container)


def _retry(state: State, now: float, function: Function, one: Input) -> None:
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
    _requeue(state, container.function, [container.held.pop(d) for d in deliveries if d in container.held])
    _after_release(state, now, container)


def _requeue(state: State, function: Function, inputs: list[Input]) -> None:
    for one in reversed(inputs):
        if one.state != RUNNING:
            continue
        if is_claim(one):
            forget_claim(state, one)
            continue
        durable = one.call.durable
        one.move(REQUEUE)
        function.running[durable] -= 1
        function.pending[durable] += 1
        if one.suspect:
            function.queue.alone.append(one)
        else:
            function.queue.put_back(one.call.caller, one.call.priority, [one])
    state.touch(function)


def _after_release(state: State, now: float, container: Container) -> None:
    function = container.function
    if not container.held:
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
    list_container(function, container, 0)
    state.touch(function)


def stop(state: State, container: Container, reason: str, grace_s: float = STOP_GRACE_S) -> None:
    """End a container. One that holds inputs is drained first, unless `grace_s` is 0."""
    if container.state == READY:
        container.function.ready -= 1
    if container.held and grace_s:
        if container.state in (STARTING, READY):
            container.state = DRAINING
            container.stop_reason = reason
        return
    if container.state != STOPPING or grace_s == 0:
        container.state = STOPPING
        container.stop_reason = reason
        state.effects.append(StopContainer(container.id, grace_s, reason))


def lost(state: State, now: float, container: Container, what: str, tail: str) -> None:
    """The cluster says that the container is gone; what it held runs again, or fails after too many losses."""
    function = container.function
    if container.state == READY:
        function.ready -= 1
    was_starting = container.state == STARTING
    wanted_end = container.state == STOPPING
    del state.containers[container.id]
    del function.containers[container.id]
    inputs = [one for one in container.held.values() if one.state == RUNNING]
    container.held.clear()
    if container.adopted:
        pass  # It has not failed here.
    elif was_starting:
        _start_failed(state, now, function, f"the container ended before it was ready: {what}{_quote(tail)}")
    elif inputs and not wanted_end:
        _count_loss(state, now, function, container, inputs, what, tail)
    else:
        _requeue(state, function, inputs)
        if not inputs and not wanted_end:
            text = f"container {container.index} ended while it was idle: {what}"
            _pause_starts(state, now, function, text + _quote(tail))
    state.touch(function)


def _count_loss(
    state: State, now: float, function: Function, container: Container, inputs: list[Input], what: str, tail: str
) -> None:
    text = f"container {container.index} was lost ({what}) with {len(inputs)} inputs; they run again, one at a time"
    state.effects.append(Notice(function.app, function.spec.name, text))
    function.totals.lost += len(inputs)
    alone = len(inputs) == 1
    survivors = []
    for one in inputs:
        one.suspect = True
        one.losses += alone
        if one.losses >= MAX_LOSSES:
            text = (
                f"input {one.index} of {function.spec.name} lost its container {one.losses} times while it ran alone; "
                f"last: {what}{_quote(tail)}"
            )
            fail(state, now, one, "InternalFailure", text)
        else:
            survivors.append(one)
    _requeue(state, function, survivors)


def start_failed(state: State, now: float, container: Container, text: str, grace_s: float = STOP_GRACE_S) -> None:
    """The runner could not load the function; should it not end by itself, it is made to after `grace_s`."""
    if container.state != STARTING:
        return
    container.state = STOPPING
    container.stop_reason = "its function could not be loaded"
    state.effects.append(StopContainer(container.id, grace_s, container.stop_reason))
    _start_failed(state, now, container.function, text)


def _pause_starts(state: State, now: float, function: Function, text: str) -> bool:
    """A container ended unasked without a result: from the third in a row on, the next one waits longer each time."""
    function.failures += 1
    function.last_error = text
    if function.failures < START_TRIES:
        return False
    pause_s = min(START_BACKOFF_MAX_S, 2.0 ** (function.failures - START_TRIES))
    function.retry_start_at = now + pause_s
    return True


def _start_failed(state: State, now: float, function: Function, text: str) -> None:
    """After some tries what waits fails with what was seen, unless another container of the function serves."""
    if not _pause_starts(state, now, function, text) or function.ready:
        return
    message = f"no container of {function.spec.name} could be started, after {function.failures} tries. {text}"
    state.effects.append(Notice(function.app, function.spec.name, message))
    for one in list(function.queue):
        if one.state in (PENDING, DELAYED):
            fail(state, now, one, "ExecutionError", message)
    function.queue.clear()


def _quote(tail: str) -> str:
    return f"; its last output:\n{tail.rstrip()}" if tail.strip() else "; it wrote nothing"


def watch(state: State, now: float, container: Container) -> float:
    """Recall what is stuck behind a long input and end what runs over its time; returns when to look again."""
    function = container.function
    if container.state == STARTING:
        limit_s = function.spec.startup_timeout_s
        if function.unplaced and not container.pid:
            container.started = now  # It waits for a place, and has not begun to start.
        if now - container.started >= limit_s:
            _give_up_start(state, now, container, limit_s)
        return container.started + limit_s
    if not container.held:
        return math.inf
    again = container.progress + function.spec.timeout_s
    if now >= again:
        _time_out(state, now, container)
        return math.inf
    if len(container.held) > container.slots:
        stuck_at = max(container.progress + stuck_after_s(function), container.recalled + RECALL_AGAIN_S)
        if now < stuck_at:
            return min(again, stuck_at)
        container.recalled = now
        state.effects.append(Recall(container.id, list(container.held)[container.slots :]))
    return again


def _give_up_start(state: State, now: float, container: Container, limit_s: float) -> None:
    start_failed(state, now, container, f"it was not ready within startup_timeout={limit_s:g} s", grace_s=0.0)


def _time_out(state: State, now: float, container: Container) -> None:
    """The attempt is over: the container is ended, its siblings go back to the queue.

    Which input ran is certain only where the container held no more than its slots; else all run again alone.
    """
    function = container.function
    inputs = list(container.held.values())
    if len(inputs) > container.slots:
        for one in inputs:
            one.suspect = True
        inputs = []
    timeout_s = function.spec.timeout_s
    for one in inputs[:1]:
        if one.state != RUNNING:
            continue
        container.held.pop(one.delivery)
        if retries.may_retry(function.spec.retries, one.retries + 1):
            _retry(state, now, function, one)
        else:
            text = f"{function.spec.name} ran longer than its timeout of {timeout_s:g} s and was stopped"
            fail(state, now, one, "FunctionTimeoutError", text)
    stop(state, container, "timeout", grace_s=0.0)


def interrupt_all(state: State, container: Container) -> None:
    """Cancel whatever the container runs."""
    if container.held:
        state.effects.append(Interrupt(container.id, list(container.held)))
