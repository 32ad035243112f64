"""A function's containers as its program sees them: figures, and how many there may be."""

from __future__ import annotations

from dataclasses import dataclass

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
        target = await self._target()
        body = await target.client.request("function.scale", {"function_id": target.function_id, **given})
        return AutoscalerSettings(
            body["min_containers"], body["max_containers"], body["buffer_containers"], body["scaledown_window_s"]
        )
