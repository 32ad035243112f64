"""A function whose every run leaves a file behind: what ran twice shows, and so does what never ran."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cluster_world import ClusterWorld
from world import Running, eventually

PROGRAM = """
    import os, pathlib, time
    import nomadfn

    app = nomadfn.App("marks")
    REVISION = "one"

    @app.function(max_containers=20, scaledown_window=2, timeout=900)
    def mark(n, folder, seconds=0.0, gate=""):
        alloc = os.environ["NOMAD_ALLOC_ID"]
        os.close(os.open(f"{folder}/{n}_{alloc}_{time.monotonic_ns()}", os.O_CREAT | os.O_EXCL))
        time.sleep(seconds)
        deadline = time.monotonic() + 600
        while gate and not os.path.exists(gate) and time.monotonic() < deadline:
            time.sleep(0.02)
        return [n, REVISION, alloc]
"""
CALLER = """
    import json, sys
    import nomadfn

    mark = nomadfn.Function.from_name("marks", "mark")
    first, count, folder, seconds, gate = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    inputs = range(first, first + count)
    if count == 1:
        print(json.dumps([mark.remote(first, folder, float(seconds), gate)]), flush=True)
    else:
        print(json.dumps(list(mark.map(inputs, kwargs={"folder": folder, "seconds": float(seconds), "gate": gate}))))
"""
Result = tuple[int, str, str]


@dataclass(frozen=True)
class Marks:
    """The function, deployed in a world; `folder` has the files."""

    world: ClusterWorld
    folder: Path

    @property
    def gate(self) -> Path:
        """Inputs that wait for it end once it is there."""
        return self.folder.parent / "gate"

    def deploy(self, **changes: str) -> None:
        """Deploy the program with some of its text changed: `one="two"` changes each "one"."""
        source = PROGRAM
        for old, new in changes.items():
            source = source.replace(old, new)
        self.world.write("marks.py", source)
        self.world.nomadfn("deploy", "marks.py", timeout_s=120).ok()

    def call(self, first: int, count: int = 1, seconds: float = 0.0, gated: bool = False) -> Running:
        """A program beside the test that maps `mark` over numbers from `first` on."""
        gate = str(self.gate) if gated else ""
        return self.world.start("python", "caller.py", first, count, self.folder, seconds, gate)

    def has_begun(self, *numbers: int) -> None:
        eventually(lambda: set(numbers) <= set(self.runs()), f"inputs {numbers} have begun", 90)

    def runs(self) -> Counter[int]:
        """How often each input has begun."""
        return Counter(int(one.name.partition("_")[0]) for one in self.folder.iterdir())

    def where(self, number: int) -> str:
        """The allocation in which an input has begun last."""
        begun = [one.name.split("_") for one in self.folder.iterdir()]
        return max((int(at), alloc) for n, alloc, at in begun if int(n) == number)[1]

    def twice(self) -> dict[int, int]:
        """Inputs that have begun more than once."""
        return {number: count for number, count in self.runs().items() if count > 1}


def results(call: Running, timeout_s: float = 120) -> list[Result]:
    """What a program of `Marks.call` has got back."""
    return [(n, revision, alloc) for n, revision, alloc in json.loads(call.wait(timeout_s).ok().out)]


def deployed(world: ClusterWorld, folder: Path) -> Marks:
    """A control service that leads, and the function."""
    world.start_control()
    world.led()
    made = Marks(world, folder / "marks")
    made.folder.mkdir()
    world.write("caller.py", CALLER)
    made.deploy()
    return made
