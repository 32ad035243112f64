"""The standard-library example on a Nomad and a Consul of its own, with one kill of the control service that leads.

    make demo-cluster

Needs `nomad` and `consul` on PATH and nothing else: dev agents start in a temporary folder on free ports, and all of
it is gone at the end, after Ctrl-C and after a failure, too. Each line begins with the seconds since the start.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from dev_agents import POLL_S, DemoError, DevAgents, Process, ask, clean_environ, eventually, started, versions

EXAMPLES = Path(__file__).resolve().parent.parent
PROGRAM = EXAMPLES / "stdlib_report.py"
CLUSTER = "demo"
CONTAINERS = max(4, min(16, os.cpu_count() or 1))
"""At most; a real cluster's ceiling is 100 by default."""
ROUNDS = 3
"""How often each module is measured while the leader is killed."""
SCALEDOWN_WINDOW_S = 2
LEADS_S = 60.0
COMMAND_S = 300.0
TO_ZERO_S = 120.0
EXIT_FAILED, EXIT_MISSING, EXIT_INTERRUPTED = 1, 2, 130
PROFILE = """
[profiles.demo]
nomad = "{agents.nomad_url}"
consul = "{agents.consul_url}"
cluster = "{cluster}"
blobs = "{folder}/blobs"
[profiles.demo.job]
driver = "raw_exec"
python = "{python}"
ceiling = {containers}
cpu_cores = 0.05
memory_mib = 64
kill_timeout_s = 5
"""
_started_at = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - _started_at:6.1f} s  {text}", flush=True)


class Demo:
    """A cluster with two control services, and what happens on it."""

    def __init__(self, folder: Path, agents: DevAgents) -> None:
        self._folder = folder
        self._agents = agents
        self._controls: list[Process] = []
        self._zero = threading.Event()
        """No container runs."""
        self._over = threading.Event()
        self.most = 0
        """Containers that ran at once, since `watch` was last told to begin anew."""

    def configure(self) -> None:
        """A profile for this process and all that it starts."""
        toml = self._folder / "nomadfn.toml"
        values = {"agents": self._agents, "cluster": CLUSTER, "folder": self._folder}
        toml.write_text(PROFILE.format(**values, python=sys.executable, containers=CONTAINERS))
        environ = clean_environ(
            NOMADFN_CONFIG=str(toml),
            NOMADFN_PROFILE="demo",
            NOMADFN_TOKEN=f"nf_{secrets.token_urlsafe(32)}",
            PYTHONUNBUFFERED="1",
        )
        os.environ.clear()
        os.environ.update(environ)

    def start_control(self) -> Process:
        """The first one leads, the second one stands by."""
        command = [sys.executable, "-m", "nomadfn.control"]
        control = Process(f"control-{len(self._controls) + 1}", command, self._folder, os.environ)
        self._controls.append(control)
        return control

    def leader(self) -> dict[str, Any]:
        """What the one that leads and serves says of itself in Consul; empty where none does."""
        key = f"{self._agents.consul_url}/v1/kv/nomadfn/{CLUSTER}.shards/0/lock"
        found = ask(f"{key}?raw") or {}
        is_held = bool((ask(key) or [{}])[0].get("Session"))
        return found if is_held and found.get("data_url") else {}

    def await_leader(self, not_pid: int = 0) -> dict[str, Any]:
        """The leader, once there is one other than `not_pid`."""

        def leads() -> bool:
            if all(one.has_ended for one in self._controls):
                raise DemoError("every control service has ended")
            return bool(self.leader().get("pid", not_pid) != not_pid)

        eventually(leads, "a control service leads", LEADS_S)
        return self.leader()

    def nomadfn(self, *words: str) -> None:
        """One command of nomadfn's, with its output on ours."""
        print(f"          $ nomadfn {' '.join(words)}", flush=True)
        command = [sys.executable, "-m", "nomadfn", *words]
        with subprocess.Popen(command, cwd=EXAMPLES.parent, process_group=0) as process:
            try:
                code = process.wait(COMMAND_S)
            except subprocess.TimeoutExpired:
                raise DemoError(f"nomadfn {words[0]} goes on after {COMMAND_S:g} s") from None
            finally:
                process.kill()
        if code:
            raise DemoError(f"nomadfn {words[0]} has ended with exit code {code}")

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Says how many containers run, whenever that changes."""
        thread = threading.Thread(target=self._watch, name="watch")
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        known = 0
        while not self._over.wait(POLL_S):
            count = self._agents.running(f"{CLUSTER}-fn-")
            if count != known:
                say(f"    containers: {known} → {count}")
            self.most = max(self.most, count)
            known = count
            (self._zero.clear if count else self._zero.set)()

    def to_zero(self) -> float:
        """Seconds until no container runs."""
        begun = time.monotonic()
        if not self._zero.wait(TO_ZERO_S):
            raise DemoError(f"containers run on for {TO_ZERO_S:g} s without work")
        return time.monotonic() - begun

    def run_example(self) -> None:
        say("The standard-library example, unchanged; no container runs yet")
        self.most = 0
        self.nomadfn("run", str(PROGRAM.relative_to(EXAMPLES.parent)), "--top", "3", "--no-compare")
        took_s = self.to_zero()
        say(f"0 → {self.most} → 0 containers; the last one was gone {took_s:.1f} s after the program's end")

    def take_over(self) -> None:
        """Map over the deployed function from here, and kill the leader once a third of the results is there."""
        say("The same app, deployed: its functions stay, its containers come and go")
        self.nomadfn("deploy", str(PROGRAM.relative_to(EXAMPLES.parent)))
        window = str(SCALEDOWN_WINDOW_S)
        self.nomadfn("function", "scale", "stdlib-report", "measure", "--scaledown-window", window)
        results, killed_at, longest_s = self._map_with_a_kill()
        self._compare(results)
        say(f"All {len(results):,} results are right; they paused for {longest_s:.2f} s at the longest after the kill")
        left = self.leader()
        say(f"pid {left['pid']} leads, {time.monotonic() - killed_at:.1f} s after the kill; the program saw no error")
        self.to_zero()
        say(f"0 → {self.most} → 0 containers; idle ones go after {SCALEDOWN_WINDOW_S} s here, by `function scale`")

    def _map_with_a_kill(self) -> tuple[list[Any], float, float]:
        """The results, when the leader was killed, and the longest time from then on in which none came."""
        import nomadfn

        sys.path.insert(0, str(EXAMPLES))
        import stdlib_report

        inputs = stdlib_report.modules() * ROUNDS
        measure = nomadfn.Function.from_name("stdlib-report", "measure")
        say(f"A map over {len(inputs):,} modules, {ROUNDS} times the whole library")
        self.most, killed_at, longest_s = 0, 0.0, 0.0
        results, last = [], time.monotonic()
        for result in measure.map(inputs):
            results.append(result)
            now = time.monotonic()
            longest_s = max(longest_s, now - last) if killed_at else 0.0
            last = now
            if not killed_at and len(results) >= len(inputs) // 3:
                killed_at = self._kill_leader(len(results))
        if not killed_at:
            raise DemoError(f"the map has ended after {len(results):,} of {len(inputs):,} results")
        return results, killed_at, longest_s

    def _kill_leader(self, done: int) -> float:
        leading = self.leader()
        say(f"kill -9 of the leading control service (pid {leading['pid']}), with {done:,} results there")
        next(one for one in self._controls if one.pid == leading["pid"]).kill()
        killed_at = time.monotonic()
        found = self.await_leader(not_pid=leading["pid"])
        took_s = time.monotonic() - killed_at
        say(f"The standby (pid {found['pid']}) leads and serves {took_s:.2f} s later, epoch {found['epoch']}")
        return killed_at

    def _compare(self, results: list[Any]) -> None:
        import stdlib_report

        expected = [stdlib_report.measure.local(path).functions for path in stdlib_report.modules()]
        if [one.functions for one in results] != expected * ROUNDS:
            raise DemoError("the containers' results are not those of a plain loop here")

    def logs(self) -> str:
        """The last lines of everything that ran."""
        running = [*self._agents.processes, *self._controls]
        return "\n".join(f"--- {one.name}\n{one.printed[-2000:]}" for one in running)

    def end_controls(self) -> None:
        for one in self._controls:
            one.end(signal.SIGTERM)


def tell(folder: Path, found: dict[str, tuple[int, ...]]) -> None:
    """The demo from its first step to its last."""
    names = " and ".join(f"{name.title()} {'.'.join(map(str, numbers))}" for name, numbers in found.items())
    say(f"{names} start as dev agents, on free ports and in {folder}")
    with started(folder, found["consul"]) as agents:
        say(f"They serve: Nomad at {agents.nomad_url}, Consul at {agents.consul_url}")
        demo = Demo(folder, agents)
        try:
            demo.configure()
            demo.start_control()
            leading = demo.await_leader()
            say(f"A control service leads: pid {leading['pid']} at {leading['http_url']}")
            standby = demo.start_control()
            eventually(lambda: "standing by" in standby.printed, "the second control service stands by", LEADS_S)
            say(f"Another one stands by: pid {standby.pid}")
            with demo.watched():
                demo.run_example()
                demo.take_over()
        except Exception:
            print(demo.logs(), file=sys.stderr)
            raise
        finally:
            on_signals(signal.SIG_IGN)  # What follows has an end of its own.
            say("Cleaning up")
            demo.end_controls()


def on_signals(do: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, do)


def interrupt(number: int, frame: FrameType | None) -> None:
    on_signals(signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Returns the exit code."""
    try:
        found = versions()
    except DemoError as error:
        print(f"demo-cluster: {error}", file=sys.stderr)
        return EXIT_MISSING
    on_signals(interrupt)
    folder = Path(tempfile.mkdtemp(prefix="nomadfn-demo-"))
    try:
        tell(folder, found)
    except KeyboardInterrupt:
        say("Interrupted; nothing is left of it")
        return EXIT_INTERRUPTED
    except DemoError as error:
        print(f"demo-cluster: {error}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say("Done; nothing is left of it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
