"""Milliseconds from the first call of a function that has no container to its result, and of a bare Python."""

from __future__ import annotations

import subprocess
import sys
import time

import nomadfn
from benchmarks import bodies
from benchmarks.programs import tell

STARTS = 20
app = nomadfn.App("cold")
warm = app.function()(bodies.noop)
cold = [app.function(name=f"cold_{number}")(bodies.noop) for number in range(STARTS)]


def main() -> None:
    figures: dict[str, list[float]] = {"nomadfn": [], "a bare Python process": []}
    with app.run():
        warm.remote()
        for function in cold:
            started_s = time.perf_counter()
            function.remote()
            first_s = time.perf_counter()
            subprocess.run([sys.executable, "-c", ""], check=True)
            figures["nomadfn"].append((first_s - started_s) * 1000)
            figures["a bare Python process"].append((time.perf_counter() - first_s) * 1000)
    tell(figures)


if __name__ == "__main__":
    main()
