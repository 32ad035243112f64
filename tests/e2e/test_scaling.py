"""How many containers there are: from none, to none, never too many, never too few, and none ended at its work."""

from __future__ import annotations

import collections
import random
from typing import Any

import pytest
from world import World, eventually

SCALE = """
    import os, time
    import nomadfn

    app = nomadfn.App("scale")

    def work(x, pause_s=0.05, log=""):
        if log:
            with open(log, "a", buffering=1) as lines:
                lines.write(f"start {x}\\n")
                time.sleep(pause_s)
                lines.write(f"end {x}\\n")
        else:
            time.sleep(pause_s)
        return x

    @app.function(scaledown_window=2)
    def plain(x, pause_s=0.05, log=""):
        return work(x, pause_s, log)

    @app.function(scaledown_window=2, max_containers=2)
    def capped(x, pause_s=0.05):
        return work(x, pause_s)

    @app.function(scaledown_window=2, min_containers=2)
    def warm(x, pause_s=0.05):
        return work(x, pause_s)

    @app.function(scaledown_window=2, buffer_containers=2)
    def buffered(x, pause_s=0.05):
        return work(x, pause_s)
"""
SPAWN = """
    import sys
    import nomadfn

    function, count, pause_s = sys.argv[1:4]
    function = nomadfn.Function.from_name("scale", function)
    print(function.spawn_map(range(int(count)), kwargs={"pause_s": float(pause_s)}).object_id)
"""


@pytest.fixture
def scale(world: World) -> World:
    world.write("scale.py", SCALE)
    world.write("spawn.py", SPAWN)
    world.up("--capacity", "6")
    world.deploy("scale.py")
    return world


def spawn(world: World, function: str, count: int, pause_s: float) -> str:
    return world.python("spawn.py", function, count, pause_s).ok().out.strip()


class Watch:
    """Looks at a function again and again, and keeps what it saw."""

    def __init__(self, world: World, function: str) -> None:
        self._world = world
        self._function = function
        self.seen: list[dict[str, Any]] = []

    def look(self) -> dict[str, Any]:
        self.seen.append(self._world.explain("scale", self._function))
        return self.seen[-1]

    @property
    def count(self) -> int:
        """Containers now, also those that start."""
        return len(self.look()["containers"])

    @property
    def states(self) -> collections.Counter[str]:
        return collections.Counter("running" if one["held"] else one["state"] for one in self.look()["containers"])

    @property
    def is_idle(self) -> bool:
        shown = self.look()
        return not shown["pending"] and not shown["running"]

    @property
    def counts(self) -> list[int]:
        return [len(one["containers"]) for one in self.seen]


def test_there_are_no_containers_before_the_first_call_and_none_after_the_window(scale: World) -> None:
    watch = Watch(scale, "plain")
    assert watch.count == 0
    spawn(scale, "plain", 12, 0.3)
    eventually(lambda: watch.count > 0, "there is a container")
    eventually(lambda: watch.is_idle, "all is done")
    assert watch.count > 0, "idle ones stay for the window"
    eventually(lambda: watch.count == 0, "the containers are gone again")
    reasons = [one["reason"] for one in watch.look()["decisions"]]
    assert all(reasons), reasons
    eventually(lambda: len(scale.containers()) == 2, "only those of the function with a minimum are left")


def test_there_are_never_more_than_max_containers(scale: World) -> None:
    watch = Watch(scale, "capped")
    spawn(scale, "capped", 60, 0.03)
    eventually(lambda: watch.is_idle and watch.look()["wanted"] == 0, "all is done and the containers may go")
    assert max(watch.counts) == 2, watch.counts
    assert any("max_containers=2" in one["reason"] for shown in watch.seen for one in shown["decisions"])


def test_there_are_never_fewer_than_min_containers(scale: World) -> None:
    watch = Watch(scale, "warm")
    eventually(lambda: watch.states["ready"] == 2, "two are warm before any call")
    watch.seen.clear()
    spawn(scale, "warm", 40, 0.1)
    eventually(lambda: watch.count > 2, "there are more for the work")
    eventually(lambda: watch.is_idle and watch.count == 2, "there are two again")
    assert min(watch.counts) == 2, watch.counts
    scale.nomadfn("function", "scale", "scale", "warm", "--min-containers", 0).ok()
    eventually(lambda: watch.count == 0, "without the minimum there is none")


def test_the_buffer_is_idle_and_there_while_the_function_is_active_only(scale: World) -> None:
    watch = Watch(scale, "buffered")
    assert watch.count == 0
    spawn(scale, "buffered", 1, 2.0)
    eventually(lambda: watch.states == {"running": 1, "ready": 2}, "one works and two more wait")
    eventually(lambda: watch.is_idle, "it is done")
    assert max(watch.counts) == 3, watch.counts
    eventually(lambda: watch.count == 0, "the buffer is gone, too")


def test_the_capacity_of_the_machine_is_never_passed_and_is_named(scale: World) -> None:
    watch = Watch(scale, "plain")
    spawn(scale, "plain", 60, 0.1)
    limits: set[str] = set()
    peak = 0

    def look() -> bool:
        nonlocal peak
        shown = watch.look()
        limits.add(shown["blocked"])
        peak = max(
            peak, sum(one["containers"] + one["starting"] for one in scale.ask("GET", "/v1/functions")["functions"])
        )
        return watch.is_idle

    eventually(look, "all is done")
    assert peak <= 6
    assert max(watch.counts) == 4, "two of the six are kept for the function with a minimum"
    assert any("capacity of 6 containers" in text for text in limits), limits


def test_scaling_down_interrupts_no_input(scale: World) -> None:
    log = scale.folder / "log"
    scale.write(
        "bursts.py",
        f"""
        import sys
        import nomadfn

        plain = nomadfn.Function.from_name("scale", "plain")
        for result in plain.map(range(400), kwargs={{"pause_s": 0.04, "log": {str(log)!r}}}):
            print(result, flush=True)
        """,
    )
    run = scale.start("python", "bursts.py")
    dice = random.Random(3)
    watch = Watch(scale, "plain")
    most = 0

    def reached() -> bool:
        return watch.count <= most or run.ended

    while not run.ended:
        most = dice.choice([one for one in (1, 2, 3, 4) if one != most])
        scale.ask("PATCH", "/v1/apps/scale/functions/plain/autoscaler", {"max_containers": most})
        eventually(reached, f"there are {most} at most")
    assert run.wait().ok().out.split() == [str(x) for x in range(400)]
    lines = collections.Counter(log.read_text().splitlines())
    assert lines == {f"{what} {x}": 1 for x in range(400) for what in ("start", "end")}
    ids = {one["container"] for shown in watch.seen for one in shown["containers"]}
    assert len(ids) >= 8, "containers came and went"
