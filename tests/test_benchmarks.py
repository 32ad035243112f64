"""The harness of the benchmarks: its verdicts, its page, and one contender that is driven as all are."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from benchmarks import bodies, cases, goals, processes, report
from benchmarks.contenders import CONTENDERS, OURS, POOL, UVICORN
from benchmarks.contenders.pool import Pool
from benchmarks.host import ContenderFailed, Host, timed_batches
from benchmarks.programs import mixed
from benchmarks.report import Report, replace_block
from benchmarks.run import PAGE

MACHINE = {"cores": 2, "processor": "x", "memory_gib": 1, "system": "x", "versions": {}, "load_before": 0.0}


def row(text: str, what: str) -> str:
    return next(line for line in text.splitlines() if what in line)


def test_a_goal_is_judged_against_the_best_peer() -> None:
    measured = Report(MACHINE)
    for name, rate in ((OURS, 4000.0), (POOL, 1000.0), ("huey", 50.0), ("celery", 100.0)):
        measured.add("noops", name, rate, cpu_us=2e6 / rate)
    verdicts = goals.markdown(measured)
    assert "best peer (Celery) | 40 × | reached |" in verdicts
    assert "≥ 10 × ProcessPoolExecutor, chunk 1 | 4 × | **not reached** | 4 × less |" in verdicts
    assert "| not measured |" in row(verdicts, "memory")


def test_a_time_is_better_when_it_is_lower() -> None:
    measured = Report(MACHINE)
    for name, p50_ms in ((OURS, 0.3), (POOL, 0.2)):
        measured.add("call-p50", name, p50_ms)
    assert "1.5 × | **not reached**" in row(goals.markdown(measured), "≤ 1.3 × ProcessPoolExecutor")
    measured.machine |= {"load_after": 0.0, "wall_s": 1}
    assert "| 0.667 × |" in row(report.markdown(measured), "ProcessPoolExecutor")


def test_every_goal_is_about_something_that_is_measured() -> None:
    assert {goal.measure for each in goals.GOALS.values() for goal in each} <= set(report.MEASURES)


def test_the_page_has_a_place_for_what_the_harness_writes(tmp_path: Path) -> None:
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text())
    for block in ("goals", "figures", "growth"):
        replace_block(copy, block, f"new {block}")
        replace_block(copy, block, f"newer {block}")
        assert copy.read_text().count(f"newer {block}\n") == 1
    with pytest.raises(ValueError, match="no block other"):
        replace_block(copy, "other", "text")


def test_time_in_which_every_container_is_in_a_long_input_is_not_counted_against_short_ones() -> None:
    long = [(1.0, 2.0), (1.0, 2.5), (1.5, 3.0), (1.75, 2.75)]
    assert mixed.blocked_s(long, until=10.0) == 0.25
    assert mixed.blocked_s(long, until=1.8) == pytest.approx(0.05)
    assert mixed.blocked_s(long[:3], until=10.0) == 0.0


def test_a_contender_does_what_is_measured_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with Host(POOL, sys.executable, tmp_path, {}) as host:
        host.ask("start", 30.0)
        answer, cpu_s = host.ask("map", 30.0, body="echo", count=20, size=10)
        assert answer["taken_s"] > 0
        assert cpu_s > 0
        assert host.ask("spawn", 30.0, count=20, limit_s=30.0)[0]["done_s"] > 0
        with pytest.raises(ContenderFailed, match="KeyError"):
            host.ask("map", 30.0, body="unknown", count=1)
    assert processes.marked(host.mark) == []


def test_a_web_server_serves_what_is_asked_of_it_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with Host(UVICORN, sys.executable, tmp_path, {}) as host:
        host.ask("start", 30.0)
        with urlopen(host.ask("web", 30.0)[0]["url"], timeout=30) as answer:
            assert answer.read() == bodies.JSON
    assert processes.marked(host.mark) == []


def test_a_mean_batch_counts_each_batch_once() -> None:
    class Batches(Pool):
        def batch(self, count: int) -> list[int]:
            return [30] * 30 + [10] * 10

    assert timed_batches(Batches(), 40)["mean_batch"] == pytest.approx(20)
    with pytest.raises(ContenderFailed, match="40 results of 41 calls"):
        timed_batches(Batches(), 41)


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ("echo '  900 requests in 3.00s, 1MB read'; echo 'Requests/sec:    300.5'", (900, 300.5)),
        ("echo ' 9 requests in 3.00s'; echo 'Requests/sec: 3'; echo 'Non-2xx or 3xx responses: 9'", "Non-2xx"),
        ("echo 'unable to connect to 127.0.0.1'; exit 1", "unable to connect"),
    ],
)
def test_only_answers_with_success_count_as_requests(
    said: str, outcome: tuple[int, float] | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrk = tmp_path / "wrk"
    wrk.write_text(f"#!/bin/sh\n{said}\n")
    wrk.chmod(0o755)
    monkeypatch.setattr(cases, "WRK", (str(wrk),))
    if isinstance(outcome, tuple):
        assert cases.load("http://127.0.0.1:1/", 1) == outcome
        return
    with pytest.raises(ContenderFailed, match=outcome):
        cases.load("http://127.0.0.1:1/", 1)


def test_a_contender_that_fails_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    measured = Report(MACHINE)
    cases.take_turn(measured, POOL, "/bin/false", tmp_path)
    assert len(measured.failures) == 1
    assert measured.failures[0].startswith(CONTENDERS[POOL].title)
