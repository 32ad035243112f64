"""Who is measured: one file each, behind one small interface. A peer's file imports only its own library.

Each runs in a process of its own (`benchmarks.host`), the peers in the virtual environment of
`peers-requirements.txt`. All have two workers and the fast settings that their own documentation recommends.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

WORKERS = 2
ALL_CASES = frozenset(("call", "noops", "kibibytes", "sleeps", "spawns", "large"))
MAX_BATCH = 32
AT_ONCE = 100
"""Coroutines that one container or actor runs at a time."""


class Contender(Protocol):
    """One system under test. Bodies are named as in `benchmarks.bodies`."""

    def start(self, folder: Path) -> None:
        """Make it ready for work; files go into `folder`. NOMADFN_BENCH_REDIS names a Redis, for those who need one."""

    def map(self, body: str, inputs: Sequence[Any]) -> Sequence[Any]:
        """The results of all inputs, in their order."""

    def call(self, body: str, value: Any) -> Any:
        """The result of one input."""

    def spawn(self, body: str, inputs: Sequence[Any]) -> None:
        """Hand inputs in whose results nobody reads. Returns once all have been accepted, as far as it knows."""

    def batch(self, count: int) -> Sequence[int]:
        """`count` single calls at once of the body `batch`, in batches of at most MAX_BATCH: what each one gave."""

    def sleep_at_once(self, count: int, duration_s: float) -> None:
        """That many inputs of the body `async_sleep`, AT_ONCE of them at a time in one place."""

    def web(self) -> str:
        """Where the JSON of `bodies.web_app` is served over HTTP, by one server."""

    def stop(self) -> None:
        """End every process that `start` or the work has started."""


@dataclass(frozen=True)
class Entry:
    """How a contender is called, where it lives and what it takes part in."""

    title: str
    place: str
    """`module:Class` below this package."""
    is_peer: bool = True
    """Needs the peers' environment."""
    needs_redis: bool = False
    cases: frozenset[str] = ALL_CASES

    def load(self) -> Contender:
        module, _, name = self.place.partition(":")
        contender: Contender = getattr(importlib.import_module(f"{__name__}.{module}"), name)()
        return contender


OURS = "nomadfn"
RAY_SERVE = "ray-serve"
UVICORN = "uvicorn"
POOL = "pool"
RAY_ACTORS = "ray-actors"
RAY_TASKS = "ray-tasks"
CONTENDERS = {
    OURS: Entry("nomadfn", "ours:Nomadfn", is_peer=False, cases=ALL_CASES | {"batch", "at-once", "web"}),
    POOL: Entry("ProcessPoolExecutor, chunk 1", "pool:Pool", is_peer=False),
    "pool-64": Entry(
        "ProcessPoolExecutor, chunk 64",
        "pool:ChunkedPool",
        is_peer=False,
        cases=frozenset(("noops", "kibibytes")),
    ),
    RAY_TASKS: Entry("Ray tasks", "ray_peer:RayTasks"),
    RAY_ACTORS: Entry("Ray actors", "ray_peer:RayActors", cases=ALL_CASES | {"at-once"}),
    RAY_SERVE: Entry("Ray Serve", "serve_peer:RayServe", cases=frozenset(("batch", "web"))),
    UVICORN: Entry("uvicorn alone", "uvicorn_alone:Uvicorn", is_peer=False, cases=frozenset(("web",))),
    "dask": Entry("Dask", "dask_peer:Dask"),
    "celery": Entry("Celery", "celery_peer:CeleryOnRedis", needs_redis=True),
    "huey": Entry("Huey", "huey_peer:HueyOnRedis", needs_redis=True),
    # Arguments and results of its tasks go through JSON, whatever its serializer is: it takes no bytes.
    "taskiq": Entry("taskiq", "taskiq_peer:TaskiqOnRedis", needs_redis=True, cases=ALL_CASES - {"kibibytes", "large"}),
}
