"""What has come of inputs, counted."""

from __future__ import annotations

from nomadfn_agent import wire


class Totals:
    """What has come of a function's inputs since this control service leads; never less than before.

    All apps of one name share it, so that it outlives the app of a single run.
    """

    __slots__ = ("accepted", "app", "cancelled", "failed", "function", "lost", "retried", "succeeded")

    def __init__(self, app: str = "", function: str = "") -> None:
        self.app = app
        self.function = function
        self.reset()

    def reset(self) -> None:
        self.accepted = self.succeeded = self.retried = 0
        self.failed = 0
        """Without a result, whatever the reason: cancelled ones are among them."""
        self.cancelled = 0
        self.lost = 0
        """Attempts that ended with their container."""

    def count(self, statuses: list[int], sign: int = 1) -> None:
        """Add outputs by their statuses, all of a frame at once; with a `sign` of -1 take them off."""
        good = statuses.count(wire.OK) + statuses.count(wire.OK | wire.REF)
        self.succeeded += sign * good
        self.failed += sign * (len(statuses) - good)
