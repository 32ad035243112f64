"""Counts that go up and down: as many containers as there is work for, and no input interrupted by it."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest
from cluster_world import ClusterWorld
from marks import deployed, results
from world import eventually

pytestmark = [pytest.mark.consul, pytest.mark.timeout(900)]

WINDOW_S = 2
LOAD = """
    import json, random, sys, time
    import nomadfn

    mark = nomadfn.Function.from_name("marks", "mark")
    folder, rounds, most = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    dice = random.Random(7)
    calls, first = [], 0
    for _ in range(rounds):
        for _ in range(dice.choice((1, 2, 2, 5, most))):
            calls.append(mark.spawn(first, folder, dice.choice((0.0, 0.1, 0.5, 2.0))))
            first += 1
        time.sleep(dice.choice((0.0, 0.2, 1.0, 2.5, 4.5)))
    print(json.dumps([call.get(timeout=300)[0] for call in calls]))
"""


@pytest.mark.nomad
def test_from_nothing_to_twenty_and_back(world: ClusterWorld, tmp_path: Path) -> None:
    marks = deployed(world, tmp_path)
    assert world.count() == 0
    start = time.monotonic()
    call = marks.call(0, 20, gated=True)
    marks.has_begun(*range(20))
    print(f"20 containers after {time.monotonic() - start:.2f} s")
    assert world.count() == 20
    marks.gate.touch()
    assert len({alloc for _, _, alloc in results(call)}) == 20
    start = time.monotonic()
    eventually(lambda: world.count() == 0, "scaled to zero", 60)
    print(f"none any more after {time.monotonic() - start:.2f} s")
    assert marks.twice() == {}


@pytest.mark.nomad
def test_one_long_input_on_the_highest_of_twelve_keeps_none_of_the_others(world: ClusterWorld, tmp_path: Path) -> None:
    marks = deployed(world, tmp_path)
    # The highest one is the only one that waits for the gate.
    marks.deploy(
        **{
            "max_containers=20": "max_containers=12",
            "while gate": "while gate and (n < 12 or os.environ['NOMAD_GROUP_NAME'] == 'lane-11')",
        }
    )
    warm = marks.call(0, 12, gated=True)
    marks.has_begun(*range(12))
    marks.gate.touch()
    assert len({alloc for _, _, alloc in results(warm)}) == 12
    marks.gate.unlink()
    long = marks.call(12, 12, seconds=1.0, gated=True)
    marks.has_begun(*range(12, 24))
    eventually(lambda: world.explain("marks", "mark")["running"] == 1, "eleven of them are idle")
    start = time.monotonic()
    eventually(lambda: world.count() == 1, "the eleven idle ones are gone", WINDOW_S + 10)
    print(f"the eleven idle ones are gone after {time.monotonic() - start:.2f} s")
    assert not long.ended
    marks.gate.touch()
    results(long)
    assert marks.twice() == {}


def test_load_that_comes_and_goes_runs_every_input_once(
    any_world: ClusterWorld, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    marks = deployed(any_world, tmp_path)
    any_world.write("load.py", LOAD)
    is_real = request.node.get_closest_marker("nomad") is not None
    rounds, most = (100, 20) if is_real else (4, 6)
    load = any_world.start("python", "load.py", marks.folder, rounds, most)
    counts = []
    while not load.ended:
        count = any_world.count()
        if counts[-1:] != [count]:
            counts.append(count)
        time.sleep(0.1)
    done = json.loads(load.wait().ok().out)
    ups = sum(two > one for one, two in itertools.pairwise(counts))
    downs = sum(two < one for one, two in itertools.pairwise(counts))
    print(f"{len(done)} inputs; counts up to {max(counts)}, {ups} times up and {downs} times down")
    assert done == list(range(len(done)))
    assert set(marks.runs()) == set(done)
    assert marks.twice() == {}
