"""Containers that ended unasked or never became ready, and what becomes of the inputs that they held."""

from __future__ import annotations

from nomadfn_agent import wire

from . import streams
from .effects import Notice, StopContainer
from .model import DELAYED, PENDING, READY, RUNNING, STARTING, STOPPING, Container, Function, Input
from .pool import STOP_GRACE_S, requeue
from .state import State, fail, finish

MAX_LOSSES = 8
START_TRIES = 3
START_BACKOFF_MAX_S = 30.0


def lost(state: State, now: float, container: Container, what: str, tail: str) -> None:
    """The cluster says that the container is gone; what it held runs again, or fails after too many losses."""
    function = container.function
    function.changed[container.id] = container
    if container.state == READY:
        function.ready -= 1
    was_starting = container.state == STARTING
    wanted_end = container.state == STOPPING
    del state.containers[container.id]
    del function.containers[container.id]
    function.ahead.forget(container)
    inputs = held = [one for one in container.held.values() if one.state == RUNNING]
    batches = _batches(container)
    container.forget_all()
    if state.streams:
        inputs = streams.fail_begun(state, now, container, held, f"{what}{_quote(tail)}")
    if container.adopted:
        pass  # It has not failed here.
    elif was_starting:
        _start_failed(state, now, function, f"the container ended before it was ready: {what}{_quote(tail)}")
    elif inputs and not wanted_end:
        _count_loss(state, now, function, container, batches or [inputs], what, tail)
    else:
        requeue(state, now, function, inputs)
        if not held and not wanted_end:
            text = f"container {container.index} ended while it was idle: {what}"
            _pause_starts(state, now, function, text + _quote(tail))
    state.touch(function)


def _batches(container: Container) -> list[list[Input]]:
    """What it held of each batch."""
    batches: dict[int, list[Input]] = {}
    for delivery, first in container.batch_of.items():
        if (one := container.held.get(delivery)) is not None and one.state == RUNNING:
            batches.setdefault(first, []).append(one)
    return list(batches.values())


def _count_loss(
    state: State, now: float, function: Function, container: Container, groups: list[list[Input]], what: str, tail: str
) -> None:
    """`groups` are the container's inputs, by batch where they came in batches."""
    count = sum(map(len, groups))
    again = "they run again, one at a time" if count > 1 else "it runs again, alone"
    if function.spec.max_batch_size and count > 1:
        again = "they run again, a batch by halves"
    text = f"container {container.index} was lost ({what}) with {count} input{'s'[: count != 1]}; {again}"
    state.effects.append(Notice(function.app, function.spec.name, text))
    function.totals.lost += count
    for group in groups:
        for one in group:
            one.suspect = True
            one.losses += count == 1
            if one.losses >= MAX_LOSSES:
                text = (
                    f"input {one.index} of {function.spec.name} lost its container {one.losses} times while it ran "
                    f"alone; last: {what}{_quote(tail)}"
                )
                fail(state, now, one, "InternalFailure", text)
        requeue(state, now, function, group)


def start_failed(
    state: State, now: float, container: Container, text: str, *, grace_s: float = STOP_GRACE_S, raised: bytes = b""
) -> None:
    """The runner could not load the function; should it not end by itself, it is made to after `grace_s`."""
    if container.state != STARTING:
        return
    container.function.changed[container.id] = container
    container.state = STOPPING
    container.stop_reason = "its function could not be loaded"
    state.effects.append(StopContainer(container.id, grace_s, container.stop_reason))
    _start_failed(state, now, container.function, text, raised)


def _pause_starts(state: State, now: float, function: Function, text: str) -> bool:
    """A container ended unasked without a result: from the third in a row on, the next one waits longer each time."""
    function.failures += 1
    function.last_error = text
    if function.failures < START_TRIES:
        return False
    pause_s = min(START_BACKOFF_MAX_S, 2.0 ** (function.failures - START_TRIES))
    function.retry_start_at = now + pause_s
    return True


def _start_failed(state: State, now: float, function: Function, text: str, raised: bytes = b"") -> None:
    """After some tries what waits fails with what was seen, unless another container of the function serves."""
    if not _pause_starts(state, now, function, text) or function.ready:
        return
    message = f"no container of {function.spec.name} could be started, after {function.failures} tries. {text}"
    state.effects.append(Notice(function.app, function.spec.name, message))
    for one in list(function.queue):
        if one.state in (PENDING, DELAYED) and raised:
            function.totals.failed += 1
            finish(state, now, one, wire.EXCEPTION, raised)
        elif one.state in (PENDING, DELAYED):
            fail(state, now, one, "ExecutionError", message)
    function.queue.clear()


def _quote(tail: str) -> str:
    return f"; its last output:\n{tail.rstrip()}" if tail.strip() else "; it wrote nothing"
