"""Dev agents of Consul and Nomad in a folder of their own, on free ports, ended with everything that they started.

They serve on loopback and speak to each other alone, so that nothing else on this machine is disturbed: no default
port is taken, no container of another Nomad is touched, no variable of the environment is read.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

NEEDED = {
    "nomad": ((1, 6), "https://developer.hashicorp.com/nomad/install"),
    "consul": ((1, 8), "https://developer.hashicorp.com/consul/install"),
}
READY_S = 120.0
JOBS_END_S = 15.0
END_S = 20.0
POLL_S = 0.05
ASK_S = 5.0
NOMAD_CONFIG = """
name      = "demo"
bind_addr = "127.0.0.1"
data_dir  = "{folder}/nomad"
ports {{
  http = {ports[0]}
  rpc  = {ports[1]}
  serf = {ports[2]}
}}
advertise {{
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}}
consul {{
  address = "127.0.0.1:{consul_port}"
}}
plugin "raw_exec" {{
  config {{
    enabled = true
  }}
}}
client {{
  options = {{
    "driver.allowlist"     = "raw_exec"
    # Those of clouds wait for answers that a machine elsewhere never gets.
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean,vault,cni,bridge"
  }}
}}
"""


class DemoError(Exception):
    """What went wrong, and what to do."""


def versions() -> dict[str, tuple[int, ...]]:
    """Of the programs that are needed. Raises `DemoError` where one is missing or too old."""
    found: dict[str, tuple[int, ...]] = {}
    for name, (oldest, where) in NEEDED.items():
        wanted = f"{name} {oldest[0]}.{oldest[1]} or newer on PATH"
        if not shutil.which(name):
            raise DemoError(f"this needs {wanted}, and there is none: install it from {where}")
        try:
            shown = subprocess.run([name, "version"], capture_output=True, text=True, timeout=30).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise DemoError(f"{shutil.which(name)} does not run ({error}): install it from {where}") from None
        numbers = re.search(r"(\d+)\.(\d+)\.(\d+)", shown)
        found[name] = tuple(map(int, numbers.groups())) if numbers else ()
        if found[name] < oldest:
            raise DemoError(f"this needs {wanted}, and {shutil.which(name)} is {shown.split(chr(10))[0]}: see {where}")
    return found


def clean_environ(**more: str) -> dict[str, str]:
    """The environment without what would lead nomadfn or the agents to another cluster."""
    foreign = ("NOMAD_", "CONSUL_", "NOMADFN_", "VAULT_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | more


def eventually(condition: Callable[[], object], what: str, timeout_s: float) -> None:
    """Wait until `condition` is true; `DemoError` when it is not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(f"{what}: not within {timeout_s:g} s")
        time.sleep(POLL_S)


def ask(url: str, method: str = "GET") -> Any:
    """The JSON that a GET gives; None where there is no answer, or none that is JSON."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=ASK_S) as answer:
            return json.loads(answer.read())
    except (OSError, ValueError, urllib.error.HTTPError):
        return None


class Process:
    """A program in the background, in a group of its own so that Ctrl-C does not reach it; its output is in a file."""

    def __init__(self, name: str, command: list[str], folder: Path, environ: Mapping[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self, number: signal.Signals) -> None:
        """Ask it to end; kill it when it does not."""
        if not self.has_ended:
            self._process.send_signal(number)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()


class DevAgents:
    """One of Consul and one of Nomad."""

    def __init__(self, folder: Path, consul_version: tuple[int, ...]) -> None:
        self._folder = folder
        ports = _free_ports(6)
        self.consul_url = f"http://127.0.0.1:{ports[0]}"
        self.nomad_url = f"http://127.0.0.1:{ports[3]}"
        unused = ["dns", "serf_wan", "grpc", "https", *(["grpc_tls"] if consul_version >= (1, 14) else [])]
        own = dict(zip(("http", "serf_lan", "server"), ports, strict=False))
        settings = {"node_name": "demo", "ports": own | dict.fromkeys(unused, -1), "disable_update_check": True}
        (folder / "consul.json").write_text(json.dumps(settings))
        config = NOMAD_CONFIG.format(folder=folder, ports=ports[3:], consul_port=ports[0])
        (folder / "nomad.hcl").write_text(config)
        self.processes: list[Process] = []

    def start(self) -> None:
        # A dev agent of Nomad makes its allocations' folders where temporary files go.
        environ = clean_environ(TMPDIR=str(self._folder))
        for name, config in (("consul", "-config-file=consul.json"), ("nomad", "-config=nomad.hcl")):
            command = [name, "agent", "-dev", config.replace("=", f"={self._folder}/"), "-log-level=WARN"]
            self.processes.append(Process(name, command, self._folder, environ))

    def wait(self) -> None:
        """Until Consul is led and Nomad can start containers."""
        eventually(lambda: self._is_alive() and ask(f"{self.consul_url}/v1/status/leader"), "Consul starts", READY_S)
        eventually(lambda: self._is_alive() and self._has_node(), "Nomad starts", READY_S)

    def _is_alive(self) -> bool:
        for one in self.processes:
            if one.has_ended:
                raise DemoError(f"the dev agent of {one.name} has ended:\n{one.printed[-2000:]}")
        return True

    def _has_node(self) -> bool:
        nodes = ask(f"{self.nomad_url}/v1/nodes") or []
        drivers = [one["Drivers"].get("raw_exec", {}) for one in nodes if one["Status"] == "ready"]
        return any(driver.get("Healthy") for driver in drivers)

    def running(self, prefix: str) -> int:
        """Allocations that run, of jobs whose ids begin so."""
        found = ask(f"{self.nomad_url}/v1/allocations") or []
        return sum(one["ClientStatus"] == "running" and one["JobID"].startswith(prefix) for one in found)

    def end(self) -> None:
        """Jobs, agents, and what they leave behind."""
        for job in ask(f"{self.nomad_url}/v1/jobs") or []:
            ask(f"{self.nomad_url}/v1/job/{job['ID']}?purge=true", "DELETE")
        with contextlib.suppress(DemoError):
            eventually(lambda: not self.running(""), "the jobs end", JOBS_END_S)
        for one in reversed(self.processes):
            one.end(signal.SIGINT)
        _kill_all_of(self._folder)
        for mount in Path("/proc/self/mounts").read_text().splitlines():
            where = mount.split()[1]
            if where.startswith(f"{self._folder}/"):
                subprocess.run(["umount", "-l", where], check=False, capture_output=True)


@contextlib.contextmanager
def started(folder: Path, consul_version: tuple[int, ...]) -> Iterator[DevAgents]:
    """Dev agents that serve; all of them is gone at the end of the block."""
    agents = DevAgents(folder, consul_version)
    try:
        agents.start()
        agents.wait()
        yield agents
    finally:
        agents.end()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def _kill_all_of(folder: Path) -> None:
    """What was started for allocations in `folder` and still runs: Nomad's executors first, then their tasks."""
    mark = str(folder).encode()
    for name in ("cmdline", "environ"):
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if entry.name.isdigit() and int(entry.name) != os.getpid() and mark in (entry / name).read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
