"""One test's world: a data folder and programs of its own, and every process that it has started, however indirectly.

Processes are found by a variable of their environment that every child inherits, so that none gets away by a
session or a parent of its own.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOMADFN = str(Path(sysconfig.get_path("scripts")) / "nomadfn")
MARK = "NOMADFN_TEST_ID"
WAIT_S = 45.0
"""The longest that anything may take on a machine that has much else to do."""
POLL_S = 0.02
OUR_FRAME = re.compile(r'File "[^"]*/nomadfn(_agent)?/[^"]*"')


def eventually(condition: Callable[[], object], what: object, timeout_s: float = WAIT_S) -> None:
    """Wait until `condition` is true; fails with `what` when it is not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout_s:g} s: {what}"
        time.sleep(POLL_S)


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    command: str
    code: int
    out: str
    err: str

    @property
    def report(self) -> str:
        """All of it, for the message of an assertion; pytest would cut the object short."""
        return f"{self.command} ended with {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"

    def ok(self) -> Done:
        assert self.code == 0, self.report
        return self

    def refused(self, code: int, *words: str) -> Done:
        """It ended with `code`, said all of `words` on stderr, and showed nothing of the inside of nomadfn."""
        assert self.code == code, self.report
        for word in words:
            assert word in self.err, f"not said: {word}\n{self.report}"
        return self.without_our_frames()

    def without_our_frames(self) -> Done:
        assert not OUR_FRAME.search(self.out + self.err), f"a traceback of ours\n{self.report}"
        return self

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Running:
    """A command that goes on beside the test; what it prints is in files."""

    def __init__(self, process: subprocess.Popen[bytes], command: str, out: Path, err: Path) -> None:
        self.process = process
        self.command = command
        self._out = out
        self._err = err

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def __str__(self) -> str:
        return f"{self.command}, which has printed\n--- stdout\n{self.out}\n--- stderr\n{self.err}"

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def says(self, words: str) -> None:
        """Wait until it has printed `words` on stdout."""
        self.has_printed(words, 1)

    def has_printed(self, words: str, times: int) -> None:
        """Wait until `words` stand on stdout so many times."""
        eventually(lambda: self.out.count(words) >= times or self.ended, f"{times} times {words!r} from {self}")
        assert self.out.count(words) >= times, f"{times} times {words!r} from {self}"

    def wait(self, timeout_s: float = WAIT_S) -> Done:
        eventually(lambda: self.ended, f"the end of {self.command}", timeout_s)
        return Done(self.command, self.process.returncode, self.out, self.err)


class World:
    """Programs, commands and processes of one test. `folder` is where its programs lie and its commands run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.data = folder / "data"
        self.temporary = folder / "tmp"
        for one in (self.folder, self.temporary):
            one.mkdir()
        self.id = f"{MARK}={secrets.token_hex(8)}"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("NOMADFN_")}
        self.env |= {
            MARK: self.id.partition("=")[2],
            "NOMADFN_DATA_DIR": str(self.data),
            "NOMADFN_CAPACITY": "4",
            "NOMADFN_ENVIRONMENTS": str(folder / "environments"),
            "TMPDIR": str(self.temporary),
            "COLUMNS": "120",
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
        }
        self._running: list[Running] = []

    # Programs and commands.

    def write(self, name: str, source: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    def execute(self, *command: object, timeout_s: float = WAIT_S, **env: str) -> Done:
        """Run a command to its end."""
        words = [str(word) for word in command]
        try:
            done = subprocess.run(
                words,
                cwd=self.folder,
                env=self.env | env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as late:
            raise AssertionError(
                f"{words} goes on after {timeout_s:g} s\n{late.output!r}\n{late.stderr!r}\n{self.log()}"
            ) from None
        return Done(" ".join(words), done.returncode, done.stdout, done.stderr)

    def nomadfn(self, *words: object, timeout_s: float = WAIT_S, **env: str) -> Done:
        return self.execute(NOMADFN, *words, timeout_s=timeout_s, **env)

    def python(self, *words: object, timeout_s: float = WAIT_S, **env: str) -> Done:
        return self.execute(sys.executable, *words, timeout_s=timeout_s, **env)

    def start(self, *command: object, **env: str) -> Running:
        """Start a command that goes on beside the test, as a shell with job control would: in a group of its own."""
        words = [str(word) for word in command]
        number = len(self._running)
        out, err = self.folder.parent / f"{number}.out", self.folder.parent / f"{number}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                words,
                cwd=self.folder,
                env=self.env | env,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                process_group=0,
            )
        self._running.append(Running(process, " ".join(words), out, err))
        return self._running[-1]

    # The control service that stays.

    def up(self, *words: object, timeout_s: float = WAIT_S, **env: str) -> dict[str, Any]:
        """Start it and return what it says of itself."""
        record: dict[str, Any] = self.nomadfn("up", "--json", *words, timeout_s=timeout_s, **env).ok().json
        return record

    def deploy(self, file: str) -> None:
        self.nomadfn("deploy", file).ok()

    def service_pid(self) -> int:
        return int(json.loads((self.data / "service.json").read_text())["pid"])

    def kill_service(self) -> None:
        """kill -9 of the control service; returns when it and all its containers are gone."""
        pid = self.service_pid()
        tree = [pid, *self.descendants(pid)]
        os.kill(pid, signal.SIGKILL)
        self.gone(tree)

    def stop_service(self) -> None:
        """End it in good order, whatever state it is in."""
        try:
            os.kill(self.service_pid(), signal.SIGTERM)
        except (OSError, ValueError):
            pass
        self.all_gone()

    def reached_at(self) -> tuple[str, str]:
        """The HTTP API's address, and a token for it."""
        record = json.loads((self.data / "service.json").read_text())
        return record["http_url"], (self.data / "token").read_text().strip()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request to the HTTP API of the service that is up; the answer's JSON."""
        http_url, token = self.reached_at()
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(http_url + path, data, {"Authorization": f"Bearer {token}"}, method=method)
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return json.loads(answer.read())

    def explain(self, app: str, function: str) -> Any:
        return self.ask("GET", f"/v1/apps/{app}/functions/{function}")

    def log(self) -> str:
        """What the control service that stays has to say."""
        path = self.data / "control.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # Processes.

    def processes(self) -> dict[int, str]:
        """Every process of this test that runs, with its command line."""
        found: dict[int, str] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and self._is_ours(int(entry)):
                found[int(entry)] = _read(f"/proc/{entry}/cmdline").replace("\0", " ").strip()
        return found

    def _is_ours(self, pid: int) -> bool:
        return self.id in _read(f"/proc/{pid}/environ").split("\0")

    def descendants(self, pid: int) -> list[int]:
        """The children of `pid`, and theirs."""
        children = [int(child) for child in _read(f"/proc/{pid}/task/{pid}/children").split()]
        return children + [one for child in children for one in self.descendants(child)]

    def warm_parent(self) -> int:
        """The one process that containers are forked from; its parent is a control service."""
        ours = self.processes()
        found = [
            pid
            for pid, line in ours.items()
            if "nomadfn_agent" in line and "nomadfn.control" in ours.get(_parent(pid), "")
        ]
        assert len(found) == 1, ours
        return found[0]

    def containers(self) -> list[int]:
        """The processes of the containers that run, of all control services of this test."""
        ours = self.processes()
        agents = {pid for pid, line in ours.items() if "nomadfn_agent" in line}
        return sorted(pid for pid in agents if _parent(pid) in agents)

    def memory_kib(self, pid: int) -> int:
        """What the process holds in memory; 0 when it is gone."""
        found = re.search(r"^VmRSS:\s+(\d+)", _read(f"/proc/{pid}/status"), re.MULTILINE)
        return int(found[1]) if found else 0

    def gone(self, pids: Iterable[int]) -> None:
        """Wait until none of these processes of the test is left."""
        eventually(lambda: not set(pids) & set(self.processes()), f"processes {pids} are gone")

    def all_gone(self, timeout_s: float = WAIT_S) -> None:
        """Wait until no process of this test is left."""
        eventually(lambda: not self.processes(), "no process of the test is left", timeout_s)

    def close(self) -> None:
        """End what is there, in good order where there is one, and fail when anything outlives that."""
        for one in self._running:
            one.process.kill()
            one.process.wait()
        try:
            os.kill(self.service_pid(), signal.SIGTERM)
        except (OSError, ValueError):
            pass
        try:
            self.all_gone(timeout_s=20.0)
        except AssertionError:
            left = self.processes()
            for pid in left:
                _kill(pid)
            raise AssertionError(f"processes that outlived their owner: {left}\n{self.log()}") from None
        finally:
            shutil.rmtree(self.folder.parent, ignore_errors=True)


@contextmanager
def made_in(folder: Path) -> Iterator[World]:
    world = World(folder)
    try:
        yield world
    finally:
        world.close()


def _parent(pid: int) -> int:
    words = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(words[1]) if words else 0


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""
