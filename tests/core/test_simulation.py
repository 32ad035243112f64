"""A thousand small worlds: `SIMULATION_SEEDS=5000:6000 pytest tests/core/test_simulation.py` runs others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulation import World

FIRST, LAST = map(int, os.environ.get("SIMULATION_SEEDS", "0:1000").split(":"))
CHUNK = 25


@pytest.mark.parametrize("first", range(FIRST, LAST, CHUNK))
def test_no_world_breaks_an_invariant_and_every_world_drains(first: int) -> None:
    for seed in range(first, min(first + CHUNK, LAST)):
        World(seed).run()


@pytest.mark.parametrize("seed", [3, 17, 42])
def test_one_seed_gives_one_trace(seed: int) -> None:
    assert World(seed).run() == World(seed).run()


def test_a_trace_does_not_depend_on_how_strings_hash() -> None:
    program = "from simulation import World; print([World(seed).run() for seed in range(40, 48)])"
    traces = set()
    for hash_seed in ("0", "1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100, check=True
        )
        traces.add(done.stdout)
    assert len(traces) == 1
