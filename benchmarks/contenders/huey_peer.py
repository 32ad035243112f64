"""Huey on Redis: two worker processes, blocking reads, and results that wake who waits for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huey import RedisHuey

from benchmarks import bodies

from . import WORKERS

huey = RedisHuey("benchmarks", url=os.environ.get("NOMADFN_BENCH_REDIS"), notify_result=True)


def run(body: str, value: Any) -> tuple[Any]:
    """In a tuple: a bare None would not be stored, and nobody could wait for it."""
    return (bodies.BODIES[body](value),)


run_task = huey.task()(run)
mark_task = huey.task(name="mark")(bodies.mark)


class HueyOnRedis:
    def start(self, folder: Path) -> None:
        command = [sys.executable, "-m", "huey.bin.huey_consumer", f"{__name__}.huey", "-w", str(WORKERS)]
        self._consumer = subprocess.Popen([*command, "-k", "process", "-q", "-n"])

    def map(self, body: str, inputs: Sequence[Any]) -> Sequence[Any]:
        return [handle.get(blocking=True)[0] for handle in [run_task(body, value) for value in inputs]]

    def call(self, body: str, value: Any) -> Any:
        return run_task(body, value).get(blocking=True)[0]

    def spawn(self, body: str, inputs: Sequence[Any]) -> None:
        if body != "mark":
            raise ValueError("only `mark` is a task without a stored result")
        for value in inputs:
            mark_task(value)

    def stop(self) -> None:
        self._consumer.terminate()
        self._consumer.wait(timeout=30)
