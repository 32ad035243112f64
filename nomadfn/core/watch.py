"""What happens to a container by the passing of time alone: recalls, timeouts, starts that take too long.

Each container that holds something, or starts, says when it is to be looked at next (`State.look`): when the next of
these things is due, and LOOK_S later at the latest. So time costs nothing for those that idle.
"""

from __future__ import annotations

from heapq import heappop
from math import inf

from .autoscaler import DRAIN_WITHIN_S
from .effects import Interrupt, Recall
from .lateness import may_retry
from .losses import start_failed
from .model import RUNNING, STARTING, STOPPING, Container, Function, Input
from .pool import RECALL_AGAIN_S, mark_stuck, retry_later, stop, stuck_after_s
from .state import LOOK_S, State, fail

INTERRUPTED_S = 5.0
"""How long a coroutine that ran over its timeout may take to end before its container is ended."""
LOOK_LEAST_S = 0.001


def watch_due(state: State, now: float) -> None:
    """Look at every container whose time has come."""
    looks = state.looks
    while looks and looks[0][0] <= now:
        at, id = heappop(looks)
        container = state.containers.get(id)
        if container is None or container.look_at != at:
            continue
        container.look_at = inf
        if container.state != STOPPING:
            watch(state, now, container)
            if (next_at := next_look(now, container)) < inf:
                state.look(container, max(next_at, now + LOOK_LEAST_S))
    if looks:
        state.wake_at = min(state.wake_at, looks[0][0])


def next_look(now: float, container: Container) -> float:
    """When time alone may change something about it."""
    function, at = container.function, now + LOOK_S
    if container.state == STOPPING:
        return inf
    if container.state == STARTING:
        return min(at, container.started + function.spec.startup_timeout_s)
    if container.interrupted:
        at = min(at, next(iter(container.interrupted.values())))
    if container.held:
        since = container.progress
        if container.counts_slots:
            since = next(iter(container.begun.values()), since)
        at = min(at, since + function.spec.timeout_s)
        if not container.late:
            at = min(at, container.progress + DRAIN_WITHIN_S)
        if _has_ahead(container):
            at = min(at, _recall_at(container))
    elif not container.interrupted:
        return inf
    return at


def watch(state: State, now: float, container: Container) -> None:
    """Recall what is stuck behind a long input, and end what runs over its time."""
    if container.state == STARTING:
        _watch_start(state, now, container)
    elif container.interrupted and next(iter(container.interrupted.values())) <= now:
        stop(state, container, "a function that ran over its timeout did not stop", grace_s=0.0)
    elif container.held:
        if not container.late and now - container.progress >= DRAIN_WITHIN_S:
            container.late = True
            container.function.changed[container.id] = container
            state.touch(container.function)
        if container.counts_slots:
            overdue = _overdue(now, container)
            if overdue:
                return _time_out(state, now, container, overdue)
        elif now >= container.progress + container.function.spec.timeout_s:
            return _time_out_first(state, now, container)
        _recall(state, now, container)
    return None


def _recall(state: State, now: float, container: Container) -> None:
    if _has_ahead(container) and now >= _recall_at(container):
        container.recalled = now
        mark_stuck(container)
        ahead = list(container.queued) if container.counts_slots else list(container.held)[container.slots :]
        state.effects.append(Recall(container.id, [delivery for delivery in ahead if delivery in container.held]))


def _has_ahead(container: Container) -> bool:
    """Whether it holds inputs beyond its slots that it can be asked for. A batch is never sent ahead of its slot."""
    return container.used > container.slots and not container.batches


def _recall_at(container: Container) -> float:
    return max(container.progress + stuck_after_s(container.function), container.recalled + RECALL_AGAIN_S)


def _watch_start(state: State, now: float, container: Container) -> None:
    function = container.function
    limit_s = function.spec.startup_timeout_s
    if (function.unplaced or container.preparing) and not container.pid:
        container.started = now  # It waits for a place or its environment, and has not begun to start.
    if now - container.started >= limit_s:
        text = f"it was not ready within startup_timeout={limit_s:g} s"
        start_failed(state, now, container, text, grace_s=0.0)


def _overdue(now: float, container: Container) -> list[int]:
    """The deliveries (batches by their first) that have run for longer than they may."""
    overdue = []
    for delivery, since in container.begun.items():
        if now < since + container.function.spec.timeout_s:
            break
        overdue.append(delivery)
    return overdue


def _time_out(state: State, now: float, container: Container, overdue: list[int]) -> None:
    """These attempts are over. A coroutine is cancelled; threads cannot be, so their container is ended instead.

    The others that it holds go back to the queue with its end.
    """
    function = container.function
    deliveries = overdue
    holders = overdue  # One delivery for each slot that is still held.
    if container.batches:
        deliveries = [one for one, first in container.batch_of.items() if first in overdue]
        holders = list({container.batch_of[one]: one for one in reversed(deliveries)}.values())
    inputs = [container.held.pop(delivery) for delivery in deliveries if delivery in container.held]
    for one in inputs:
        _run_over(state, now, function, one)
    for delivery in deliveries:
        container.release(now, delivery)
    function.changed[container.id] = container
    if not function.spec.is_async:
        return stop(state, container, "timeout", grace_s=0.0)
    for delivery in holders:
        container.interrupted[delivery] = now + INTERRUPTED_S
    state.effects.append(Interrupt(container.id, deliveries))
    state.touch(function)
    return None


def _time_out_first(state: State, now: float, container: Container) -> None:
    """The attempt is over: the container is ended, its siblings go back to the queue.

    Which input ran is certain only where nothing was sent ahead of it; else all run again alone.
    """
    inputs = list(container.held.values())
    if len(inputs) > container.slots:
        for one in inputs:
            one.suspect = True
        inputs = []
    for one in inputs[:1]:
        if one.state == RUNNING:
            container.held.pop(one.delivery)
            _run_over(state, now, container.function, one)
    stop(state, container, "timeout", grace_s=0.0)


def _run_over(state: State, now: float, function: Function, one: Input) -> None:
    if one.state != RUNNING:
        return None
    if may_retry(state, now, one):
        return retry_later(state, now, function, one)
    text = f"{function.spec.name} ran longer than its timeout of {function.spec.timeout_s:g} s and was stopped"
    fail(state, now, one, "FunctionTimeoutError", text)
    return None
