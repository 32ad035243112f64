"""Deploying again while inputs run: none is interrupted, and new ones run on what is new."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_world import ClusterWorld
from marks import deployed, results
from world import eventually

pytestmark = [pytest.mark.consul, pytest.mark.timeout(300)]


def jobs(world: ClusterWorld) -> set[str]:
    api = world.api()
    try:
        return {job["ID"] for job in api.jobs(f"{world.name}-fn-")}
    finally:
        api.close()


def test_a_new_revision_interrupts_no_input_and_goes_back_without_either(
    any_world: ClusterWorld, tmp_path: Path
) -> None:
    marks = deployed(any_world, tmp_path)
    long = marks.call(0, 3, gated=True)
    marks.has_begun(0, 1, 2)
    before = jobs(any_world)
    marks.deploy(one="two")
    assert [revision for _, revision, _ in results(marks.call(10, 6, 0.2))] == ["two"] * 6
    longer = marks.call(20, 2, gated=True)
    marks.has_begun(20, 21)
    any_world.nomadfn("app", "rollback", "marks").ok()
    assert [revision for _, revision, _ in results(marks.call(30, 2, 0.2))] == ["one"] * 2
    assert not long.ended
    assert jobs(any_world) == before
    marks.gate.touch()
    assert [revision for _, revision, _ in results(long)] == ["one"] * 3
    assert [revision for _, revision, _ in results(longer)] == ["two"] * 2
    assert marks.twice() == {}


def test_a_new_spec_is_a_new_job_and_the_old_one_goes_when_its_inputs_are_done(
    any_world: ClusterWorld, tmp_path: Path
) -> None:
    marks = deployed(any_world, tmp_path)
    long = marks.call(0, 2, gated=True)
    marks.has_begun(0, 1)
    [old] = jobs(any_world)
    marks.deploy(one="two", timeout="memory=40, timeout")
    assert [revision for _, revision, _ in results(marks.call(10, 2))] == ["two"] * 2
    assert old in jobs(any_world)
    assert len(jobs(any_world)) == 2
    marks.gate.touch()
    assert [revision for _, revision, _ in results(long)] == ["one"] * 2
    eventually(lambda: old not in jobs(any_world), "the old job is gone", 60)
    assert marks.twice() == {}
