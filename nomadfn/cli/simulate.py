"""`nomadfn simulate`: a recorded trace under the autoscaler as it is, beside an oracle. Nothing is started."""

from __future__ import annotations

import sys
from typing import Any

import typer

PERCENTILES = ("p50", "p95", "p99", "max")


def register(cli: typer.Typer) -> None:
    cli.command("simulate")(simulate)


def simulate(
    trace: str = typer.Argument(metavar="TRACE", help="A file of JSON lines, or - for stdin."),
    min_containers: int = typer.Option(None, min=0, help="In place of what the trace says, for all functions."),
    max_containers: int = typer.Option(None, min=1, help="The same."),
    buffer_containers: int = typer.Option(None, min=0, help="The same."),
    scaledown_window: float = typer.Option(None, min=2, max=3600, help="The same; seconds."),
    capacity: int = typer.Option(None, min=1, help="Containers that the cluster has room for; unlimited by default."),
    start_s: float = typer.Option(0.5, min=0, help="Seconds that a container takes to start."),
    as_json: bool = typer.Option(False, "--json", help="Print all of it as JSON."),
) -> None:
    """Run a trace through queue and autoscaler. Reports latency and container-seconds beside those of an oracle.

    Each line of TRACE is an arrival, {"at": 0.5, "function": "f", "run_s": 0.2}, with "caller", "inputs", "priority"
    and "deadline_s" as you like; or the settings of a function, {"function": "f", "max_containers": 8}.
    """
    from nomadfn.cli import output
    from nomadfn.core import trace as traces
    from nomadfn.core.virtual import Conditions

    said = {
        "min_containers": min_containers,
        "max_containers": max_containers,
        "buffer_containers": buffer_containers,
        "scaledown_window_s": scaledown_window,
    }
    overrides = {key: value for key, value in said.items() if value is not None}
    parsed = traces.parse(_lines(trace), trace)
    found = traces.simulate(parsed, Conditions(start_s=start_s, capacity=capacity), overrides)
    if as_json:
        output.print_json(found)
        return
    rows = []
    for name, one in found["functions"].items():
        rows.append([name, one["inputs"], one["failed"], *_latency(one), f"{one['container_s']:.1f}", one["starts"]])
        best = one["oracle"]
        rows.append(["  oracle", None, None, *_latency(best), f"{best['container_s']:.1f}", None])
    columns = ("function", "inputs", "failed", *PERCENTILES, "container-s", "starts")
    output.print_table(columns, rows, "")
    output.note(f"{found['seconds']:.1f} s of the trace's time; latencies in seconds")


def _lines(trace: str) -> list[str]:
    from nomadfn.exception import NotFoundError

    if trace == "-":
        return sys.stdin.read().splitlines()
    try:
        with open(trace) as file:
            return file.read().splitlines()
    except OSError as error:
        raise NotFoundError(f"the trace {trace} cannot be read: {error.strerror}") from None


def _latency(one: dict[str, Any]) -> list[str]:
    values = [one["latency_s"][name] for name in PERCENTILES]
    return ["-" if value is None else f"{value:.3f}" for value in values]
