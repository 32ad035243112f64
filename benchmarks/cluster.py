"""On Nomad beside this machine alone: `python -m benchmarks.cluster --profile NAME [--rounds N] [--json FILE]`.

Run by hand, against the cluster of a profile whose control service leads, and whose driver is raw_exec. Two programs
run beside each other, one on the cluster and one on this machine, both with CONTAINERS containers, and are measured in
turn. Cold starts are beside those of a Nomad job with an empty task: from the order to scale it to its first line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import nomadfn
from nomadfn.adapters.nomad_api import NomadApi
from nomadfn.control.clustered import nomad_address
from nomadfn.control.settings import load_settings
from nomadfn.profiles import LOCAL, Profile, load_profile

from . import bodies
from .report import Report, describe_machine, markdown

CONTAINERS = 2
INPUTS = 10_000
CALLS = 300
JOB = "nomadfn-benchmark-empty"
HERE, THERE = "nomadfn on this machine", "nomadfn on Nomad"
SETTLED_S = 6.0
"""Beyond the 2 s of its window: a container's place on Nomad is kept a moment longer."""

CPU_CORES, CPU_MHZ = 0.4, 800
"""By which Nomad weighs a task against everything else that its machine has to do."""

app = nomadfn.App("cluster-benchmark")
fixed = partial(app.function, min_containers=CONTAINERS, max_containers=CONTAINERS, cpu=CPU_CORES, memory=256)
warm = fixed(name="warm")(bodies.noop)
echo = fixed(name="echo")(bodies.echo)
cold = app.function(name="cold", max_containers=1, scaledown_window=2, cpu=CPU_CORES, memory=256)(bodies.noop)


def serve() -> None:
    """One side: measure what each line of stdin names, until there are no more."""
    work: dict[str, Callable[[], list[float]]] = {
        "map": lambda: [map_rate(warm.map, range(INPUTS))],
        "map of 1 KiB": lambda: [map_rate(echo.map, [b"k" * 1024] * INPUTS)],
        "call": lambda: [seconds(warm.remote) * 1000 for _ in range(CALLS)],
        "cold": lambda: [seconds(cold.remote) * 1000],
        "settle": lambda: [settle()],
    }
    with app.run():
        for name in ("map", "map of 1 KiB", "cold", "settle"):
            work[name]()
        print(json.dumps([]), flush=True)
        for line in sys.stdin:
            print(json.dumps(work[line.strip()]()), flush=True)


def settle() -> float:
    """Wait until the cold function has no container and no place for one."""
    while cold.get_current_stats().num_total_runners:
        time.sleep(0.1)
    time.sleep(SETTLED_S)
    return SETTLED_S


class Side:
    """The program of one side, in a process of its own."""

    def __init__(self, profile: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cluster", "--serve"],
            env=os.environ | {"NOMADFN_PROFILE": profile},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, name: str) -> list[float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> list[float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("a side of the measurement has ended; what it printed says why")
        values: list[float] = json.loads(line)
        return values

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


class EmptyTask:
    """A Nomad job whose task writes one line and sleeps."""

    def __init__(self, api: NomadApi, folder: Path) -> None:
        self._api = api
        self._folder = folder
        script = f"touch {folder}/$NOMAD_ALLOC_ID; exec sleep 600"
        task = {
            "Name": "empty",
            "Driver": "raw_exec",
            "Config": {"command": "/bin/sh", "args": ["-c", script]},
            "Resources": {"CPU": CPU_MHZ, "MemoryMB": 256},
            "KillTimeout": 1_000_000_000,
        }
        group = {"Name": "lane-0", "Count": 0, "Tasks": [task]}
        api.register(
            {"ID": JOB, "Name": JOB, "Type": "service", "Datacenters": ["*"], "Priority": 40, "TaskGroups": [group]}
            | {"Update": {"MaxParallel": 0}}
        )

    def start_ms(self) -> float:
        """Milliseconds from the order to scale it up to the task's own first sign of life."""
        before = set(os.listdir(self._folder))

        def start() -> None:
            self._api.scale(JOB, "lane-0", 1, "a measurement")
            while set(os.listdir(self._folder)) == before:
                time.sleep(0.001)

        taken_ms = seconds(start) * 1000
        self._api.scale(JOB, "lane-0", 0, "a measurement")
        return taken_ms

    def close(self) -> None:
        self._api.deregister(JOB)


@contextmanager
def contenders(profile: Profile) -> Iterator[tuple[Side, Side, EmptyTask]]:
    api = NomadApi(nomad_address(profile, load_settings(profile=profile)))
    here, there = Side(LOCAL), Side(profile.name)
    with tempfile.TemporaryDirectory() as folder:
        empty = EmptyTask(api, Path(folder))
        try:
            here.answer()
            there.answer()
            yield here, there, empty
        finally:
            here.close()
            there.close()
            empty.close()
            api.close()


def measure(report: Report, profile: Profile, rounds: int) -> None:
    with contenders(profile) as (here, there, empty):
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            report.add("cluster-start", "Nomad's own start of an empty task", empty.start_ms())
            for name, side in ((THERE, there), (HERE, here)):
                report.add("cluster-start", name, side.ask("cold")[0])
            for name, side in ((HERE, here), (THERE, there)):
                report.add("noops", name, side.ask("map")[0])
                report.add("kibibytes", name, side.ask("map of 1 KiB")[0])
                times_ms = sorted(side.ask("call"))
                report.add("call-p50", name, statistics.median(times_ms))
                report.add("call-p99", name, times_ms[int(CALLS * 0.99)])
            there.ask("settle")
            here.ask("settle")


def map_rate(mapping: Callable[[Sequence[Any]], Iterable[Any]], inputs: Sequence[Any]) -> float:
    """Inputs a second from the call to the last result."""
    results: list[Any] = []
    taken_s = seconds(lambda: results.extend(mapping(inputs)))
    assert len(results) == len(inputs)
    return len(results) / taken_s


def seconds(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="", help="of nomadfn.toml; else NOMADFN_PROFILE")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender has its turn (default 5)")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks-cluster.json"), help="where values go")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    profile = load_profile(options.profile)
    if profile.is_local:
        sys.exit("Name the profile of a cluster: --profile NAME")
    report = Report(describe_machine({"nomadfn": nomadfn.__version__}))
    wall_s = seconds(lambda: measure(report, profile, options.rounds))
    report.machine |= {"load_after": os.getloadavg()[0], "wall_s": round(wall_s), "rounds": options.rounds}
    report.write_json(options.json)
    print(markdown(report))


if __name__ == "__main__":
    main()
