"""A real Nomad for tests: a dev agent in a folder of its own, ended with everything that it started."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from nomadfn.adapters.nomad_api import NomadAddress, NomadApi
from nomadfn.exception import Error

OLDEST = (1, 6, 0)
START_S = 90.0
CONFIG = """
bind_addr = "127.0.0.1"
data_dir  = "{folder}/data"
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
  options = {{
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean,consul,vault,cni,bridge"
  }}
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


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


class RealNomad:
    """A dev agent: server and client in one process."""

    def __init__(self, path: str, folder: Path) -> None:
        self.folder = folder
        http, rpc, serf = free_ports(3)
        self.address = NomadAddress(url=f"http://127.0.0.1:{http}")
        config = folder / "nomad.hcl"
        config.write_text(CONFIG.format(folder=folder, http=http, rpc=rpc, serf=serf))
        self.log = (folder / "nomad.log").open("wb")
        self.command = [path, "agent", "-dev", f"-config={config}", "-log-level=WARN"]
        self.start()

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NOMAD_")}
        # A dev agent keeps its allocations in folders that it makes there, and leaves them behind.
        environment["TMPDIR"] = str(self.folder)
        self.process = subprocess.Popen(
            self.command, stdout=self.log, stderr=self.log, env=environment, start_new_session=True
        )
        api = NomadApi(self.address)
        deadline = time.monotonic() + START_S
        while not self._is_ready(api):
            assert time.monotonic() < deadline, (self.folder / "nomad.log").read_text()[-3000:]
            assert self.process.poll() is None, (self.folder / "nomad.log").read_text()[-3000:]
            time.sleep(0.1)
        api.close()

    def _is_ready(self, api: NomadApi) -> bool:
        try:
            return any(
                node["Status"] == "ready" and node["Drivers"].get("raw_exec", {}).get("Healthy") for node in api.nodes()
            )
        except Error:
            return False

    def close(self) -> None:
        """A dev agent does not always end its allocations when it is interrupted: what is left of them is killed."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        clean_up(self.folder)


def clean_up(folder: Path) -> None:
    """End what a Nomad in this folder has left: first the executors, which would take their time, then the tasks."""
    mark = f"{folder}/".encode()
    for name in ("cmdline", "environ"):
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and int(entry.name) != os.getpid() and mark in (entry / name).read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                pass  # It has ended meanwhile.
    for mount in Path("/proc/self/mounts").read_text().splitlines():
        where = mount.split()[1]
        if where.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", where], check=False, capture_output=True)
