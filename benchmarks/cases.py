"""What each contender does in its turn. A turn starts it anew, alone on the machine, and ends it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from . import processes, redis_server
from .contenders import AT_ONCE, CONTENDERS
from .host import ContenderFailed, Host
from .report import Report

INPUTS = 10_000
LEAST_INPUTS = 500
SLOW_S = 5.0
"""A contender that would take longer than this for all inputs is given fewer: as many as it does in this time."""
REPEAT_S = 1.0
"""A map that is over sooner is repeated, at most REPEATS times."""
REPEATS = 5
CALLS = 1000
CALLS_S = 3.0
SLEEPS = 200
SLEEP_S = 0.01
LARGE_MIB = 64
BATCH_CALLS = 2000
AT_ONCE_INPUTS = 10_000
WEB_S = 3
WRK = ("wrk", "-t1", "-c20")
ANSWER_S = 120.0
"""How long one command may take before the contender counts as failed."""


def take_turn(report: Report, name: str, python: str, folder: Path) -> None:
    """Measure one contender once. What fails is noted in the report, and what was measured before stays in it."""
    entry = CONTENDERS[name]
    load = os.getloadavg()[0]
    try:
        with ExitStack() as ends:
            mark = processes.new_mark(f"{name}-redis")
            env = {}
            if entry.needs_redis:
                env["NOMADFN_BENCH_REDIS"] = ends.enter_context(redis_server.running(folder, {processes.MARK: mark}))
            host = ends.enter_context(Host(name, python, folder, env, others=mark))
            Turn(report, host, name).run()
    except (ContenderFailed, redis_server.NoRedis) as error:
        report.failures.append(f"{entry.title}: {error}")
    report.loads.setdefault(name, []).append((load, os.getloadavg()[0]))


class Turn:
    def __init__(self, report: Report, host: Host, name: str) -> None:
        self.report = report
        self.host = host
        self.name = name
        self.cases = CONTENDERS[name].cases

    def run(self) -> None:
        started, _ = self._ask("start")
        if "call" in self.cases:
            self.report.add("start", self.name, (started["done_at"] - self.host.started_s) * 1000)
        for case, body, size in (("noops", "noop", 0), ("kibibytes", "echo", 1024)):
            if case in self.cases:
                self._map(case, body, size)
        if "call" in self.cases:
            self._calls()
        if "sleeps" in self.cases:
            self._sleeps()
        if "spawns" in self.cases:
            self._spawns()
        if "large" in self.cases:
            self._ask("large", mebibytes=1)
            taken_s = self._ask("large", mebibytes=LARGE_MIB)[0]["taken_s"]
            self.report.add("large", self.name, LARGE_MIB / taken_s)
        if "batch" in self.cases:
            self._batches()
        if "at-once" in self.cases:
            self._ask("at-once", count=AT_ONCE, duration_s=SLEEP_S)
            answer, cpu_s = self._ask("at-once", count=AT_ONCE_INPUTS, duration_s=SLEEP_S)
            ideal_s = AT_ONCE_INPUTS / AT_ONCE * SLEEP_S
            self.report.add("at-once", self.name, 100 * ideal_s / answer["taken_s"], cpu_s / AT_ONCE_INPUTS * 1e6)
        if "web" in self.cases:
            self._web()

    def _batches(self) -> None:
        for _ in range(2):
            self._ask("batch", count=BATCH_CALLS // 4)
        for _ in range(3):
            answer, cpu_s = self._ask("batch", count=BATCH_CALLS)
            self.report.add("batches", self.name, BATCH_CALLS / answer["taken_s"], cpu_s / BATCH_CALLS * 1e6)
            self.report.add("batch-size", self.name, answer["mean_batch"])

    def _web(self) -> None:
        if shutil.which(WRK[0]) is None:
            note = "No web requests: there is no wrk on PATH (Debian's package is called wrk)."
            if note not in self.report.notes:
                self.report.notes.append(note)
            return
        url = self._ask("web")[0]["url"]
        load(url, 1)
        before_s = self.host.cpu_s()
        requests, per_s = load(url, WEB_S)
        self.report.add("web", self.name, per_s, (self.host.cpu_s() - before_s) / requests * 1e6)

    def _ask(self, do: str, **arguments: Any) -> tuple[dict[str, Any], float]:
        return self.host.ask(do, ANSWER_S, **arguments)

    def _map(self, case: str, body: str, size: int) -> None:
        self._ask("map", body=body, count=64, size=size)
        warm_s = self._ask("map", body=body, count=LEAST_INPUTS, size=size)[0]["taken_s"]
        count = self._affordable(warm_s)
        spent_s, repeats = 0.0, 0
        while spent_s < REPEAT_S and repeats < REPEATS:
            answer, cpu_s = self._ask("map", body=body, count=count, size=size)
            spent_s, repeats = spent_s + answer["taken_s"], repeats + 1
            self.report.add(case, self.name, count / answer["taken_s"], cpu_s / count * 1e6)

    def _affordable(self, warm_s: float) -> int:
        count = int(LEAST_INPUTS / warm_s * SLOW_S)
        if count >= INPUTS:
            return INPUTS
        note = f"{CONTENDERS[self.name].title} would take over {SLOW_S:.0f} s for {INPUTS:,} inputs and is given fewer."
        if note not in self.report.notes:
            self.report.notes.append(note)
        return max(LEAST_INPUTS, count // 100 * 100)

    def _calls(self) -> None:
        self._ask("call", count=50, limit_s=1.0)
        answer, cpu_s = self._ask("call", count=CALLS, limit_s=CALLS_S)
        self.report.add("call-p50", self.name, answer["p50_ms"], cpu_s / answer["calls"] * 1e6)
        self.report.add("call-p99", self.name, answer["p99_ms"])

    def _sleeps(self) -> None:
        self._ask("map", body="sleep", count=20, argument=SLEEP_S)
        answer, cpu_s = self._ask("map", body="sleep", count=SLEEPS, argument=SLEEP_S)
        ideal_s = SLEEPS * SLEEP_S / 2
        self.report.add("sleeps", self.name, 100 * ideal_s / answer["taken_s"], cpu_s / SLEEPS * 1e6)

    def _spawns(self) -> None:
        self._ask("spawn", count=64, limit_s=ANSWER_S)
        warm, _ = self._ask("spawn", count=LEAST_INPUTS, limit_s=ANSWER_S)
        count = self._affordable(warm["done_s"])
        answer, cpu_s = self._ask("spawn", count=count, limit_s=ANSWER_S)
        self.report.add("spawns-accepted", self.name, count / answer["accepted_s"])
        self.report.add("spawns-done", self.name, count / answer["done_s"], cpu_s / count * 1e6)


def load(url: str, seconds: int) -> tuple[int, float]:
    """Requests that were answered with success, and how many a second."""
    words = [*WRK, f"-d{seconds}s", url]
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 30, check=False)
    requests = re.search(r"(\d+) requests in", done.stdout)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    trouble = re.search(r"Non-2xx.*|Socket errors.*", done.stdout)
    if requests is None or rate is None or trouble is not None or int(requests[1]) == 0:
        what = trouble[0] if trouble is not None else (done.stderr or done.stdout).strip()[-200:]
        raise ContenderFailed(f"{' '.join(words)}: {what}")
    return int(requests[1]), float(rate[1])
