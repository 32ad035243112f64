"""Cost against size: `python -m benchmarks.growth [--only PART …] [--write-docs]`.

The same figures at 1 to 1,000,000 pending spawns, with 1 to 1,000 functions, and with 1 to 1,000 simulated agents on
one control service. A line that stays level says that an input costs the same however much else there is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nomadfn

from . import chart, programs
from .chart import Panel
from .report import Report, about, describe_machine, number, replace_block
from .run import PAGE, ROOT, compile_product

CHART = ROOT / "docs/growth.svg"
DEPTHS = (1, 100, 10_000, 1_000_000)
COUNTS = (1, 10, 100, 1000)
PROGRAM_S = 900.0
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One size that grows. `columns` name a figure of each row in words, in the order of the table."""

    what: str
    size: str
    measure: Callable[[], list[Row]]
    columns: dict[str, str]
    charts: dict[str, Sequence[str]]
    """Title of a panel, and the columns whose lines are in it."""


def pending() -> list[Row]:
    rows: list[Row] = programs.run("pending", *DEPTHS, timeout_s=PROGRAM_S, NOMADFN_CAPACITY="4")["depths"]
    return [{key: statistics.median(v) if isinstance(v, list) else v for key, v in row.items()} for row in rows]


def counted(program: str) -> list[Row]:
    return [
        {"depth": count, **programs.run(program, count, timeout_s=PROGRAM_S, NOMADFN_CAPACITY="4")} for count in COUNTS
    ]


CALL = {"call_cpu_us": "one call, CPU µs", "call_p50_ms": "one call, p50 ms"}
MAP = {"map_cpu_us": "map, CPU µs an input", "map": "map, inputs/s"}
PARTS = {
    "pending": Part(
        "pending spawns of another function",
        "pending",
        pending,
        {
            "submit_cpu_us": "handing in, CPU µs an input",
            "submit": "handing in, inputs/s",
            **MAP,
            **CALL,
            "dispatch_cpu_us": "done from there to half, CPU µs an input",
            "dispatch": "done from there to half, inputs/s",
            "bytes": "bytes each",
        },
        {
            "CPU µs an input, by what is pending": ("submit_cpu_us", "dispatch_cpu_us", "map_cpu_us", "call_cpu_us"),
            "inputs/s, by what is pending": ("submit", "map", "dispatch"),
        },
    ),
    "functions": Part(
        "functions of an app, one of which has work",
        "functions",
        lambda: counted("functions"),
        {**MAP, **CALL, "first_ms": "app start to first result, ms", "memory_mib": "memory of all processes, MiB"},
        {
            "CPU µs an input, by functions of the app": ("map_cpu_us", "call_cpu_us"),
            "inputs/s, by functions of the app": ("map",),
        },
    ),
    "agents": Part(
        "simulated agents with a container each, on one control service (CPU and memory of the control service alone)",
        "agents",
        lambda: counted("agents"),
        {
            **MAP,
            "held_cpu_us": "inputs of 50 ms over all containers, CPU µs an input",
            "held": "inputs of 50 ms, inputs/s",
            **CALL,
            "join_cpu_us": "join of an agent and start of its container, CPU µs",
            "idle_cpu_us_s": "idle, CPU µs a second",
            "memory_mib": "memory, MiB",
        },
        {
            "CPU µs an input in the control service, by agents": ("map_cpu_us", "held_cpu_us", "call_cpu_us"),
            "inputs/s, by agents (the simulation shares the cores)": ("map", "held"),
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="measure only these")
    parser.add_argument("--write-docs", action="store_true", help=f"put the result into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="folder of the JSON and the chart")
    options = parser.parse_args()
    compile_product()
    machine, started_s = describe_machine({"nomadfn": nomadfn.__version__}), time.monotonic()
    measured: dict[str, list[Row]] = {}
    failures = []
    for name in options.only:
        print(f"growth: {PARTS[name].what}", file=sys.stderr, flush=True)
        try:
            measured[name] = PARTS[name].measure()
        except programs.ProgramFailed as error:
            failures.append(f"{name}: {error}")
    machine |= {"load_after": os.getloadavg()[0], "wall_s": round(time.monotonic() - started_s)}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "growth.json").write_text(json.dumps({"machine": machine, "parts": measured}, indent=1) + "\n")
    text = "\n\n".join([about(Report(machine)), *(table(PARTS[name], rows) for name, rows in measured.items())])
    print(text, *failures, sep="\n")
    drawn = chart.draw_growth(panels(measured), options.out / "growth.svg")
    if not drawn:
        print(f"No chart: {chart.MISSING}", file=sys.stderr)
    if options.write_docs:
        replace_block(PAGE, "growth", text)
        if drawn:
            chart.draw_growth(panels(measured), CHART)
    sys.exit(1 if failures else 0)


def table(part: Part, rows: list[Row]) -> str:
    sizes = " | ".join(f"{row['depth']:,}" for row in rows)
    lines = [f"| {part.what} | {sizes} | last ÷ first |"]
    lines.append("|---" + "|---:" * (len(rows) + 1) + "|")
    for key, words in part.columns.items():
        values = [row.get(key) for row in rows]
        shown = [number(value) if value is not None else "" for value in values]
        known = [value for value in values if value]
        ratio = number(known[-1] / known[0]) if len(known) > 1 else ""
        lines.append(f"| {words} | {' | '.join(shown)} | {ratio} |")
    return "\n".join(lines)


def panels(measured: dict[str, list[Row]]) -> list[Panel]:
    return [
        Panel(title, PARTS[name].size, {PARTS[name].columns[key]: points(rows, key) for key in keys})
        for name, rows in measured.items()
        for title, keys in PARTS[name].charts.items()
    ]


def points(rows: list[Row], key: str) -> list[tuple[float, float]]:
    return [(row["depth"], row[key]) for row in rows if row.get(key)]


if __name__ == "__main__":
    main()
