"""What the JSON body of a call says."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from nomadfn.core.limits import PRIORITIES, PRIORITY_TEXT
from nomadfn.exception import InvalidError

FORM = (
    'the body of a call is {"args": [...], "kwargs": {...}, "deadline": seconds, "priority": number}, '
    'for a class with "parameters": {...}'
)


def read_call(body: dict[str, Any]) -> dict[str, Any]:
    """The payload and the options of a call, checked; whatever it does not say may be left out."""
    args, kwargs = body.pop("args", []), body.pop("kwargs", {})
    deadline, priority = body.pop("deadline", None), body.pop("priority", 0)
    parameters = body.pop("parameters", {})
    if body:
        raise InvalidError(f'unknown key "{next(iter(body))}"; {FORM}')
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise InvalidError(f'"args" must be a list and "kwargs" an object; {FORM}')
    if not isinstance(parameters, dict):
        raise InvalidError(f'"parameters" must be an object, the values of the class\'s parameters; {FORM}')
    if deadline is not None and (type(deadline) not in (int, float) or not 0 < deadline < math.inf):
        raise InvalidError('"deadline" must be a number of seconds from now on, above 0')
    if type(priority) is not int or priority not in PRIORITIES:
        raise InvalidError(f'"priority" is out of range: {PRIORITY_TEXT}')
    payload = msgspec.json.encode({"args": args, "kwargs": kwargs})
    options = {"deadline_s": deadline, "priority": priority}
    return {"payload": payload, **options, **({"parameters": parameters} if parameters else {})}
