"""What is measured, one function a case. Each takes turns between the contenders, round after round."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from . import bodies
from .report import Result

NOTHING = range(10_000)
NOMADFN = "nomadfn"
HELLO = """
import nomadfn
app = nomadfn.App("hello")
@app.function()
def square(x):
    return x * x
@app.local_entrypoint()
def main():
    print(square.remote(7))
"""


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def map_rate(mapping: Callable[[Sequence[Any]], Iterable[Any]], inputs: Sequence[Any]) -> float:
    """Inputs a second from the call to the last result."""
    started = time.perf_counter()
    count = sum(1 for _ in mapping(inputs))
    taken_s = time.perf_counter() - started
    assert count == len(inputs)
    return count / taken_s


def maps(pool: ProcessPoolExecutor, rounds: int) -> list[Result]:
    """Inputs a second, of nothing and of 1 KiB there and back."""
    results = []
    for name, plain, remote, inputs in (
        ("map of 10,000 no-ops", bodies.noop, bodies.remote_noop, NOTHING),
        ("map of 10,000 × 1 KiB", bodies.echo, bodies.remote_echo, [b"k" * 1024] * len(NOTHING)),
    ):
        result = Result(name, "inputs/s")
        map_rate(remote.map, inputs)
        for _ in range(rounds):
            result.add(NOMADFN, map_rate(remote.map, inputs))
            for chunk in (1, 64):
                contender = f"ProcessPoolExecutor(2), chunksize {chunk}"
                result.add(contender, map_rate(partial(pool.map, plain, chunksize=chunk), inputs))
        results.append(result)
    return results


def one_call(pool: ProcessPoolExecutor, rounds: int, calls: int = 500) -> list[Result]:
    """Milliseconds from a call to its result, one after the other."""
    p50, p99 = Result("one call, p50", "ms"), Result("one call, p99", "ms")
    contenders: dict[str, Callable[[], Any]] = {
        NOMADFN: bodies.remote_noop.remote,
        "ProcessPoolExecutor(2)": lambda: pool.submit(bodies.noop).result(),
    }
    for call in contenders.values():
        call()
    for _ in range(rounds):
        for name, call in contenders.items():
            times_ms = sorted(seconds(call) * 1000 for _ in range(calls))
            p50.add(name, statistics.median(times_ms))
            p99.add(name, times_ms[int(calls * 0.99)])
    return [p50, p99]


def sleeps(pool: ProcessPoolExecutor, rounds: int) -> list[Result]:
    """How near 200 sleeps of 10 ms on two come to the second that they need at least."""
    result = Result("200 × 10 ms on 2", "% of ideal")
    waits = [0.01] * 200
    map_rate(bodies.remote_sleep.map, waits)
    for _ in range(rounds):
        result.add(NOMADFN, map_rate(bodies.remote_sleep.map, waits) / 2)
        result.add("ProcessPoolExecutor(2)", map_rate(partial(pool.map, bodies.sleep), waits) / 2)
    return [result]


def cold_start(rounds: int) -> list[Result]:
    """Milliseconds from the first call of a function that has no container to its result."""
    result = Result("cold start to first result", "ms")
    for function in bodies.remote_cold[: min(rounds * 2, bodies.COLD_STARTS)]:
        result.add(NOMADFN, seconds(function.remote) * 1000)
        result.add("a bare Python process", seconds(lambda: subprocess.run([sys.executable, "-c", ""])) * 1000)
    return [result]


def pending_spawns(total: int) -> list[Result]:
    """Whether work slows down while `total` spawned inputs wait: handing in, giving out, and a map beside them.

    Spawns are measured in steps of a twentieth of `total`: the four with the fewest pending, the four with the most.
    """
    function, batch = bodies.remote_wait_for, total // 20
    submit, dispatch = Result("spawns accepted, durable", "inputs/s"), Result("spawns done", "inputs/s")
    beside = Result("map of 10,000 no-ops, of another function", "inputs/s")
    none, full = "none pending", f"{total:,} pending"
    with tempfile.TemporaryDirectory() as folder:
        gate = Path(folder) / "gate"
        for _ in range(3):
            beside.add(none, map_rate(bodies.remote_noop.map, NOTHING))
        held = function.spawn(str(gate))
        rates = [batch / seconds(lambda: function.spawn_map([""] * batch)) for _ in range(20)]
        for rate_first, rate_last in zip(rates[:4], rates[-4:], strict=True):
            submit.add(none, rate_first)
            submit.add(full, rate_last)
        for _ in range(3):
            beside.add(full, map_rate(bodies.remote_noop.map, NOTHING))
        gate.touch()
        samples = backlog_samples(function, batch)
        held.get(timeout=60)
    for step in range(4):
        dispatch.add(none, rate_between(samples, batch * (step + 1), batch * step))
        dispatch.add(full, rate_between(samples, total - batch * step, total - batch * (step + 1)))
    return [submit, dispatch, beside]


def backlog_samples(function: Any, batch: int) -> list[tuple[float, int]]:
    """(time in s, inputs pending) every 20 ms until none are; ends with an error when nothing moves for a minute."""
    samples: list[tuple[float, int]] = []
    moved = time.perf_counter()
    while not samples or samples[-1][1]:
        now, backlog = time.perf_counter(), function.get_current_stats().backlog
        if not samples or backlog < samples[-1][1]:
            moved = now
        if now - moved > 60:
            raise RuntimeError(f"{backlog:,} spawned inputs are pending, and none was taken for a minute")
        samples.append((now, backlog))
        time.sleep(0.02)
    return samples


def rate_between(samples: list[tuple[float, int]], high: int, low: int) -> float:
    """Inputs a second while the backlog fell from `high` to `low`."""
    inside = [sample for sample in samples if low <= sample[1] <= high] or samples
    (first_s, first), (last_s, last) = inside[0], inside[-1]
    return (first - last) / max(last_s - first_s, 1e-9)


def command_start(rounds: int) -> list[Result]:
    """Milliseconds of whole commands, from the shell's point of view, with no service running."""
    command = str(Path(sysconfig.get_path("scripts")) / "nomadfn")
    result = Result("a command, start to end", "ms")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "hello.py").write_text(HELLO)
        env = os.environ | {"NOMADFN_DATA_DIR": str(Path(folder) / "data")}
        commands = {
            "nomadfn run hello.py": [command, "run", "hello.py"],
            "nomadfn --help": [command, "--help"],
            "python -c ''": [sys.executable, "-c", ""],
        }
        for _ in range(rounds):
            for name, words in commands.items():
                run = partial(subprocess.run, words, cwd=folder, env=env, capture_output=True, check=True)
                result.add(name, seconds(run) * 1000)
    return [result]
