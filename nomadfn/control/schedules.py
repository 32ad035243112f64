"""What is shown of a function's schedule."""

from __future__ import annotations

import math
from typing import Any

from nomadfn.core import calendar
from nomadfn.core.model import Function
from nomadfn.core.state import State


def schedule_of(state: State, function: Function) -> dict[str, Any]:
    """Its schedule in words and its next and last run, unix seconds; None where there is none."""
    spec, one = function.spec.schedule, state.schedules.get(function.id)
    fired = state.fired.get(function.id)
    return {
        "schedule": None if spec is None else calendar.shown(spec),
        "next_run": one.due if one is not None and math.isfinite(one.due) else None,
        "last_run": None if fired is None else fired.due,
    }
