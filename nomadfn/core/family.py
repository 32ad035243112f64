"""Which inputs made which calls: what `FunctionCall.get_call_graph` and `nomadfn input` show of one.

Only calls that an input has made are in a family, with the calls above them. What became of their inputs is
remembered beyond the calls themselves, which are dropped with their results. A family is bounded, and ends with the
last of its calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from nomadfn_agent import wire
from nomadfn_agent.wire import outcome

if TYPE_CHECKING:
    from .model import Call, Input
    from .state import State

INPUTS_MAX = 1_000
"""Inputs that a family remembers, and calls."""

PENDING, SUCCESS, FAILURE, TERMINATED, TIMEOUT, INIT_FAILURE = range(6)
"""What became of an input, in the numbers of Modal's `InputStatus`."""
_FAILURES = {
    "InputCancellation": TERMINATED,
    "FunctionTimeoutError": TIMEOUT,
    "TimeoutError": TIMEOUT,
    "DeadlineExceededError": TIMEOUT,
    "ExecutionError": INIT_FAILURE,
}


class Member(NamedTuple):
    """One call of a family."""

    function: str
    module: str
    parent: str
    """Id of the input that made it, or empty."""


class Node(NamedTuple):
    """One input of a call graph."""

    input: str
    call: str
    container: str
    """The one that runs it; empty where none does."""
    status: int
    function: str
    module: str
    parent: str


class Family:
    __slots__ = ("members", "outcomes", "truncated")

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        """By the calls' ids."""
        self.outcomes: dict[tuple[str, int], int] = {}
        """Call and index of inputs that are done, and what became of them."""
        self.truncated = False

    def note(self, one: Input, status: int, payload: bytes) -> None:
        """An input has its result."""
        if len(self.outcomes) < INPUTS_MAX:
            self.outcomes[one.call.id, one.index] = status_of(status, payload)
        else:
            self.truncated = True

    def add(self, call: Call) -> None:
        if len(self.members) < INPUTS_MAX:
            call.family = self
            self.members[call.id] = member_of(call)
        else:
            self.truncated = True


def join(state: State, call: Call) -> None:
    """Put a call that an input has made into the family of that input."""
    parsed = parse_input_id(call.parent)
    above = state.calls.get(parsed[0]) if parsed is not None else None
    if above is None:
        return
    if above.family is None:
        Family().add(above)
    assert above.family is not None
    above.family.add(call)


def member_of(call: Call) -> Member:
    spec = call.function.spec
    name = f"{spec.program_name}.{call.method}" if call.method else spec.program_name
    return Member(name, spec.module, call.parent)


def status_of(status: int, payload: bytes) -> int:
    """The status of a result as `InputStatus` has it."""
    kind = status & (wire.REF - 1)
    if kind == wire.OK:
        return SUCCESS
    if kind == wire.EXCEPTION or status & wire.REF:
        return FAILURE
    return _FAILURES.get(outcome.decode_failure(payload).error, FAILURE)


def input_id(call: str, index: int) -> str:
    """As `current_input_id()` gives it in the function."""
    return f"in-{call.removeprefix('fc-')}-{index}"


def parse_input_id(id: str) -> tuple[str, int] | None:
    """Call and index of an input's id; None for what is no such id."""
    prefix, _, rest = id.partition("-")
    call, _, index = rest.rpartition("-")
    if prefix != "in" or not call or not index.isdecimal():
        return None
    return f"fc-{call}", int(index)


def graph(state: State, call: Call) -> tuple[list[Node], bool]:
    """All inputs of the family of a call, at most INPUTS_MAX, and whether there are more."""
    family = call.family
    members = family.members if family is not None else {call.id: member_of(call)}
    nodes: list[Node] = []
    for id, member in members.items():
        for index, container, status in _inputs(state, id, family):
            if len(nodes) >= INPUTS_MAX:
                return nodes, True
            nodes.append(Node(input_id(id, index), id, container, status, *member))
    return nodes, family is not None and family.truncated


def _inputs(state: State, id: str, family: Family | None) -> Iterator[tuple[int, str, int]]:
    """Index, container and status of the inputs of a call: those that are there, then those that were."""
    from .model import COMMITTING, RUNNING

    call = state.calls.get(id)
    there: set[int] = set()
    if call is not None:
        holders = holders_of(call)
        for one in call.inputs():
            there.add(one.index)
            container = holders.get(one.delivery, "") if one.state == RUNNING else ""
            status = status_of(one.status, one.payload) if one.state >= COMMITTING else PENDING
            yield one.index, container, status
    if family is not None:
        for (other, index), status in family.outcomes.items():
            if other == id and index not in there:
                yield index, "", status


def holders_of(call: Call) -> dict[int, str]:
    """Delivery → container, of the inputs of a call that are in one."""
    return {
        delivery: container.id
        for container in call.function.containers.values()
        for delivery, one in container.held.items()
        if one.call is call
    }
