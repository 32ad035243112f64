"""Figures as people and as machines read them: medians with their range in Markdown, every value in JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Result:
    """One measurement: for each contender a value a round. The first contender is what the others are compared to."""

    name: str
    unit: str
    series: dict[str, list[float]] = field(default_factory=dict)

    def add(self, contender: str, value: float) -> None:
        self.series.setdefault(contender, []).append(value)


@dataclass
class Machine:
    """What the figures were taken on, and how busy it was with other things (load average of the last minute)."""

    cpus: int
    python: str
    system: str
    nomadfn: str
    load_before: float
    load_after: float = 0.0
    wall_s: float = 0.0


def describe_machine(version: str) -> Machine:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    system = f"{platform.system()} {platform.machine()}"
    return Machine(cpus, platform.python_version(), system, version, os.getloadavg()[0], wall_s=-time.monotonic())


def finish_machine(machine: Machine) -> None:
    machine.load_after = os.getloadavg()[0]
    machine.wall_s = round(machine.wall_s + time.monotonic(), 1)


def number(value: float) -> str:
    """Three digits that matter, thousands apart."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def markdown(machine: Machine, results: list[Result]) -> str:
    lines = [
        f"{machine.cpus} cores, Python {machine.python}, {machine.system}, nomadfn {machine.nomadfn}; load average "
        f"{machine.load_before:.1f} before and {machine.load_after:.1f} after; {machine.wall_s:.0f} s.",
        "Medians, with the lowest and the highest of the rounds in brackets.",
        "",
        "| measurement | unit | contender | median | range | first ÷ this |",
        "|---|---|---|---:|---:|---:|",
    ]
    for result in results:
        first = statistics.median(next(iter(result.series.values())))
        for position, (contender, values) in enumerate(result.series.items()):
            median = statistics.median(values)
            ratio = f"{first / median:.2f}" if position and median else ""
            name, unit = (result.name, result.unit) if not position else ("", "")
            spread = f"{number(min(values))} to {number(max(values))}"
            lines.append(f"| {name} | {unit} | {contender} | {number(median)} | {spread} | {ratio} |")
    return "\n".join(lines)


def write_json(path: Path, machine: Machine, results: list[Result]) -> None:
    body = {"machine": asdict(machine), "results": [asdict(result) for result in results]}
    path.write_text(json.dumps(body, indent=2) + "\n")
