"""The harness: `python -m benchmarks.run [--peers] [--quick] [--write-docs]`.

Contenders take turns on one machine, round after round, so that ratios mean something where absolute figures do not.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nomadfn_agent

import nomadfn

from . import cases, chart, goals, own
from .contenders import CONTENDERS
from .report import Report, describe_machine, markdown, replace_block

ROOT = Path(__file__).resolve().parent.parent
PEERS_PYTHON = ROOT / ".cache/peers-venv/bin/python"
PAGE = ROOT / "docs/performance.md"
CHART = ROOT / "docs/performance.svg"
PEER_PACKAGES = ("ray", "distributed", "celery", "huey", "taskiq")
QUICK_PENDING, FULL_PENDING = 100_000, 1_000_000


def compile_product() -> None:
    """As an installation by pip does, and an editable one does not: else each start would compile what it imports."""
    for package in (nomadfn, nomadfn_agent):
        compileall.compile_dir(os.path.dirname(str(package.__file__)), quiet=1)


def main() -> None:
    options = _options()
    compile_product()
    report = Report(describe_machine(_versions(options.peers)))
    started_s = time.monotonic()
    names = [name for name in options.only or CONTENDERS if options.peers or not CONTENDERS[name].is_peer]
    for number in range(options.rounds):
        for name in names:
            _say(f"round {number + 1} of {options.rounds}: {CONTENDERS[name].title}")
            python = str(PEERS_PYTHON) if CONTENDERS[name].is_peer else sys.executable
            with tempfile.TemporaryDirectory(prefix="nf-bench-") as folder:
                cases.take_turn(report, name, python, Path(folder))
    if not options.only:
        pending = QUICK_PENDING if options.quick else FULL_PENDING
        own.measure(report, pending, options.rounds, _say, quick=options.quick)
    report.machine |= {"load_after": os.getloadavg()[0], "wall_s": round(time.monotonic() - started_s)}
    report.machine["rounds"] = options.rounds
    _publish(report, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--peers", action="store_true", help="measure the peers as well (`make bench-peers`)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PENDING:,} pending instead of {FULL_PENDING:,}")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender has its turn (default 3)")
    parser.add_argument(
        "--only", nargs="+", default=[], choices=list(CONTENDERS), metavar="NAME", help=f"of {', '.join(CONTENDERS)}"
    )
    parser.add_argument("--write-docs", action="store_true", help=f"put the result into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="folder of the JSON and the chart")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    if options.peers and not PEERS_PYTHON.exists():
        parser.error(f"there is no {PEERS_PYTHON}; `make bench-peers` makes it")
    return options


def _versions(peers: bool) -> dict[str, str]:
    versions = {"nomadfn": nomadfn.__version__}
    if peers:
        code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {PEER_PACKAGES}}}))"
        versions |= json.loads(subprocess.run([PEERS_PYTHON, "-c", code], capture_output=True, check=True).stdout)
    return versions


def _publish(report: Report, options: argparse.Namespace) -> None:
    table, verdicts = markdown(report), goals.markdown(report)
    report.write_json(options.out / "benchmarks.json")
    (options.out / "benchmarks.md").write_text(f"{verdicts}\n\n{table}\n")
    drawn = chart.draw(report, options.out / "benchmarks.svg")
    print(f"{verdicts}\n\n{table}")
    _say(f"Every value is in {options.out}/benchmarks.json." + ("" if drawn else f" No chart: {chart.MISSING}"))
    if options.write_docs:
        replace_block(PAGE, "goals", verdicts)
        replace_block(PAGE, "figures", table)
        if drawn:
            chart.draw(report, CHART)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
