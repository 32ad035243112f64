"""nomadfn with a private control service and everything on: authentication, limits, retries, a durable journal."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nomadfn
from benchmarks import bodies

from . import AT_ONCE, MAX_BATCH, WORKERS

app = nomadfn.App("benchmarks")
SHORT = (bodies.noop, bodies.echo, bodies.mark)
FUNCTIONS = {body.__name__: app.function(max_containers=WORKERS)(body) for body in SHORT}
# A second of work is not worth a second container to the autoscaler; the others have two in any case.
FUNCTIONS["sleep"] = app.function(min_containers=WORKERS, max_containers=WORKERS)(bodies.sleep)
CONTAINERS = WORKERS * len(FUNCTIONS) + WORKERS + 2
WAIT_MS = 20
"""Longer than a batch takes, so that what comes in meanwhile goes into the next one."""


@app.function(min_containers=WORKERS, max_containers=WORKERS)
@nomadfn.batched(max_batch_size=MAX_BATCH, wait_ms=WAIT_MS)
def batch(values: list[int]) -> list[int]:
    return bodies.batch(values)


@app.function(max_containers=1)
@nomadfn.concurrent(max_inputs=AT_ONCE)
async def async_sleep(duration_s: float) -> None:
    await bodies.async_sleep(duration_s)


@app.function(max_containers=1)
@nomadfn.concurrent(max_inputs=AT_ONCE)
@nomadfn.asgi_app()
def web_app() -> Any:
    return bodies.web_app


class Nomadfn:
    def start(self, folder: Path) -> None:
        os.environ |= {
            "NOMADFN_DATA_DIR": str(folder / "none"),
            "NOMADFN_CAPACITY": str(CONTAINERS),
            "NOMADFN_LIMITS_WEB_REQUESTS_PER_S": "1000000",  # 200 unless somebody says otherwise.
        }
        self._ends = ExitStack()
        self._ends.enter_context(app.run())

    def map(self, body: str, inputs: Sequence[Any]) -> Sequence[Any]:
        return list(FUNCTIONS[body].map(inputs))

    def call(self, body: str, value: Any) -> Any:
        return FUNCTIONS[body].remote(value)

    def spawn(self, body: str, inputs: Sequence[Any]) -> None:
        FUNCTIONS[body].spawn_map(inputs)

    def batch(self, count: int) -> Sequence[int]:
        async def call_all() -> list[int]:
            return list(await asyncio.gather(*(batch.remote.aio(number) for number in range(count))))

        return asyncio.run(call_all())

    def sleep_at_once(self, count: int, duration_s: float) -> None:
        async_sleep.for_each([duration_s] * count)

    def web(self) -> str:
        return str(web_app.get_web_url())

    def stop(self) -> None:
        self._ends.close()
