"""A function's containers as its program sees them: figures, and how many there may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import options
from .blocking import blocking
from .target import Target


@dataclass(frozen=True)
class FunctionStats:
    """A function's figures at one moment."""

    backlog: int
    """Inputs that wait."""
    num_total_runners: int
    """Containers that are ready."""
    num_running_inputs: int = 0
    input_headroom: int = 0
    """Inputs that the containers could take at once."""


@dataclass(frozen=True)
class AutoscalerSettings:
    """How many containers a function may have; times in seconds."""

    min_containers: int
    max_containers: int | None
    buffer_containers: int
    scaledown_window: float


class Unchanged:
    """Stands for a setting that is left out, where None says something else."""

    def __repr__(self) -> str:
        return "..."


UNCHANGED = Unchanged()
_FIELDS = {"scaledown_window": "scaledown_window_s"}


class PoolVerbs:
    """What a `Function` can be asked of its containers."""

    name: str

    async def _target(self) -> Target:
        raise NotImplementedError

    @blocking
    async def get_current_stats(self) -> FunctionStats:
        """Its backlog and containers now."""
        target = await self._target()
        body = await target.client.request("function.stats", {"function_id": target.function_id})
        return FunctionStats(**body)

    @blocking
    async def update_autoscaler(
        self,
        *,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: float | None = None,
    ) -> AutoscalerSettings:
        """Change how many containers it has, until the next deploy; what is left out stays.

        Returns the settings that are now in force.
        """
        given = options.check_autoscaler(self.name, min_containers, max_containers, buffer_containers, scaledown_window)
        return await _ask(self, "function.scale", given)

    @property
    def autoscaler(self) -> Autoscaler:
        """How many containers it has: `.autoscaler.settings()`, `.autoscaler.update(...)`."""
        return Autoscaler(self)


class Autoscaler:
    """`fn.autoscaler`: the settings in force, and changing them until the next deploy."""

    def __init__(self, owner: PoolVerbs) -> None:
        self._owner = owner

    def __repr__(self) -> str:
        return f"{self._owner!r}.autoscaler"

    @blocking
    async def settings(self) -> AutoscalerSettings:
        """The settings that are in force now."""
        return await _ask(self._owner, "function.settings", {})

    @blocking
    async def update(
        self,
        *,
        min_containers: int | Unchanged | None = UNCHANGED,
        max_containers: int | Unchanged | None = UNCHANGED,
        buffer_containers: int | Unchanged | None = UNCHANGED,
        scaledown_window: float | Unchanged | None = UNCHANGED,
    ) -> AutoscalerSettings:
        """Change settings until the next deploy; what is left out stays, and None is as the decorator says again.

        Returns the settings that are now in force.
        """
        named = {
            "min_containers": min_containers,
            "max_containers": max_containers,
            "buffer_containers": buffer_containers,
            "scaledown_window": scaledown_window,
        }
        values = {name: None if isinstance(value, Unchanged) else value for name, value in named.items()}
        given = options.check_autoscaler(self._owner.name, **values)
        reset = [_FIELDS.get(name, name) for name, value in named.items() if value is None]
        return await _ask(self._owner, "function.scale", {**given, "reset": reset})


async def _ask(owner: PoolVerbs, operation: str, body: dict[str, Any]) -> AutoscalerSettings:
    target = await owner._target()
    said = await target.client.request(operation, {"function_id": target.function_id, **body})
    return AutoscalerSettings(
        said["min_containers"], said["max_containers"], said["buffer_containers"], said["scaledown_window_s"]
    )
