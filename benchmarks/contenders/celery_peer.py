"""Celery on Redis: prefork, many messages prefetched as its guide says for short tasks, no gossip, no events."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import Celery, group

from benchmarks.bodies import BODIES

from . import WORKERS

REDIS = os.environ.get("NOMADFN_BENCH_REDIS", "")
app = Celery("benchmarks", broker=REDIS, backend=REDIS)
app.conf.update(
    task_serializer="pickle",
    result_serializer="pickle",
    accept_content=["pickle", "json"],
    worker_prefetch_multiplier=128,
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=False,
)
TASKS = {name: app.task(body, name=name, ignore_result=name == "mark") for name, body in BODIES.items()}
QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=ERROR")


class CeleryOnRedis:
    def start(self, folder: Path) -> None:
        command = [sys.executable, "-m", "celery", "-A", __name__, "worker", f"--concurrency={WORKERS}", *QUIET]
        self._worker = subprocess.Popen(command, env=os.environ | {"C_FORCE_ROOT": "1"})

    def map(self, body: str, inputs: Sequence[Any]) -> Sequence[Any]:
        results: list[Any] = group(TASKS[body].s(value) for value in inputs).apply_async().get()
        return results

    def call(self, body: str, value: Any) -> Any:
        return TASKS[body].delay(value).get()

    def spawn(self, body: str, inputs: Sequence[Any]) -> None:
        for value in inputs:
            TASKS[body].delay(value)

    def stop(self) -> None:
        self._worker.terminate()
        self._worker.wait(timeout=30)
