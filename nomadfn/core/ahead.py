"""What a function's containers were sent beyond their slots, as far as `pool` and `watch` have to find it quickly."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import Container


class Ahead:
    __slots__ = ("holders", "hungry", "stuck")

    def __init__(self) -> None:
        self.holders: dict[str, Container] = {}
        """Containers that have inputs ahead, or had when somebody looked last."""
        self.hungry = False
        """A container has nothing to do, and nothing waits, while others have inputs ahead."""
        self.stuck: dict[str, Container] = {}
        """Containers that are ready and in a long input, as it seems, and get nothing before they give something."""

    def forget(self, container: Container) -> None:
        self.holders.pop(container.id, None)
        self.stuck.pop(container.id, None)
