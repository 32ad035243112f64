"""The harness: `python -m benchmarks.run [--quick] [--rounds N] [--only CASE …] [--json FILE]`.

Prints a Markdown table and writes every value as JSON. Everything is measured in one run on one machine, the
contenders in turn, so that ratios mean something where absolute figures do not.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nomadfn

from . import bodies, cases, report

QUICK_PENDING = 100_000
FULL_PENDING = 1_000_000


def started_pool() -> ProcessPoolExecutor:
    """Two workers that run already: they are forked while this process has no thread of nomadfn's."""
    pool = ProcessPoolExecutor(2)
    list(pool.map(bodies.sleep, [0.2, 0.2]))
    return pool


def measure(only: list[str], rounds: int, pending: int) -> list[report.Result]:
    pool = started_pool()
    table: dict[str, Callable[[], list[report.Result]]] = {
        "maps": lambda: cases.maps(pool, rounds),
        "one-call": lambda: cases.one_call(pool, rounds),
        "sleeps": lambda: cases.sleeps(pool, rounds),
        "cold-start": lambda: cases.cold_start(rounds),
        "pending": lambda: cases.pending_spawns(pending),
        "commands": lambda: cases.command_start(rounds),
    }
    if unknown := set(only) - set(table):
        sys.exit(f"There is no case {', '.join(sorted(unknown))}; there are {', '.join(table)}.")
    results: list[report.Result] = []
    with pool, tempfile.TemporaryDirectory() as empty:
        os.environ["NOMADFN_DATA_DIR"] = empty  # What `nomadfn up` keeps is not what is measured.
        with bodies.app.run():
            for name, case in table.items():
                if not only or name in only:
                    print(f"measuring: {name}", file=sys.stderr, flush=True)
                    results += case()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PENDING:,} pending instead of {FULL_PENDING:,}")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender has its turn (default 5)")
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="measure only these cases")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks.json"), help="where every value goes")
    options = parser.parse_args()
    machine = report.describe_machine(nomadfn.__version__)
    results = measure(options.only, options.rounds, QUICK_PENDING if options.quick else FULL_PENDING)
    report.finish_machine(machine)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    report.write_json(options.json, machine, results)
    print(report.markdown(machine, results))
    print(f"\nEvery value is in {options.json}.", file=sys.stderr)


if __name__ == "__main__":
    main()
