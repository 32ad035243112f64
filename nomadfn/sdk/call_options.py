"""What is said of one call beside its arguments: until when its inputs are of use, and how urgent they are.

`f.call_options(deadline=3, priority=5)` is `f` itself, same containers and all, whose calls say so. They cannot be
arguments of `.remote`, since those are all the function's own.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from nomadfn.exception import InvalidError

PRIORITY_MAX = 100


@dataclass(frozen=True)
class CallOptions:
    """Of one call, from the moment on at which it is made."""

    priority: int = 0
    expires_at: float | None = None
    """By this process's monotonic clock."""

    @property
    def rest_s(self) -> float | None:
        """Seconds that are left until the deadline, never below 0; None without one."""
        return None if self.expires_at is None else max(0.0, self.expires_at - time.monotonic())


NO_OPTIONS = CallOptions()


@dataclass(frozen=True)
class CallSettings:
    """What `call_options` was given: a deadline that begins to run with each call."""

    priority: int = 0
    deadline_s: float | None = None

    def begin(self) -> CallOptions:
        return CallOptions(self.priority, None if self.deadline_s is None else time.monotonic() + self.deadline_s)


def check(owner: str, deadline: Any, priority: Any) -> CallSettings:
    """Raises InvalidError unless `deadline` is None or seconds above 0, and `priority` from -100 to 100."""
    if deadline is not None:
        good = isinstance(deadline, int | float) and not isinstance(deadline, bool) and math.isfinite(deadline)
        if not good or deadline <= 0:
            raise InvalidError(
                f"{owner}: deadline={deadline!r} must be a number of seconds from the call on, above 0; "
                f"leave it out for inputs that are of use whenever they run"
            )
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > PRIORITY_MAX:
        raise InvalidError(
            f"{owner}: priority={priority!r} must be a whole number from -{PRIORITY_MAX} to {PRIORITY_MAX}; "
            f"calls have 0 unless they say otherwise, and higher ones go first"
        )
    return CallSettings(int(priority), None if deadline is None else float(deadline))
