"""What nomadfn is meant to reach, and whether a run has reached it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .contenders import CONTENDERS, OURS, POOL, RAY_ACTORS, RAY_SERVE, RAY_TASKS, UVICORN
from .report import MEASURES, RATES, Report, number

BEST_PEER = "the best peer"
EMPTY, FULL = "none pending", "1,000,000 pending"
HELP, RUN = "nomadfn --help", "nomadfn run hello.py"


@dataclass(frozen=True)
class Goal:
    """`measure` of nomadfn against `bound`: a figure, or that many times the median of `against`."""

    measure: str
    bound: float
    against: str = ""
    """A contender, or BEST_PEER."""
    contender: str = OURS
    of: str = ""
    """The measure to compare with, if it is another one."""


GOALS = {
    "map of 10,000 no-ops": [Goal("noops", 40, BEST_PEER), Goal("noops", 10, POOL)],
    "map of 10,000 × 1 KiB": [Goal("kibibytes", 30, BEST_PEER)],
    "one call, p50": [Goal("call-p50", 1.3, POOL), Goal("call-p50", 0.3, RAY_ACTORS)],
    "one call, p99": [Goal("call-p99", 3, OURS, of="call-p50")],
    "map of 200 × 10 ms on 2 containers": [Goal("sleeps", 98)],
    "durable spawns, accepted to all done": [Goal("spawns-done", 10, BEST_PEER)],
    "durable spawns, acknowledged": [Goal("spawns-accepted", 20_000)],
    "1,000,000 pending: memory": [Goal("pending-bytes", 700, contender=FULL)],
    "1,000,000 pending: submit": [Goal("pending-submit", 0.8, EMPTY, FULL)],
    "1,000,000 pending: dispatch": [Goal("pending-dispatch", 0.8, EMPTY, FULL)],
    "1,000,000 pending: restart and replay": [Goal("pending-restart", 15, contender=FULL)],
    "start of a local container to its first result": [Goal("cold-start", 40)],
    "`nomadfn --help` from the shell": [Goal("commands", 150, contender=HELP)],
    "`nomadfn run hello.py` from the shell to the result": [Goal("commands", 400, contender=RUN)],
    "64 MiB in and out on one host": [Goal("large", 1, RAY_TASKS)],
    "2,000 single calls in batches of at most 32": [Goal("batches", 15, RAY_SERVE), Goal("batch-size", 30)],
    "10,000 × 10 ms, 100 at once in one container": [Goal("at-once", 95)],
    "JSON over HTTP": [Goal("web", 0.4, UVICORN), Goal("web", 30, RAY_SERVE)],
    "no-ops beside 10 that hold the GIL": [Goal("mixed-gil", 1.5)],
    "no-ops beside 10 that sleep": [Goal("mixed-sleep", 1.5)],
}


def markdown(report: Report) -> str:
    """A row a goal. Beside a ratio of figures stands that of the CPU time an input, turned so that more is better."""
    lines = ["| | goal | measured | | in CPU time |", "|---|---|---|---|---|"]
    for what, goals in GOALS.items():
        for goal in goals:
            asked, measured, reached, cpu = _judge(report, goal)
            verdict = {True: "reached", False: "**not reached**", None: "not measured"}[reached]
            lines.append(f"| {what} | {asked} | {measured} | {verdict} | {cpu} |")
    return "\n".join(lines)


def _judge(report: Report, goal: Goal) -> tuple[str, str, bool | None, str]:
    """The goal in words, what was measured, whether that reaches it (None: not measured), and the ratio of CPU time."""
    unit = MEASURES[goal.measure][1]
    at_least = unit in RATES
    sign, holds = ("≥", float.__ge__) if at_least else ("≤", float.__le__)
    ours = report.median(goal.measure, goal.contender)
    if not goal.against:
        reached = None if ours is None else holds(float(ours), float(goal.bound))
        return f"{sign} {number(goal.bound)} {unit}", _with_unit(ours, unit), reached, ""
    name, words = _other(report, goal, max if at_least else min)
    theirs = report.median(goal.of or goal.measure, name)
    asked = f"{sign} {number(goal.bound)} × {words}"
    if ours is None or not theirs:
        return asked, "", None, ""
    cpu = [report.cpu_us(goal.measure, contender) for contender in (name, goal.contender)]
    ratio = f"{number(cpu[0] / cpu[1])} × less" if cpu[0] and cpu[1] and not goal.of else ""
    return asked, f"{number(ours / theirs)} ×", holds(ours / theirs, float(goal.bound)), ratio


def _other(report: Report, goal: Goal, best: Callable[..., str]) -> tuple[str, str]:
    """Whom nomadfn is compared with: the contender, and in words."""
    if goal.against != BEST_PEER:
        title = CONTENDERS[goal.against].title if goal.against in CONTENDERS else "an empty queue's"
        return goal.against, "its p50" if goal.of else title
    medians = dict(_peers(report, goal.measure))
    if not medians:
        return "", BEST_PEER
    name = best(medians, key=medians.__getitem__)
    return name, f"{BEST_PEER} ({CONTENDERS[name].title})"


def _peers(report: Report, measure: str) -> Iterator[tuple[str, float]]:
    for name, entry in CONTENDERS.items():
        median = report.median(measure, name)
        if entry.is_peer and median is not None:
            yield name, median


def _with_unit(value: float | None, unit: str) -> str:
    return "" if value is None else f"{number(value)} {unit}"
