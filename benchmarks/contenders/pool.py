"""`concurrent.futures.ProcessPoolExecutor`: what Python itself brings, with nothing between."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.bodies import BODIES

from . import WORKERS


class Pool:
    chunksize = 1

    def start(self, folder: Path) -> None:
        self._pool = ProcessPoolExecutor(WORKERS)

    def map(self, body: str, inputs: Sequence[Any]) -> Sequence[Any]:
        return list(self._pool.map(BODIES[body], inputs, chunksize=self.chunksize))

    def call(self, body: str, value: Any) -> Any:
        return self._pool.submit(BODIES[body], value).result()

    def spawn(self, body: str, inputs: Sequence[Any]) -> None:
        for value in inputs:
            self._pool.submit(BODIES[body], value)

    def stop(self) -> None:
        self._pool.shutdown()


class ChunkedPool(Pool):
    """64 inputs are one task: fast, and a failure is one of 64."""

    chunksize = 64
