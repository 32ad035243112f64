"""What a deadline does: an input that has not been started by then is not started any more."""

from __future__ import annotations

from . import retries, streams
from .model import DELAYED, PENDING, Function, Input
from .state import State, fail, is_live

DEADLINE_TEXT = "its deadline passed before it was started"


def drop_late(state: State, now: float, function: Function) -> None:
    """Inputs that wait though their deadline is over fail at once, and not only when their turn comes."""
    for one in function.deadlines.due(now):
        if one.state in (PENDING, DELAYED):
            miss_deadline(state, now, one)
    state.touch(function)


def in_time(state: State, now: float, inputs: list[Input]) -> list[Input]:
    """Those of `inputs` whose deadline is not over; the others fail."""
    expired = [one for one in inputs if one.deadline <= now]
    if not expired:
        return inputs
    for one in expired:
        miss_deadline(state, now, one)
    return [one for one in inputs if is_live(one)]


def miss_deadline(state: State, now: float, one: Input) -> None:
    """Of a call that waits the error is a builtin TimeoutError, too; of a spawn that would read as "not there yet"."""
    fail(state, now, one, "TimeoutError" if one.call.durable else "DeadlineExceededError", DEADLINE_TEXT)


def may_retry(state: State, now: float, one: Input) -> bool:
    """Whether an attempt that failed is followed by another one: it has retries left, and time until its deadline."""
    policy = one.call.function.spec.retries
    again = one.retries + 1
    if state.streams and streams.begun(state, one):
        return False
    return retries.may_retry(policy, again) and now + retries.delay_s(policy, again) < one.deadline
