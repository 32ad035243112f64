"""Figures as people and as machines read them: medians with their range in Markdown, every value in JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .contenders import CONTENDERS, OURS

FAILURE_CHARACTERS = 160

MEASURES = {
    "noops": ("map of 10,000 no-ops", "inputs/s"),
    "kibibytes": ("map of 10,000 × 1 KiB, there and back", "inputs/s"),
    "call-p50": ("one call, p50", "ms"),
    "call-p99": ("one call, p99", "ms"),
    "sleeps": ("200 × 10 ms on 2", "% of ideal"),
    "spawns-accepted": ("10,000 spawns, until all are accepted", "inputs/s"),
    "spawns-done": ("10,000 spawns, until all are done", "inputs/s"),
    "large": ("64 MiB in and out", "MiB/s"),
    "batches": ("2,000 single calls in batches of at most 32, 5 ms each", "calls/s"),
    "batch-size": ("the same, calls in a batch", "in the mean"),
    "at-once": ("10,000 × 10 ms, 100 at once in one container", "% of ideal"),
    "web": ("JSON over HTTP, 20 connections (wrk -t1 -c20)", "requests/s"),
    "start": ("from nothing to the first result", "ms"),
    "cold-start": ("start of a local container to its first result", "ms"),
    "cluster-start": ("cold start of a container to its first result", "ms"),
    "commands": ("a command, from the shell to its end", "ms"),
    "mixed-gil": ("9,990 no-ops done beside 10 that hold the GIL for 1 s, 4 containers", "× alone"),
    "mixed-sleep": ("9,990 no-ops done beside 10 that sleep for 1 s, 4 containers", "× alone"),
    "pending-submit": ("durable spawns of 200 bytes accepted, by what is pending", "inputs/s"),
    "pending-dispatch": ("the same, done", "inputs/s"),
    "pending-map": ("map of 10,000 no-ops of another function beside them", "inputs/s"),
    "pending-bytes": ("memory of all processes for a pending spawn, beside its payload", "bytes"),
    "pending-restart": ("kill -9 and start again, until all that was pending is back", "s"),
}
"""What is measured: what it is called, and its unit. Lower is better where the unit is a time, bytes, or `× alone`."""
RATES = ("inputs/s", "MiB/s", "% of ideal", "calls/s", "requests/s", "in the mean")


@dataclass
class Result:
    """One measurement: for each contender a value a round or more, and CPU microseconds an input where that is one."""

    values: dict[str, list[float]] = field(default_factory=dict)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)

    def median(self, contender: str) -> float | None:
        return statistics.median(self.values[contender]) if contender in self.values else None


@dataclass
class Report:
    """A run: where, what, and what went wrong."""

    machine: dict[str, Any]
    results: dict[str, Result] = field(default_factory=dict)
    loads: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Load average of the last minute before and after each turn of a contender."""
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, measure: str, contender: str, value: float, cpu_us: float | None = None) -> None:
        assert measure in MEASURES, measure
        result = self.results.setdefault(measure, Result())
        result.values.setdefault(contender, []).append(value)
        if cpu_us is not None:
            result.cpu_us.setdefault(contender, []).append(cpu_us)

    def median(self, measure: str, contender: str) -> float | None:
        result = self.results.get(measure)
        return None if result is None else result.median(contender)

    def cpu_us(self, measure: str, contender: str) -> float | None:
        """Median of the CPU microseconds an input."""
        values = self.results[measure].cpu_us.get(contender) if measure in self.results else None
        return statistics.median(values) if values else None

    def write_json(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        measures = {name: dict(zip(("title", "unit"), MEASURES[name], strict=True)) for name in self.results}
        path.write_text(json.dumps(asdict(self) | {"measures": measures}, indent=1) + "\n")


def describe_machine(versions: dict[str, str]) -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}",
        "versions": {"Python": platform.python_version(), **versions},
        "load_before": os.getloadavg()[0],
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def number(value: float) -> str:
    """Three digits that matter, thousands apart."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def title(contender: str) -> str:
    return CONTENDERS[contender].title if contender in CONTENDERS else contender


def order(result: Result) -> list[str]:
    """The contenders in their order, then other rows as they came."""
    known = [name for name in CONTENDERS if name in result.values]
    return known + [name for name in result.values if name not in CONTENDERS]


def markdown(report: Report) -> str:
    lines = [
        about(report),
        "",
        "| measurement | unit | contender | median | range | nomadfn is better by | CPU µs an input |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for name in MEASURES:
        if name in report.results:
            lines += _rows(name, report.results[name])
    failures = [one if len(one) <= FAILURE_CHARACTERS else f"{one[:FAILURE_CHARACTERS]} …" for one in report.failures]
    for heading, items in (("Failed", failures), ("Notes", report.notes)):
        if items:
            lines += ["", f"{heading}:", "", *(f"- {item}" for item in items)]
    return "\n".join(lines)


def about(report: Report) -> str:
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    text = (
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, {machine['system']}; "
        f"{versions}. Load average {machine['load_before']:.1f} before and {machine['load_after']:.1f} after"
    )
    if machine["load_before"] > machine["cores"]:
        text += " (the machine was busy with other work: believe the CPU time, not the clock)"
    if report.loads:
        every = [load for turns in report.loads.values() for turn in turns for load in turn]
        text += f", {min(every):.1f} to {max(every):.1f} while contenders had their turns"
    rounds = f"{machine['rounds']} rounds, " if "rounds" in machine else ""
    return f"{text}; {rounds}{machine['wall_s']:.0f} s in all."


def _rows(name: str, result: Result) -> list[str]:
    what, unit = MEASURES[name]
    rows = []
    ours = result.median(OURS)
    for position, contender in enumerate(order(result)):
        values, cpu_us = result.values[contender], result.cpu_us.get(contender)
        median = statistics.median(values)
        better = ""
        if ours and median and contender != OURS:
            better = f"{number(ours / median if unit in RATES else median / ours)} ×"
        first = (what, unit) if not position else ("", "")
        spread = f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else ""
        cpu = number(statistics.median(cpu_us)) if cpu_us else ""
        cells = (*first, title(contender), number(median), spread, better, cpu)
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def replace_block(page: Path, name: str, text: str) -> None:
    """Put `text` between the comments that mark the block `name` of a page."""
    begin, end = f"<!-- {name}: written by the harness -->", f"<!-- {name}: end -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} has no block {name}: it needs the lines {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
