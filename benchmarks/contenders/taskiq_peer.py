"""taskiq on Redis: two worker processes of one thread each, its queue on a Redis list (the fastest of its brokers)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from taskiq.serializers import PickleSerializer
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

from benchmarks.bodies import BODIES

from . import WORKERS

REDIS = os.environ.get("NOMADFN_BENCH_REDIS", "")
AT_ONCE = 50
WAIT_S = 300.0
Value = TypeVar("Value")

broker = (
    ListQueueBroker(REDIS)
    .with_result_backend(RedisAsyncResultBackend(REDIS, serializer=PickleSerializer()))
    .with_serializer(PickleSerializer())
)
TASKS = {name: broker.register_task(body, task_name=name) for name, body in BODIES.items()}


class TaskiqOnRedis:
    def start(self, folder: Path) -> None:
        command = [sys.executable, "-m", "taskiq", "worker", f"{__name__}:broker", "--workers", str(WORKERS)]
        command += ["--max-threadpool-threads", "1", "--max-prefetch", "64", "--log-level", "ERROR"]
        self._worker = subprocess.Popen(command)
        self._loop = asyncio.new_event_loop()
        self._run(broker.startup())

    def map(self, body: str, inputs: Sequence[Any]) -> Sequence[Any]:
        return self._run(self._map(body, inputs))

    def call(self, body: str, value: Any) -> Any:
        return self._run(self._call(body, value))

    def spawn(self, body: str, inputs: Sequence[Any]) -> None:
        self._run(self._submit(body, inputs))

    def stop(self) -> None:
        self._run(broker.shutdown())
        self._loop.close()
        self._worker.terminate()
        self._worker.wait(timeout=30)

    def _run(self, work: Coroutine[Any, Any, Value]) -> Value:
        return self._loop.run_until_complete(work)

    async def _call(self, body: str, value: Any) -> Any:
        task = await TASKS[body].kiq(value)
        return (await task.wait_result(check_interval=0.001, timeout=WAIT_S)).return_value

    async def _submit(self, body: str, inputs: Sequence[Any]) -> list[Any]:
        tasks: list[Any] = []
        for first in range(0, len(inputs), AT_ONCE):
            part = inputs[first : first + AT_ONCE]
            tasks += await asyncio.gather(*(TASKS[body].kiq(value) for value in part))
        return tasks

    async def _map(self, body: str, inputs: Sequence[Any]) -> list[Any]:
        tasks = await self._submit(body, inputs)
        results: list[Any] = []
        for first in range(0, len(tasks), AT_ONCE):
            waits = (task.wait_result(check_interval=0.005, timeout=WAIT_S) for task in tasks[first : first + AT_ONCE])
            results += [result.return_value for result in await asyncio.gather(*waits)]
        return results
