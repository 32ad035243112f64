"""A small agent for the tests of the Nomad adapter: it joins over TCP, and its containers are processes that sleep.

It speaks the same frames as the real supervisor. Started with a placement's `TEST_SCRIPT`, a container runs that
shell script instead of sleeping.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

from nomadfn_agent.wire import (
    STREAM_HEADER,
    Ended,
    Start,
    Started,
    Stop,
    decode_to_supervisor,
    encode_for_stream,
)

JOIN_S = 20.0


def join() -> socket.socket:
    address = urlsplit(os.environ["NOMADFN_CONTROL_URLS"].split()[0])
    deadline = time.monotonic() + JOIN_S
    while True:
        try:
            return socket.create_connection((address.hostname, address.port), timeout=JOIN_S)
        except OSError:
            if time.monotonic() > deadline:
                sys.exit("no control service took the agent in")
            time.sleep(0.05)


def hello(containers: list[str]) -> bytes:
    lane = int(os.environ["NOMAD_GROUP_NAME"].removeprefix("lane-"))
    said = {
        "job": os.environ["NOMAD_JOB_ID"],
        "alloc": os.environ["NOMAD_ALLOC_ID"],
        "lane": lane,
        "position": int(os.environ["NOMAD_ALLOC_INDEX"]),
        "containers": containers,
        "pid": os.getpid(),
        "environment": sorted(os.environ),
        "join_token": os.environ.get("NOMADFN_JOIN_TOKEN", ""),
        "identity": os.path.exists(os.environ.get("NOMAD_SECRETS_DIR", "") + "/nomad_nomadfn.jwt"),
    }
    return json.dumps(said).encode() + b"\n"


class Agent:
    def __init__(self) -> None:
        self.control = join()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.lock = threading.Lock()
        self.control.settimeout(None)
        self.control.sendall(hello([]))

    def send(self, frame: object) -> None:
        with self.lock:
            try:
                self.control.sendall(encode_for_stream(frame))
            except OSError:
                pass

    def serve(self) -> None:
        while True:
            while (body := self.read_frame()) is not None:
                match decode_to_supervisor(body):
                    case Start(container, env):
                        self.start(container, env)
                    case Stop(container, _):
                        if (process := self.processes.get(container)) is not None:
                            process.kill()
            with self.lock:
                self.control.close()
                self.control = join()
                self.control.settimeout(None)
                self.control.sendall(hello(list(self.processes)))

    def read_frame(self) -> bytes | None:
        try:
            head = self.read_exactly(STREAM_HEADER.size)
            return self.read_exactly(STREAM_HEADER.unpack(head)[0])
        except OSError:
            return None

    def read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.control.recv(size - len(data))
            if not more:
                raise OSError
            data += more
        return data

    def start(self, container: str, env: dict[str, str]) -> None:
        script = env.get("TEST_SCRIPT", "exec sleep 600")
        process = subprocess.Popen(["/bin/sh", "-c", script], env={**os.environ, **env}, stdin=subprocess.DEVNULL)
        self.processes[container] = process
        self.send(Started(container, process.pid))
        threading.Thread(target=self.watch, args=(container, process), daemon=True).start()

    def watch(self, container: str, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        self.processes.pop(container, None)
        self.send(Ended(container, code, "last words"))

    def end(self, *_: object) -> None:
        for process in list(self.processes.values()):
            process.kill()
        os._exit(0)


if __name__ == "__main__":
    agent = Agent()
    signal.signal(signal.SIGTERM, agent.end)
    agent.serve()
