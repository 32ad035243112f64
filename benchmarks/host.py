"""The process that one contender lives in: a command a line on stdin, its answer a line on stdout, both JSON.

`Host` is the side that starts it, keeps its time and counts what all of its processes compute; `python -m
benchmarks.host CONTENDER FOLDER` is the process itself. What the contender prints goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import processes
from .contenders import CONTENDERS, Contender

ROOT = Path(__file__).resolve().parent.parent
STOP_S = 40.0


class ContenderFailed(Exception):
    """A contender that does not start, does not answer, or gives a wrong result. The others go on."""


class Host:
    """One contender, started. Use as a context: at its end all of its processes are gone."""

    def __init__(self, name: str, python: str, folder: Path, env: dict[str, str], others: str = "") -> None:
        """`others` is the mark of processes that work for this contender and are not its own, such as its broker."""
        self.name = name
        self.others = others
        self.mark = processes.new_mark(name)
        self.log = folder / f"{name}.log"
        self.started_s = time.monotonic()
        given = {processes.MARK: self.mark, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **env}
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.host", name, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | given,
                cwd=folder,
            )
        self._rest = b""

    def ask(self, do: str, timeout_s: float, **arguments: Any) -> tuple[dict[str, Any], float]:
        """One command: its answer, and the seconds of CPU that all processes together used for it."""
        assert self._process.stdin is not None
        before_s = self.cpu_s()
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise ContenderFailed(f"its process is gone ({error}){self._last_words()}") from None
        answer = self._answer(do, timeout_s)
        return answer, max(0.0, self.cpu_s() - before_s)

    def cpu_s(self) -> float:
        """Seconds of CPU that all of its processes together have used."""
        return processes.cpu_s(self.mark) + (processes.cpu_s(self.others) if self.others else 0.0)

    def _answer(self, do: str, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline, file = time.monotonic() + timeout_s, self._process.stdout.fileno()
        while b"\n" not in self._rest:
            if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise ContenderFailed(f"{do} was not done within {timeout_s:.0f} s{self._last_words()}")
            chunk = os.read(file, 65536)
            if not chunk:
                raise ContenderFailed(f"its process ended during {do}{self._last_words()}")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContenderFailed(f"{do}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f": {lines[-1][:300]}" if lines else ""

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        processes.end(self.mark)
        self._process.wait(STOP_S)
        if self._process.stdout is not None:
            self._process.stdout.close()


def serve(contender: Contender, folder: Path, say: Callable[[dict[str, Any]], None]) -> None:
    """Do what stdin says until it ends."""
    try:
        for line in sys.stdin:
            command = json.loads(line)
            try:
                say(perform(contender, folder, **command))
            except Exception as error:
                cause = f" ({error.__cause__!r})" if error.__cause__ is not None else ""
                say({"error": f"{type(error).__name__}: {error}{cause}"[:1000]})
    finally:
        contender.stop()


def perform(contender: Contender, folder: Path, do: str, **arguments: Any) -> dict[str, Any]:
    match do:
        case "start":
            contender.start(folder)
            contender.call("noop", 0)
            return {"done_at": time.monotonic()}
        case "map":
            return timed_map(contender, **arguments)
        case "call":
            return timed_calls(contender, **arguments)
        case "spawn":
            return timed_spawns(contender, folder, **arguments)
        case "large":
            value = os.urandom(1 << 20) * arguments["mebibytes"]
            started_s = time.perf_counter()
            result = contender.call("echo", value)
            taken_s = time.perf_counter() - started_s
            _expect(result == value, "the bytes that came back are others")
            return {"taken_s": taken_s}
        case "batch":
            return timed_batches(contender, **arguments)
        case "at-once":
            started_s = time.perf_counter()
            contender.sleep_at_once(**arguments)
            return {"taken_s": time.perf_counter() - started_s}
        case "web":
            return {"url": contender.web()}
    raise ValueError(f"nothing to do is called {do}")


def timed_batches(contender: Contender, count: int) -> dict[str, Any]:
    """`count` calls at once, each of which says how many were in its batch."""
    started_s = time.perf_counter()
    sizes = contender.batch(count)
    taken_s = time.perf_counter() - started_s
    _expect(len(sizes) == count, f"{len(sizes)} results of {count} calls")
    return {"taken_s": taken_s, "mean_batch": count / sum(1 / size for size in sizes)}


def timed_map(contender: Contender, body: str, count: int, argument: Any = None, size: int = 0) -> dict[str, Any]:
    """`argument` is every input's; with a `size` it is that many bytes; with neither the inputs are numbers."""
    value = os.urandom(size) if size else argument
    inputs = list(range(count)) if value is None else [value] * count
    started_s = time.perf_counter()
    results = contender.map(body, inputs)
    taken_s = time.perf_counter() - started_s
    _expect(len(results) == count, f"{len(results)} results of {count} inputs")
    _expect(results[-1] == (value if body == "echo" else None), f"a wrong result: {str(results[-1])[:100]}")
    return {"taken_s": taken_s}


def timed_calls(contender: Contender, count: int, limit_s: float) -> dict[str, Any]:
    """One call after the other, `count` of them or as many as `limit_s` allows."""
    times_ms: list[float] = []
    until_s = time.perf_counter() + limit_s
    while len(times_ms) < count and time.perf_counter() < until_s:
        started_s = time.perf_counter()
        contender.call("noop", 0)
        times_ms.append((time.perf_counter() - started_s) * 1000)
    times_ms.sort()
    return {
        "calls": len(times_ms),
        "p50_ms": statistics.median(times_ms),
        "p99_ms": times_ms[int(len(times_ms) * 0.99)],
    }


def timed_spawns(contender: Contender, folder: Path, count: int, limit_s: float) -> dict[str, Any]:
    """Seconds until all are accepted, and until all are done: each adds a byte to a file."""
    path = folder / f"marks-{time.monotonic_ns()}"
    path.touch()
    started_s = time.perf_counter()
    contender.spawn("mark", [str(path)] * count)
    accepted_s = time.perf_counter() - started_s
    while (size := path.stat().st_size) < count:
        if time.perf_counter() - started_s > limit_s:
            raise TimeoutError(f"{size} of {count} spawned inputs were done within {limit_s:.0f} s")
        time.sleep(0.001)
    done_s = time.perf_counter() - started_s
    path.unlink()
    return {"accepted_s": accepted_s, "done_s": done_s}


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ContenderFailed(otherwise)


def main(name: str, folder: str) -> None:
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    os.set_inheritable(answers.fileno(), False)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer).encode() + b"\n")

    serve(CONTENDERS[name].load(), Path(folder), say)


if __name__ == "__main__":
    main(*sys.argv[1:])
