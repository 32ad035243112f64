"""Dask's distributed scheduler with two worker processes of one thread each, without its dashboard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster, fire_and_forget

from benchmarks.bodies import BODIES

from . import WORKERS


class Dask:
    def start(self, folder: Path) -> None:
        self._cluster = LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, local_directory=str(folder)
        )
        self._client = Client(self._cluster)

    def map(self, body: str, inputs: Sequence[Any]) -> Sequence[Any]:
        results: list[Any] = self._client.gather(self._client.map(BODIES[body], inputs, pure=False))
        return results

    def call(self, body: str, value: Any) -> Any:
        return self._client.submit(BODIES[body], value, pure=False).result()

    def spawn(self, body: str, inputs: Sequence[Any]) -> None:
        fire_and_forget(self._client.map(BODIES[body], inputs, pure=False))

    def stop(self) -> None:
        self._client.close()
        self._cluster.close()
