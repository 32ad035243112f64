"""Single inputs by their ids: which there are, what they do, and what people do with one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nomadfn_agent import wire
from nomadfn_agent.wire import outcome

from ..exception import ConflictError, InvalidError, NotFoundError
from . import calls, pool
from .family import holders_of, input_id, parse_input_id
from .model import COMMITTING, DELAYED, NO_DEADLINE, RUNNING, STATE_NAMES, WAKE, Function, Input
from .state import STATUS_MASK, State

LOOK_AT_MAX = 100_000
"""Inputs that one list looks at; a million pending ones shall not hold up everybody else."""
OUTCOMES = {wire.OK: "succeeded", wire.EXCEPTION: "raised", wire.FAILURE: "failed"}
STATES = ("pending", "running", "delayed", "done")


def find(state: State, now: float, id: str) -> Input:
    """The input of that id. Raises InvalidError, NotFoundError, or OutputExpiredError."""
    parsed = parse_input_id(id)
    if parsed is None:
        raise InvalidError(f"{id!r} is no id of an input; they look like in-…-0, as `nomadfn input list` shows them")
    call = state.calls.get(parsed[0])
    if call is None:
        call = calls.find_durable(state, now, parsed[0])
    one = call.get(parsed[1])
    if one is None:
        raise NotFoundError(f"no input {id} is here: its call has no such index, or its caller has read the result")
    return one


def listed(
    state: State, functions: list[Function], call: str, states: list[str], limit: int
) -> tuple[list[Input], bool]:
    """Inputs of these functions, the oldest calls first, and whether there may be more than these."""
    wanted = {id(one) for one in functions}
    found: list[Input] = []
    seen = 0
    chosen = [state.calls[call]] if call in state.calls else [] if call else list(state.calls.values())
    for known in chosen:
        if id(known.function) not in wanted:
            continue
        for one in known.inputs():
            seen += 1
            if states and state_of(one) not in states:
                continue
            if len(found) >= limit or seen > LOOK_AT_MAX:
                return found, True
            found.append(one)
    return found, False


def state_of(one: Input) -> str:
    return "done" if one.state >= COMMITTING else STATE_NAMES[one.state]


def describe(one: Input, container: str = "") -> dict[str, Any]:
    """What there is to say of an input; the container is that which runs it."""
    call = one.call
    done = one.state >= COMMITTING
    said: dict[str, Any] = {
        "id": input_id(call.id, one.index),
        "call": call.id,
        "index": one.index,
        "function": call.function.spec.program_name,
        "method": call.method,
        "kind": ("remote", "map", "spawn", "spawn_map")[call.kind] if call.kind >= 0 else "unknown",
        "state": state_of(one),
        "outcome": OUTCOMES.get(one.status & STATUS_MASK, "") if done else "",
        "container": container,
        "called_at": call.created,
        "priority": call.priority,
        "deadline": None if one.deadline == NO_DEADLINE else one.deadline,
        "retries": one.retries,
        "losses": one.losses,
        "made_by": call.parent,
        "bytes": len(one.payload),
        "error": None,
    }
    if done and not one.status & wire.REF:
        error = said["error"] = _error_of(one.status, one.payload)
        if error is not None and error["kind"] == "InputCancellation":
            said["outcome"] = "cancelled"
    return said


def _error_of(status: int, payload: bytes) -> dict[str, str] | None:
    if status == wire.FAILURE:
        failure = outcome.decode_failure(payload)
        return {"kind": failure.error, "message": failure.message, "traceback": ""}
    if status == wire.EXCEPTION:
        raised = outcome.decode_raised(payload)
        return {"kind": raised.type_name, "message": raised.text, "traceback": raised.traceback}
    return None


def describe_all(found: list[Input]) -> Iterator[dict[str, Any]]:
    holders: dict[str, dict[int, str]] = {}
    for one in found:
        container = ""
        if one.state == RUNNING:
            if one.call.id not in holders:
                holders[one.call.id] = holders_of(one.call)
            container = holders[one.call.id].get(one.delivery, "")
        yield describe(one, container)


def cancel(state: State, now: float, one: Input, *, terminate: bool) -> bool:
    """Cancel one input; False where it has its result already."""
    return calls.cancel_inputs(state, now, one.call, [one], terminate=terminate) > 0


def retry_now(state: State, now: float, one: Input) -> None:
    """End the wait for the next attempt. Raises ConflictError where there is nothing to wait for."""
    if one.state != DELAYED:
        raise ConflictError(
            f"the input is {state_of(one)}, and only one that waits for its next attempt can be told not to wait; "
            "what is done has no arguments here any more: call the function again"
        )
    function = one.call.function
    function.queue.forget_delayed(one)
    one.move(WAKE)
    if one.suspect:
        function.queue.alone.append([one])
    else:
        pool.enqueue(function, now, one.call, [one])
    state.touch(function)
