"""A Redis for the peers that need one: the one on PATH, else Debian's package of it, unpacked below `.cache/`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "redis"
PACKAGES = ("redis-server", "redis-tools", "libatomic1", "libjemalloc2", "liblzf1")
FETCH_S = 120
START_S = 20
FAST = ("--save", "", "--appendonly", "no", "--bind", "127.0.0.1")
"""Nothing is written to disk: the fastest that there is, and less than nomadfn promises."""


class NoRedis(Exception):
    """There is no Redis here; the message says why."""


def find() -> tuple[list[str], dict[str, str]]:
    """The command that starts one, and what its environment needs. Raises NoRedis."""
    if on_path := shutil.which("redis-server"):
        return [on_path], {}
    binary = CACHE / "usr/bin/redis-server"
    if not binary.exists():
        try:
            _fetch()
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", None) or ""
            raise NoRedis(
                f"no redis-server on PATH, and Debian's cannot be fetched: {error} {output[-300:]}".strip()
            ) from None
    return [str(binary)], {"LD_LIBRARY_PATH": ":".join(map(str, (CACHE / "usr/lib").glob("*-linux-gnu")))}


def _fetch() -> None:
    """Download and unpack the packages; the system is left as it is."""
    CACHE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent) as name:
        folder = Path(name)
        _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *PACKAGES], folder)
        for package in folder.glob("*.deb"):
            _run(["dpkg-deb", "-x", str(package), str(folder / "root")], folder)
        shutil.rmtree(CACHE, ignore_errors=True)
        (folder / "root").rename(CACHE)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=FETCH_S)


@contextmanager
def running(folder: Path, env: dict[str, str]) -> Iterator[str]:
    """The URL of a Redis that is empty and listens on loopback. Raises NoRedis."""
    command, needs = find()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with open(folder / "redis.log", "ab") as log:
        arguments = [*command, "--port", str(port), "--dir", str(folder), *FAST]
        server = subprocess.Popen(arguments, env=os.environ | needs | env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_S
        while not _answers(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise NoRedis(f"redis-server does not start: {(folder / 'redis.log').read_text()[-300:]}")
            time.sleep(0.01)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(timeout=START_S)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
