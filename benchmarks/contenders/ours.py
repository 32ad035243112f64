"""nomadfn with a private control service and everything on: authentication, limits, retries, a durable journal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nomadfn
from benchmarks import bodies

from . import WORKERS

app = nomadfn.App("benchmarks")
SHORT = (bodies.noop, bodies.echo, bodies.mark)
FUNCTIONS = {body.__name__: app.function(max_containers=WORKERS)(body) for body in SHORT}
# A second of work is not worth a second container to the autoscaler; the others have two in any case.
FUNCTIONS["sleep"] = app.function(min_containers=WORKERS, max_containers=WORKERS)(bodies.sleep)


class Nomadfn:
    def start(self, folder: Path) -> None:
        os.environ |= {"NOMADFN_DATA_DIR": str(folder / "none"), "NOMADFN_CAPACITY": str(WORKERS * len(FUNCTIONS))}
        self._ends = ExitStack()
        self._ends.enter_context(app.run())

    def map(self, body: str, inputs: Sequence[Any]) -> Sequence[Any]:
        return list(FUNCTIONS[body].map(inputs))

    def call(self, body: str, value: Any) -> Any:
        return FUNCTIONS[body].remote(value)

    def spawn(self, body: str, inputs: Sequence[Any]) -> None:
        FUNCTIONS[body].spawn_map(inputs)

    def stop(self) -> None:
        self._ends.close()
