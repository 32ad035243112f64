"""A small double of the control service for the agent's tests: real sockets, real frames, real processes."""

from __future__ import annotations

import itertools
import os
import queue
import secrets
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterable
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from nomadfn_agent import wire
from nomadfn_agent.wire import payload
from shared_folder import SharedFolder
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from nomadfn.adapters.warm_parent import WarmParent

TOKEN = "nf_test"
WAIT_S = 30.0
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
Frame = TypeVar("Frame")


def wait_until(condition: Callable[[], Any], what: str, wait_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {wait_s} s: {what}"
        time.sleep(0.002)


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


class Runner:
    """The control service's end of one runner's websocket."""

    def __init__(self, connection: ServerConnection, hello: wire.Hello) -> None:
        self.connection = connection
        self.hello = hello
        self.frames: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.statuses: dict[int, int] = {}
        self.payloads: dict[int, bytes] = {}
        self.returned: set[int] = set()
        """What the runner has said that it will not run."""
        self._deliveries = itertools.count(1)

    def send(self, *frames: Any) -> None:
        for frame in frames:
            self.connection.send(wire.encode(frame))

    def expect(self, kind: type[Frame]) -> Frame:
        """The next frame that is no Outputs or Returned (those are kept aside), which must be of this kind."""
        while True:
            frame = self.frames.get(timeout=WAIT_S)
            if isinstance(frame, wire.Outputs):
                self._keep(frame)
                if kind is not wire.Outputs:
                    continue
            if isinstance(frame, wire.Returned):
                self.returned.update(frame.deliveries)
                if kind is not wire.Returned:
                    continue
            assert isinstance(frame, kind), frame
            return frame

    def _keep(self, frame: wire.Outputs) -> None:
        for delivery, status, data in zip(frame.deliveries, frame.statuses, frame.payloads, strict=True):
            assert delivery not in self.statuses, "one delivery gave two outputs"
            self.statuses[delivery] = status
            self.payloads[delivery] = data

    def deliver(self, arguments: Iterable[tuple[Any, ...]], call: str = "fc-0011") -> list[int]:
        """Send inputs, pickled; returns their deliveries."""
        return self.deliver_raw([payload.dump_arguments(args, {}) for args in arguments], [wire.PICKLE], call)

    def deliver_raw(self, payloads: list[bytes], codecs: list[int], call: str = "fc-0011") -> list[int]:
        deliveries = [next(self._deliveries) for _ in payloads]
        for at in range(0, len(payloads), 512):
            part = slice(at, at + 512)
            each = codecs if len(codecs) == 1 else codecs[part]
            indexes = [delivery - 1 for delivery in deliveries[part]]
            self.send(wire.Deliver(call, deliveries[part], indexes, payloads[part], each))
        return deliveries

    def outcome(self, delivery: int) -> tuple[int, bytes]:
        while delivery not in self.statuses:
            self.expect(wire.Outputs)
        return self.statuses[delivery], self.payloads[delivery]

    def value(self, delivery: int) -> Any:
        status, data = self.outcome(delivery)
        assert status == wire.OK, (status, data)
        return payload.loads(data)

    def raised(self, delivery: int) -> payload.Raised:
        status, data = self.outcome(delivery)
        assert status == wire.EXCEPTION, (status, data)
        return payload.decode_raised(data)

    def failure(self, delivery: int) -> payload.Failure:
        status, data = self.outcome(delivery)
        assert status == wire.FAILURE, (status, data)
        return payload.decode_failure(data)

    def call(self, *args: Any) -> Any:
        return self.value(self.deliver([args])[0])

    def failed_start(self) -> payload.Raised:
        return payload.decode_raised(self.expect(wire.StartFailed).payload)


class Listener:
    """A websocket listener as the control service has one; every runner that joins comes out of `join`."""

    def __init__(self) -> None:
        self._joined: dict[str, Runner] = {}
        self._changed = threading.Condition()
        self._server: Server = serve(
            self._serve, "127.0.0.1", 0, compression=None, max_size=None, process_request=self._check
        )
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}/v1/connect"

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong token\n")
        return None

    def _serve(self, connection: ServerConnection) -> None:
        try:
            hello = wire.decode_from_runner(connection.recv())
            assert isinstance(hello, wire.Hello)
            runner = Runner(connection, hello)
            with self._changed:
                self._joined[hello.session] = runner
                self._changed.notify_all()
            for message in connection:
                runner.frames.put(wire.decode_from_runner(message))
        except ConnectionClosed:
            pass

    def join(self, container: str) -> Runner:
        with self._changed:
            assert self._changed.wait_for(lambda: container in self._joined, WAIT_S), f"{container} did not join"
            return self._joined[container]

    def close(self) -> None:
        self._server.shutdown()
        for runner in self._joined.values():
            runner.connection.close()
        self._thread.join(WAIT_S)


class Supervisor:
    """A warm parent, and a thread that keeps what it says."""

    def __init__(self) -> None:
        self.parent = WarmParent.launch()
        self.pids: dict[str, int] = {}
        self.ends: dict[str, wire.Ended] = {}
        self.texts: dict[tuple[str, int], list[str]] = {}
        self.withdrawals: dict[str, list[wire.Withdrawn]] = {}
        self.lock = threading.Condition()
        self.may_read = threading.Event()
        self.may_read.set()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        buffer = bytearray()
        while data := self._receive():
            self.may_read.wait()
            buffer += data
            while len(buffer) >= 4 and len(buffer) >= 4 + (length := wire.STREAM_HEADER.unpack_from(buffer)[0]):
                frame = wire.decode_from_supervisor(bytes(buffer[4 : 4 + length]))
                del buffer[: 4 + length]
                with self.lock:
                    self._keep(frame)
                    self.lock.notify_all()

    def _receive(self) -> bytes:
        try:
            return self.parent.control.recv(1 << 16)
        except OSError:
            return b""

    def _keep(self, frame: wire.SupervisorFrame) -> None:
        match frame:
            case wire.Started(container, pid):
                self.pids[container] = pid
            case wire.Ended(container):
                assert container not in self.ends
                self.ends[container] = frame
            case wire.Log(container, stream, text):
                assert container not in self.ends, "output after the end"
                self.texts.setdefault((container, stream), []).append(text)
            case wire.Withdrawn(container):
                self.withdrawals.setdefault(container, []).append(frame)

    def send(self, frame: wire.Start | wire.Stop | wire.Recall) -> None:
        self.parent.control.sendall(wire.encode_for_stream(frame))

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        with self.lock:
            assert self.lock.wait_for(condition, WAIT_S), f"still not so: {what}"

    def pid(self, container: str) -> int:
        self.wait(lambda: container in self.pids, f"{container} has started")
        return self.pids[container]

    def end(self, container: str) -> wire.Ended:
        self.wait(lambda: container in self.ends, f"{container} has ended")
        return self.ends[container]

    def output(self, container: str, stream: int = 1) -> str:
        with self.lock:
            return "".join(self.texts.get((container, stream), ()))

    def shut(self) -> None:
        """What the control service's end does to the warm parent."""
        self.parent.control.shutdown(1)

    def close(self) -> None:
        self.may_read.set()
        try:
            self.shut()
        except OSError:
            pass
        try:
            self.parent.process.wait(WAIT_S)
        finally:
            self.parent.process.kill()
            self.parent.process.wait()
        self._thread.join(WAIT_S)
        self.parent.control.close()
        for pid in self.pids.values():
            assert not is_running(pid), "a container outlived its supervisor"


class Machine:
    """Listener and supervisor together: `run` makes a container of a program's source."""

    def __init__(self, folder: Path) -> None:
        self.blobs = SharedFolder(folder / "blobs")
        self.code_cache = str(folder / "code")
        self.listener = Listener()
        self.supervisor = Supervisor()

    def archive(self, files: dict[str, str]) -> str:
        buffer = BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, text in files.items():
                archive.writestr(zipfile.ZipInfo(name), text)
        return self.blobs.write_code(buffer.getvalue())

    def start(self, **env: str) -> str:
        container = f"ct-{secrets.token_hex(8)}"
        joining = {"NOMADFN_DATA_URL": self.listener.url, "NOMADFN_TOKEN": TOKEN, "NOMADFN_CONTAINER_ID": container}
        self.supervisor.send(wire.Start(container, joining | env))
        return container

    def bind(
        self, spec: wire.FunctionSpec, files: dict[str, str] | None = None, *, code: dict[str, Any] | None = None
    ) -> wire.Bind:
        fields: dict[str, Any] = {"python": PYTHON, "origin": "/home/ada/thumbs"}
        if files:
            fields |= {"digest": self.archive(files), "main_module": "hello"}
        ref = wire.CodeRef(**(fields | (code or {})))
        return wire.Bind(
            "ap-1/f",
            spec,
            ref,
            "ap-1",
            "thumbs",
            0,
            self.blobs.place.folder,
            self.code_cache,
            blobs_mark=self.blobs.place.mark,
        )

    def join(
        self,
        source: str | dict[str, str],
        function: str = "f",
        *,
        env: dict[str, str] | None = None,
        user_env: dict[str, str] | None = None,
        code: dict[str, Any] | None = None,
        **spec: Any,
    ) -> Runner:
        """A container that has been told its function; whether it loads is not waited for."""
        files = source if isinstance(source, dict) else {"hello.py": source}
        container = self.start(**(env or {}))
        runner = self.listener.join(container)
        fields = {"name": function, "module": "hello", "qualname": function} | spec
        bind = self.bind(wire.FunctionSpec(**fields), files, code=code)
        bind.env = user_env or {}
        runner.send(bind)
        return runner

    def run(self, source: str | dict[str, str], function: str = "f", **options: Any) -> Runner:
        """A container that is ready."""
        runner = self.join(source, function, **options)
        assert runner.expect(wire.Ready).slots == 1
        return runner

    def pid(self, runner: Runner) -> int:
        return self.supervisor.pid(runner.hello.session)

    def end(self, runner: Runner) -> wire.Ended:
        return self.supervisor.end(runner.hello.session)

    def output(self, runner: Runner, stream: int = 1) -> str:
        return self.supervisor.output(runner.hello.session, stream)

    def recall(self, runner: Runner, up_to: int) -> wire.Withdrawn:
        """Have the supervisor withdraw what the runner has not started, up to this delivery."""
        container = runner.hello.session
        said = self.supervisor.withdrawals.setdefault(container, [])
        count, deadline = len(said), time.monotonic() + WAIT_S
        while len(said) == count:
            assert time.monotonic() < deadline, f"the supervisor of {container} does not answer"
            self.supervisor.send(wire.Recall(container, up_to))
            with self.supervisor.lock:
                self.supervisor.lock.wait_for(lambda: len(said) > count, 1.0)
        return said[count]

    def kill(self, runner: Runner, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid(runner), number)

    def end_all(self) -> None:
        """Kill every container and wait for its end."""
        for container in set(self.supervisor.pids) - set(self.supervisor.ends):
            self.supervisor.send(wire.Stop(container, 0.0))
            self.supervisor.end(container)

    def close(self) -> None:
        try:
            self.supervisor.close()
        finally:
            self.listener.close()
