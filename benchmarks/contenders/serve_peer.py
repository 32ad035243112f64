"""Ray Serve: `@serve.batch` over two replicas, and a JSON endpoint of one. As many requests at once as come."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks import bodies

from . import MAX_BATCH, WORKERS
from .ray_peer import OBJECT_STORE_BYTES

PORT = 8765
WAIT_S = 0.02
ONGOING = 10_000


@serve.deployment(
    num_replicas=WORKERS, max_ongoing_requests=ONGOING, max_queued_requests=-1, ray_actor_options={"num_cpus": 0.5}
)
class Batches:
    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_S)  # type: ignore[untyped-decorator]
    async def run(self, values: list[int]) -> list[int]:
        await asyncio.sleep(bodies.BATCH_S)
        return [len(values)] * len(values)

    async def __call__(self, value: int) -> int:
        size: int = await self.run(value)
        return size


@serve.deployment(max_ongoing_requests=ONGOING, ray_actor_options={"num_cpus": 0.5})
class Web:
    async def __call__(self, request: Request) -> Response:
        return Response(bodies.JSON, media_type="application/json")


class RayServe:
    def start(self, folder: Path) -> None:
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            configure_logging=False,
            log_to_driver=False,
        )
        serve.start(http_options={"host": "127.0.0.1", "port": PORT}, logging_config={"enable_access_log": False})
        self._batches = serve.run(Batches.bind(), name="batches", route_prefix=None)  # type: ignore[attr-defined]
        serve.run(Web.bind(), name="web", route_prefix="/web")  # type: ignore[attr-defined]

    def call(self, body: str, value: Any) -> Any:
        return self._batches.remote(0).result()

    def batch(self, count: int) -> Sequence[int]:
        responses = [self._batches.remote(number) for number in range(count)]
        return [response.result() for response in responses]

    def web(self) -> str:
        return f"http://127.0.0.1:{PORT}/web"

    def stop(self) -> None:
        serve.shutdown()
        ray.shutdown()
