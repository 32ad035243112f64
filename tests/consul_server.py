"""A real Consul for tests: found or fetched, started on free loopback ports, with ACLs that deny by default.

The binary is the `consul` on PATH, else Debian's package of it, which is fetched through a copy of this machine's
own apt source with an older suite in it and unpacked below `.cache/`; the system is left as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import consul as library
import pytest
from consul.callback import CB

from nomadfn.adapters.consul_store import POLICY, ConsulSettings, ConsulStore

CACHE = Path(__file__).resolve().parent.parent / ".cache"
SUITE = "bullseye"
"""The last suite of Debian with a Consul in it."""
SUITES = "bullseye|bookworm|trixie|forky"
APT_SOURCES = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt").glob("sources.list.d/*"))]
FETCH_S = 100
START_S = 30
MIN_TTL_S = 1.0
"""Consul's own least session TTL is 10 s; the servers of the tests take less, so that nobody waits for it."""


def consul_binary() -> str:
    """The path of a Consul that runs. Skips the test, with the reason, where there is none."""
    path, reason = _look()
    if not path:
        pytest.skip(reason)
    return path


@cache
def _look() -> tuple[str, str]:
    """Where Consul is, or else why there is none."""
    if on_path := shutil.which("consul"):
        return on_path, ""
    CACHE.mkdir(exist_ok=True)
    target = CACHE / "consul" / "consul"
    with open(CACHE / "consul.lock", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # the other workers of this test run wait for the one that fetches
        if not target.exists():
            try:
                _fetch(target)
            except (OSError, LookupError, ValueError, subprocess.SubprocessError) as error:
                output = getattr(error, "stderr", None) or ""
                return "", f"no consul on PATH, and Debian's cannot be fetched: {error} {output[-500:]}"
    return str(target), ""


@cache
def consul_version() -> tuple[int, ...]:
    shown = subprocess.run([consul_binary(), "version"], capture_output=True, text=True, timeout=30).stdout
    return tuple(map(int, re.findall(r"\d+", shown)[:3]))


def _fetch(target: Path) -> None:
    folder = CACHE / "apt"
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("state/lists/partial", "cache/archives/partial", "root"):
        (folder / part).mkdir(parents=True)
    (folder / "state/status").touch()
    source = folder / "older.sources"
    source.write_text(_older_source())
    options = {
        "Dir::Etc::sourcelist": source,
        "Dir::Etc::sourceparts": "-",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "state/status",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::Check-Valid-Until": "false",
    }
    flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    _run(["apt-get", *flags, "-q", "update"], folder)
    _run(["apt-get", *flags, "-q", "download", "consul"], folder)
    [package] = folder.glob("consul_*.deb")
    _run(["dpkg-deb", "-x", str(package), str(folder / "root")], folder)
    _run([str(folder / "root/usr/bin/consul"), "version"], folder)
    target.parent.mkdir(exist_ok=True)
    shutil.move(folder / "root/usr/bin/consul", target)
    shutil.rmtree(folder)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=FETCH_S)


def _older_source() -> str:
    """The machine's own main source of packages, with the suite that has the package."""
    for path in APT_SOURCES:
        if path.suffix in (".list", ".sources") and path.is_file():
            for block in re.split(r"\n\s*\n", path.read_text()):
                if path.suffix == ".sources" and re.search(rf"(?m)^Suites:.*\s({SUITES})(\s|$)", block):
                    return re.sub(r"(?m)^Suites:.*$", f"Suites: {SUITE}", block) + "\n"
                if line := re.search(rf"(?m)^deb\s.*\s({SUITES})\s+main\b", block):
                    return re.sub(rf"\s({SUITES})\s.*", f" {SUITE} main", line[0]) + "\n"
    raise LookupError(f"no apt source of this machine has one of the suites {SUITES}.")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class ConsulServer:
    """One server process. Its data outlives it in `folder`, so that it may be started again."""

    folder: Path
    name: str
    servers: int = 1
    management_token: str = field(default_factory=lambda: str(uuid.uuid4()))
    join: list[str] = field(default_factory=list)
    token: str = ""
    """A token with the documented policy and no other right."""

    def __post_init__(self) -> None:
        self.http_port, self.serf_port, self.server_port = free_ports(3)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def settings(self) -> ConsulSettings:
        return ConsulSettings(self.address, self.token, timeout_s=5.0)

    def store(self, **changes: Any) -> ConsulStore:
        return ConsulStore(replace(self.settings, **changes))

    def start(self) -> None:
        binary = consul_binary()
        management = "initial_management" if consul_version() >= (1, 11) else "master"
        unused_ports = ["dns", "serf_wan", "grpc", "https", *(["grpc_tls"] if consul_version() >= (1, 14) else [])]
        settings = {
            "server": True,
            "bootstrap_expect": self.servers,
            "node_name": self.name,
            "data_dir": str(self.folder / "data"),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "retry_join": self.join,
            "retry_interval": "1s",
            "ports": {
                "http": self.http_port,
                "serf_lan": self.serf_port,
                "server": self.server_port,
                **dict.fromkeys(unused_ports, -1),
            },
            "acl": {
                "enabled": True,
                "default_policy": "deny",
                "tokens": dict.fromkeys((management, "agent"), self.management_token),
            },
            "performance": {"raft_multiplier": 1},
            "session_ttl_min": f"{round(MIN_TTL_S * 1000)}ms",
            "disable_update_check": True,
            "log_level": "warn",
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "consul.json").write_text(json.dumps(settings))
        with open(self.folder / "consul.log", "ab") as log:
            self._process = subprocess.Popen(
                [binary, "agent", f"-config-file={self.folder / 'consul.json'}"], stdout=log, stderr=log
            )

    def client(self) -> library.Consul:
        client = library.Consul("127.0.0.1", self.http_port, connections_timeout=5.0)
        client.token = self.management_token
        return client

    def wait_until_led(self) -> None:
        wait_until(lambda: bool(self.leader()), START_S, lambda: f"Consul does not start: {self.log()}")

    def leader(self) -> str:
        """The address of the leading server as this one knows it, empty when there is none."""
        with managed(self.client()) as client:
            try:
                found: str = client.status.leader()
                if found:
                    client.kv.get("ready", consistency="consistent")
            except (library.ConsulException, OSError):
                return ""
            return found

    def make_token(self, policy: str = POLICY) -> str:
        """A new token with this policy alone."""
        with managed(self.client()) as client:

            def make() -> str:
                # Not the library's `policy.create`, which takes its rules as JSON only.
                body = json.dumps({"Name": f"nomadfn-{uuid.uuid4()}", "Rules": policy})
                headers = client.prepare_headers()
                created = client.http.put(CB.json(), "/v1/acl/policy", headers=headers, data=body)
                secret: str = client.acl.token.create(policies_id=[created["ID"]])["SecretID"]
                return secret

            deadline = time.monotonic() + START_S
            while True:
                try:
                    return make()
                except library.ConsulException:  # the ACLs come up a moment after the leader
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()
        self.wait_until_led()

    def log(self) -> str:
        return (self.folder / "consul.log").read_text(errors="replace")[-2000:]


@contextlib.contextmanager
def managed(client: library.Consul) -> Iterator[library.Consul]:
    try:
        yield client
    finally:
        client.http.session.close()


def wait_until(condition: Callable[[], bool], timeout_s: float, what: Callable[[], str] | str = "") -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, (what if isinstance(what, str) else what()) or "waited in vain"
        time.sleep(0.02)


@contextlib.contextmanager
def running_consul(folder: Path) -> Iterator[ConsulServer]:
    """One server with a token of nomadfn's rights."""
    with running_cluster(folder, 1) as [server]:
        yield server


@contextlib.contextmanager
def running_cluster(folder: Path, count: int) -> Iterator[list[ConsulServer]]:
    """Several servers that elect one of them, and a token that all take."""
    token = str(uuid.uuid4())
    servers = [ConsulServer(folder / f"server{number}", f"server{number}", count, token) for number in range(count)]
    try:
        for server in servers:
            server.join = [f"127.0.0.1:{other.serf_port}" for other in servers if other is not server]
            server.start()
        for server in servers:
            server.wait_until_led()
        secret = servers[0].make_token()
        for server in servers:
            server.token = secret
            wait_until(lambda store=server.settings: _knows(store), START_S, "a server does not take the token")
        yield servers
    finally:
        for server in servers:
            server.kill()
        if not os.environ.get("KEEP_CONSUL"):
            for server in servers:
                shutil.rmtree(server.folder, ignore_errors=True)


def _knows(settings: ConsulSettings) -> bool:
    store = ConsulStore(settings)
    try:
        store.keys("nomadfn/")
    except Exception:
        return False
    finally:
        store.close()
    return True
