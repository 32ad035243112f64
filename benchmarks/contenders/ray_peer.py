"""Ray, as tasks and as two actors. Its dashboard and its usage report are off."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import ray

from benchmarks.bodies import BODIES, async_sleep

from . import AT_ONCE, WORKERS

OBJECT_STORE_BYTES = 1 << 30


def _init() -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        configure_logging=False,
        log_to_driver=False,
    )


class RayTasks:
    def start(self, folder: Path) -> None:
        _init()
        self._tasks = {name: ray.remote(body) for name, body in BODIES.items()}

    def map(self, body: str, inputs: Sequence[Any]) -> Sequence[Any]:
        submit = self._tasks[body].remote
        results: list[Any] = ray.get([submit(value) for value in inputs])
        return results

    def call(self, body: str, value: Any) -> Any:
        return ray.get(self._tasks[body].remote(value))

    def spawn(self, body: str, inputs: Sequence[Any]) -> None:
        submit = self._tasks[body].remote
        for value in inputs:
            submit(value)

    def stop(self) -> None:
        ray.shutdown()


class Worker:
    def run(self, body: str, value: Any) -> Any:
        return BODIES[body](value)


class Sleeper:
    async def sleep(self, duration_s: float) -> None:
        await async_sleep(duration_s)


class RayActors:
    def start(self, folder: Path) -> None:
        _init()
        make = ray.remote(num_cpus=1)(Worker)
        self._actors = [make.remote() for _ in range(WORKERS)]
        self._sleeper: Any = None

    def map(self, body: str, inputs: Sequence[Any]) -> Sequence[Any]:
        results: list[Any] = ray.get(self._submit(body, inputs))
        return results

    def call(self, body: str, value: Any) -> Any:
        return ray.get(self._actors[0].run.remote(body, value))

    def spawn(self, body: str, inputs: Sequence[Any]) -> None:
        self._submit(body, inputs)

    def sleep_at_once(self, count: int, duration_s: float) -> None:
        if self._sleeper is None:
            self._sleeper = ray.remote(num_cpus=0, max_concurrency=AT_ONCE)(Sleeper).remote()
        ray.get([self._sleeper.sleep.remote(duration_s) for _ in range(count)])

    def _submit(self, body: str, inputs: Sequence[Any]) -> list[Any]:
        turns = cycle([actor.run.remote for actor in self._actors])
        return [submit(body, value) for submit, value in zip(turns, inputs, strict=False)]

    def stop(self) -> None:
        ray.shutdown()
