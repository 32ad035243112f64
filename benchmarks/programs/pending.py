"""Spawns that wait: `pending DEPTH…` fills a closed function to each depth in turn and measures there.

Against the control service that stays (`nomadfn up`): what a spawn holds in memory, the rate and the CPU of handing
more in, of a map and of single calls beside them; at the greatest depth a kill -9 and the start after it; then the
rate at which they are done, near the top, near each depth, and near the end.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import nomadfn
from benchmarks import bodies, processes
from benchmarks.programs import costed, own_mark, tell

PAYLOAD = b"p" * 200
PROBES = 4
LEAST_DEPTH = 10_000
"""With fewer, what a spawn holds in memory is lost in what everything else does."""
CALLS = 300
STALLED_S = 60.0
Sample = tuple[float, int, float]
"""Time in s, inputs pending, seconds of CPU that all processes have used."""
COMMAND = str(Path(sysconfig.get_path("scripts")) / "nomadfn")

app = nomadfn.App("pending")
app.function(max_containers=1, timeout=3600)(bodies.wait_for)
app.function(max_containers=2)(bodies.noop)
gated = nomadfn.Function.from_name("pending", "wait_for")
beside = nomadfn.Function.from_name("pending", "noop")


def main(depths: list[int]) -> None:
    gate, most = str(Path.cwd() / "gate"), max(depths)
    os.environ["NOMADFN_LIMITS_PENDING_SPAWNS"] = str(most * 2 + 100_000)
    command("up")
    app.deploy()
    list(beside.map(range(2000)))
    gated.spawn(gate)
    gated.spawn_map([""], kwargs={"_padding": PAYLOAD})
    empty_bytes, spawned = settled_memory(), 1
    figures: dict[str, Any] = {"depths": []}
    for depth in depths:
        spawn(depth - spawned)
        held = (settled_memory() - empty_bytes) / depth - len(PAYLOAD) if depth >= LEAST_DEPTH else None
        at, added = measure_at(depth)
        spawned = depth + added
        figures["depths"].append({"depth": depth, "bytes": held, **at})
    spawned += 1
    figures["restart_s"] = restart(spawned)
    Path(gate).touch()
    samples = backlog_samples()
    step = max(most // 20, 10_000)
    figures["dispatch_full"] = [between(samples, most - step * n, most - step * (n + 1)) for n in range(PROBES)]
    figures["dispatch_empty"] = [between(samples, step * (n + 1), step * n) for n in range(PROBES)]
    for row in figures["depths"]:
        row["dispatch"], row["dispatch_cpu_us"] = between(samples, max(row["depth"], 5000), row["depth"] // 2)
    command("down")
    tell(figures)


def command(word: str) -> None:
    subprocess.run([COMMAND, word], check=True, capture_output=True, timeout=300)


def spawn(count: int) -> None:
    if count > 0:
        gated.spawn_map(itertools.repeat("", count), kwargs={"_padding": PAYLOAD})


def settled_memory() -> int:
    gc.collect()
    return processes.memory_bytes(own_mark())


def measure_at(depth: int) -> tuple[dict[str, Any], int]:
    """Rates, and CPU microseconds an input, with `depth` pending; and how many spawns that has added."""
    batch = max(10_000, depth // 50)
    submit = [costed(lambda: spawn(batch), batch) for _ in range(PROBES)]
    mapped = [costed(lambda: list(beside.map(range(10_000))), 10_000) for _ in range(PROBES)]
    times_ms: list[float] = []
    calls = costed(lambda: times_ms.extend(timed_call_ms() for _ in range(CALLS)), CALLS)
    row = {
        "submit": [rate for rate, _ in submit],
        "submit_cpu_us": [cpu_us for _, cpu_us in submit],
        "map": [rate for rate, _ in mapped],
        "map_cpu_us": [cpu_us for _, cpu_us in mapped],
        "call_p50_ms": statistics.median(times_ms),
        "call_cpu_us": calls[1],
    }
    return row, batch * PROBES


def timed_call_ms() -> float:
    started_s = time.perf_counter()
    beside.remote()
    return (time.perf_counter() - started_s) * 1000


def restart(expected: int) -> float:
    """Seconds from the start of a new control service, after a kill -9, until it says that all are there again."""
    pid = int(json.loads((Path(os.environ["NOMADFN_DATA_DIR"]) / "service.json").read_text())["pid"])
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + STALLED_S
    while pid in processes.marked(own_mark()) and time.monotonic() < deadline:
        time.sleep(0.01)
    started_s = time.perf_counter()
    command("up")
    stats = gated.get_current_stats()
    taken_s = time.perf_counter() - started_s
    assert stats.backlog >= expected - 2, (stats, expected)
    return taken_s


def backlog_samples() -> list[Sample]:
    """Until no inputs are pending; ends with an error when nothing moves for a minute."""
    samples: list[Sample] = []
    pids = processes.marked(own_mark())
    moved = time.perf_counter()
    while not samples or samples[-1][1]:
        now, backlog = time.perf_counter(), gated.get_current_stats().backlog
        if not samples or backlog < samples[-1][1]:
            moved = now
        if now - moved > STALLED_S:
            raise RuntimeError(f"{backlog:,} spawned inputs are pending, and none was taken for a minute")
        samples.append((now, backlog, sum(map(processes.process_cpu_s, pids))))
        time.sleep(0.01)
    return samples


def between(samples: list[Sample], high: int, low: int) -> tuple[float, float]:
    """Inputs a second while the backlog fell from `high` to `low`, and CPU microseconds an input."""
    above = [sample for sample in samples if sample[1] >= high] or samples[:1]
    below = [sample for sample in samples if sample[1] <= low]
    (first_s, first, first_cpu_s), (last_s, last, last_cpu_s) = above[-1], below[0]
    count = max(1, first - last)
    return count / max(last_s - first_s, 1e-9), (last_cpu_s - first_cpu_s) / count * 1e6


if __name__ == "__main__":
    main([int(depth) for depth in sys.argv[1:]])
