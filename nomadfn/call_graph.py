"""What `FunctionCall.get_call_graph` gives; also found as `modal.call_graph`."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


class InputStatus(enum.IntEnum):
    """What has become of an input; a number that is not here reads as PENDING."""

    PENDING = 0
    SUCCESS = 1
    FAILURE = 2
    TERMINATED = 3
    """It was cancelled."""
    TIMEOUT = 4
    INIT_FAILURE = 5
    """No container for it could be started."""

    @classmethod
    def _missing_(cls, value: object) -> InputStatus:
        return cls.PENDING


@dataclass
class InputInfo:
    """One input, with the inputs of the calls that it has made."""

    input_id: str
    function_call_id: str
    task_id: str
    """The container that runs it; empty where none does."""
    status: InputStatus
    function_name: str
    module_name: str
    children: list[InputInfo] = field(default_factory=list)


def tree(nodes: Iterable[Sequence[Any]]) -> list[InputInfo]:
    """The inputs that no other input of `nodes` has made, each with its children."""
    infos: dict[str, InputInfo] = {}
    parents: dict[str, str] = {}
    for input_id, call, container, status, function, module, parent in nodes:
        infos[input_id] = InputInfo(input_id, call, container, InputStatus(status), function, module)
        parents[input_id] = parent
    tops: list[InputInfo] = []
    for input_id, info in infos.items():
        above = infos.get(parents[input_id])
        (tops if above is None else above.children).append(info)
    return tops
