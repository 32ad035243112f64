"""A real Nomad for tests, in a folder of its own, ended with everything that it started.

`RealNomad` is a dev agent. `NomadAgents` is a server and clients as agents of their own, which can be killed and
started again on the data that they left.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nomadfn.adapters.nomad_api import NomadAddress, NomadApi
from nomadfn.exception import Error

OLDEST = (1, 6, 0)
START_S = 90.0
PLUGINS = "NOMADFN_TEST_NOMAD_PLUGINS"
"""Names a folder with `fake-gpu`: a device plugin that offers what FAKE_GPUS says, `model=count=MiB` with commas."""
CONFIG = """
bind_addr = "127.0.0.1"
data_dir  = "{folder}/data"
disable_update_check = true
ports {{
  http = {http}
  rpc  = {rpc}
  serf = {serf}
}}
advertise {{
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}}
plugin "raw_exec" {{
  config {{
    enabled = true
  }}
}}
client {{
  {client}
  options = {{
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean,consul,vault,cni,bridge"
  }}
}}
"""
SERVER = """
server {{
  enabled           = true
  bootstrap_expect  = 1
  min_heartbeat_ttl = "{away_s}s"
  heartbeat_grace   = "1s"
}}
"""


def find() -> tuple[str, str]:
    """The path of a Nomad that is new enough, or else an empty one and why there is none."""
    path = os.environ.get("NOMADFN_TEST_NOMAD") or shutil.which("nomad")
    if not path:
        return "", "no nomad on PATH"
    said = subprocess.run([path, "version"], capture_output=True, text=True, timeout=30).stdout
    version = tuple(int(part) for part in said.split()[1].lstrip("v").partition("-")[0].split("."))
    if version < OLDEST:
        return "", f"nomad {version} is older than {OLDEST}"
    return path, ""


def has_plugin() -> bool:
    """Whether there is a plugin with pretended GPUs."""
    return (Path(os.environ.get(PLUGINS) or "/nowhere") / "fake-gpu").exists()


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


class Agent:
    """One process of `nomad agent`, with its data and its log in a folder."""

    def __init__(
        self, path: str, folder: Path, mode: str, client: str, more: str = "", environment: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        http, self.rpc_port, serf = free_ports(3)
        self.address = NomadAddress(url=f"http://127.0.0.1:{http}")
        config = folder / "nomad.hcl"
        config.write_text(CONFIG.format(folder=folder, http=http, rpc=self.rpc_port, serf=serf, client=client) + more)
        self.command = [path, "agent", *mode.split(), f"-config={config}", "-log-level=WARN"]
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("NOMAD_")}
        # A dev agent keeps its allocations in folders that it makes there, and leaves them behind.
        self._environment |= {"TMPDIR": str(folder), **(environment or {})}
        self.start()

    def start(self) -> None:
        with (self.folder / "nomad.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait_until(self, is_ready: Callable[[NomadApi], bool]) -> None:
        api = NomadApi(self.address)
        deadline = time.monotonic() + START_S
        while not self._answers(api, is_ready):
            assert time.monotonic() < deadline, self.log()
            assert self.process.poll() is None, self.log()
            time.sleep(0.1)
        api.close()

    def _answers(self, api: NomadApi, is_ready: Callable[[NomadApi], bool]) -> bool:
        try:
            return is_ready(api)
        except Error:
            return False

    def log(self) -> str:
        return (self.folder / "nomad.log").read_text(errors="replace")[-3000:]

    def close(self) -> None:
        """An agent does not always end its allocations when it is interrupted: what is left of them is killed."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
        clean_up(self.folder)


def clean_up(folder: Path) -> None:
    """End what a Nomad in this folder has left behind, and take its mounts away."""
    kill_all_of(folder)
    for mount in Path("/proc/self/mounts").read_text().splitlines():
        where = mount.split()[1]
        if where.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", where], check=False, capture_output=True)


def kill_all_of(folder: Path) -> None:
    """First the executors, which would see to their tasks' end at leisure, then the tasks."""
    marks = f"{folder}/".encode(), f"{folder}\0".encode()
    for name in ("cmdline", "environ"):
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or int(entry.name) == os.getpid():
                    continue
                content = (entry / name).read_bytes()
                if any(mark in content for mark in marks):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                pass  # It has ended meanwhile.


def _is_usable(node: dict[str, Any]) -> bool:
    return node["Status"] == "ready" and bool(node["Drivers"].get("raw_exec", {}).get("Healthy"))


class RealNomad:
    """A dev agent: server and client in one process. `gpus` are those of the fake plugin, where there is one."""

    def __init__(self, path: str, folder: Path, gpus: dict[str, tuple[int, int]] | None = None) -> None:
        more, environment = "", {}
        if gpus:
            more = f'plugin_dir = "{os.environ[PLUGINS]}"\nplugin "fake-gpu" {{\n  config {{}}\n}}\n'
            environment["FAKE_GPUS"] = ",".join(f"{name}={count}={mib}" for name, (count, mib) in gpus.items())
        self._agent = Agent(path, folder, "-dev", "", more, environment)
        self.address = self._agent.address
        has_devices = bool(gpus)
        self._agent.wait_until(
            lambda api: any(
                _is_usable(node) and (not has_devices or bool(node["NodeResources"].get("Devices")))
                for node in api.nodes()
            )
        )

    def close(self) -> None:
        self._agent.close()


class NomadAgents:
    """A server and `clients` nodes. A node that is away for some `away_s` seconds is down for the server."""

    def __init__(self, path: str, folder: Path, clients: int, away_s: int) -> None:
        self.server = Agent(path, folder / "server", "", "enabled = false", SERVER.format(away_s=away_s))
        self.address = self.server.address
        self.server.wait_until(lambda api: api.nodes() == [])
        options = f'enabled = true\n  servers = ["127.0.0.1:{self.server.rpc_port}"]\n  gc_max_allocs = 500'
        self.clients = [Agent(path, folder / f"client{number}", "", options) for number in range(clients)]
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Every node is there and can run plain processes."""
        self.server.wait_until(lambda api: sum(map(_is_usable, api.nodes())) == len(self.clients))

    def close(self) -> None:
        for agent in (*self.clients, self.server):
            agent.close()
