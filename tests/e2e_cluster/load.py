"""Load on a cluster whose every run, acknowledgement and result leaves a line or a file behind.

`clock` is one for all processes of a machine, so that what clients saw can be held against what a test did.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cluster_world import ClusterWorld
from world import Running, eventually

PROGRAM = """
    import os, time
    import nomadfn

    app = nomadfn.App("load")

    @app.function(max_containers=4, scaledown_window=60, timeout=600)
    def mark(kind, n, folder, seconds):
        # One file a run: what runs twice is seen.
        os.close(os.open(f"{folder}/{kind}_{n}_{os.getpid()}_{time.monotonic_ns()}", os.O_CREAT | os.O_EXCL))
        time.sleep(seconds)
        return [kind, n]
"""
CALLER = """
    import os, sys, time
    import nomadfn

    kind, folder, end, width, seconds = sys.argv[1], *sys.argv[2:4], int(sys.argv[4]), float(sys.argv[5])
    mark = nomadfn.Function.from_name("load", "mark")

    def said(*words):
        print(*words, flush=True)

    def spawned(n):
        began = time.monotonic()
        call = mark.spawn(kind, n, folder, seconds)
        said("acknowledged", n, began, time.monotonic())
        calls.append(call)

    def called(n):
        began = time.monotonic()
        assert mark.remote(kind, n, folder, seconds) == [kind, n]
        said("result", n, began, time.monotonic())

    def mapped(n):
        expected = [[kind, one] for one in range(n, n + width)]
        inputs = [(kind, one, folder, seconds) for one in range(n, n + width)]
        found = []
        for one in mark.starmap(inputs):
            found.append(one)
            said("result", one[1], 0.0, time.monotonic())
        assert found == expected, (found, expected)

    calls, n = [], 0
    verb = {"spawn": spawned, "remote": called, "map": mapped}[kind]
    said("begun")
    while not os.path.exists(end):
        verb(n)
        n += width
        if kind != "map":
            time.sleep(0.005)
    for n, call in enumerate(calls):
        assert call.get(timeout=300) == [kind, n * width]
        said("result", n * width, 0.0, time.monotonic())
    said("done")
"""


START_S = 120.0


@dataclass
class Load:
    """Programs that spawn, call and map until they are told to end."""

    world: ClusterWorld
    folder: Path
    programs: dict[str, Running] = field(default_factory=dict)

    def deploy(self) -> None:
        self.folder.mkdir()
        self.world.write("load.py", PROGRAM)
        self.world.write("caller.py", CALLER)
        self.world.nomadfn("deploy", "load.py", timeout_s=120).ok()

    def start(self, *kinds: str, seconds: float = 0.01) -> None:
        for kind in kinds:
            width = 100 if kind == "map" else 1
            self.programs[kind] = self.world.start("python", "caller.py", kind, self.folder, self._end, width, seconds)
        for program in self.programs.values():
            eventually(lambda one=program: one.ended or one.out.count("\n") > 5, f"a start of {program}", START_S)
            assert not program.ended, program

    @property
    def _end(self) -> Path:
        return self.folder.parent / "end of load"

    def times(self, kind: str, word: str) -> list[tuple[float, float]]:
        """When each call of that kind began, and when it was acknowledged or had its result."""
        lines = [line.split() for line in self.programs[kind].out.splitlines()]
        return [(float(line[2]), float(line[3])) for line in lines if len(line) == 4 and line[0] == word]

    def answered(self, kind: str, word: str, since: float) -> int:
        """How many calls that began after `since` were."""
        return sum(began > since for began, _ in self.times(kind, word))

    def goes_on(self, kind: str, word: str, since: float) -> None:
        """Wait until some calls that began after `since` were answered."""
        eventually(lambda: self.answered(kind, word, since) >= 3, f"calls after {since}: {self.programs[kind]}", 90)

    def finish(self, timeout_s: float = 120.0) -> dict[str, int]:
        """Let every program end, and return how many inputs each kind had; none was lost, none had two results."""
        self._end.touch()
        counts = {}
        for kind, program in self.programs.items():
            done = program.wait(timeout_s).ok()
            results = Counter(line.split()[1] for line in done.out.splitlines() if line.startswith("result "))
            assert done.out.endswith("done\n"), done.report
            assert set(results.values()) == {1}, results.most_common(5)
            counts[kind] = len(results)
        return counts

    def runs(self) -> dict[str, list[str]]:
        """Every run of each input of the programs, by kind and number: in which process, and when."""
        found: dict[str, list[str]] = {}
        for one in sorted(self.folder.iterdir(), key=lambda one: int(one.name.rpartition("_")[2])):
            kind, number, process, at_ns = one.name.split("_")
            found.setdefault(f"{kind}_{number}", []).append(f"process {process} at {int(at_ns) / 1e9:.3f}")
        return found

    def processes(self) -> set[int]:
        """Every process that an input has run in."""
        return {int(run.split()[1]) for runs in self.runs().values() for run in runs}

    def run_again(self) -> dict[str, list[str]]:
        return {name: runs for name, runs in self.runs().items() if len(runs) > 1}

    def run_again_in_vain(self) -> dict[str, list[str]]:
        """Those whose container is alive: nothing was a reason to run them again."""
        again = self.run_again().items()
        return {name: runs for name, runs in again if any(is_alive(int(run.split()[1])) for run in runs[:-1])}


def is_alive(process: int) -> bool:
    """Whether it runs, and is not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
