"""A small stand-in for the control service that speaks the real frames over a real websocket.

It runs functions by itself, in the thread of their connection, and can be told to hold results back, to refuse
inputs, to cut connections and to forget everything. What only the real service can show is in
`test_with_service`.
"""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from nomadfn_agent import wire
from nomadfn_agent.wire import payload as payloads
from shared_folder import SharedFolder
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from nomadfn import App
from nomadfn.sdk import client as client_module
from nomadfn.sdk import service
from nomadfn.sdk.progress import Observer

TOKEN = "nf_double"


class Double:
    """One control service as the SDK sees it. Functions take one argument unless they are put in by a test."""

    def __init__(self, blobs: Path) -> None:
        self.blobs = SharedFolder(blobs)
        self.epoch = 1
        self.window = 1000
        self.functions: dict[str, Callable[..., Any]] = {}
        self.submitted: list[wire.Submit] = []
        self.requests: list[wire.Request] = []
        self.frames: list[Any] = []
        """Everything that came, in order."""
        self.acked = 0
        self.held: list[tuple[wire.Submit, int]] = []
        self.hold = False
        self.intercept: Callable[[ServerConnection, Any], bool] = lambda connection, frame: False
        """Sees each frame first; True means that it has been dealt with."""
        self.changed = threading.Condition()
        self.connections: list[ServerConnection] = []
        self._number = 0
        self._sessions: set[str] = set()
        self._done: set[tuple[str, int]] = set()
        self._results: list[wire.Results] = []
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    def start(self) -> None:
        self._server = serve(
            self._serve, "127.0.0.1", self.port, compression=None, process_request=self._check, max_size=None
        )
        self.port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self.cut()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join(10)
            self._server = None

    def cut(self) -> None:
        """Break every connection, as a crash does."""
        for connection in self.connections:
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
        self.connections.clear()

    def forget(self) -> None:
        """Another control service leads now and knows nothing of the sessions."""
        self.epoch += 1
        self._sessions.clear()
        self._done.clear()
        self._results.clear()
        self._number = 0

    def handle(self, token: str = TOKEN) -> service.ServiceHandle:
        return service.ServiceHandle(f"ws://127.0.0.1:{self.port}/v1/connect", "", token, False, None, "a double")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 20), "the double waited in vain"

    def release(self) -> None:
        """Compute what was held back, and hold back nothing more."""
        self.hold = False
        held, self.held = self.held, []
        for submit, place in held:
            self._answer(self.connections[-1], submit, [place])

    def inputs(self) -> int:
        return sum(len(submit.payloads) for submit in self.submitted)

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return connection.respond(401, "a wrong token")
        return None

    def _serve(self, connection: ServerConnection) -> None:
        try:
            hello = wire.decode_from_client(connection.recv(20, decode=False))
            assert isinstance(hello, wire.Hello)
            resumed = hello.session in self._sessions
            self._sessions.add(hello.session)
            welcome = wire.Welcome(
                wire.VERSION,
                self.epoch,
                resumed,
                self.blobs.place.folder,
                "",
                self.window,
                1 << 20,
                1 << 20,
                "a double",
                self.blobs.place.mark,
            )
            connection.send(wire.encode(welcome))
            for results in self._results:
                if results.number > hello.seen:
                    connection.send(wire.encode(results))
            with self.changed:
                self.connections.append(connection)
                self.frames.append(hello)
                self.changed.notify_all()
            while True:
                self._take(connection, wire.decode_from_client(connection.recv(decode=False)))
        except (ConnectionClosed, OSError, EOFError):
            pass

    def _take(self, connection: ServerConnection, frame: wire.ClientFrame) -> None:
        with self.changed:
            self.frames.append(frame)
            match frame:
                case wire.Submit():
                    self.submitted.append(frame)
                case wire.Request():
                    self.requests.append(frame)
                case wire.Ack():
                    self.acked = frame.number
                    self._results = [one for one in self._results if one.number > frame.number]
            self.changed.notify_all()
        if self.intercept(connection, frame):
            return
        match frame:
            case wire.Submit(kind=wire.SPAWN | wire.SPAWN_MAP):
                connection.send(wire.encode(wire.Accepted(frame.call, frame.first, len(frame.payloads))))
            case wire.Submit():
                places = list(range(len(frame.payloads)))
                if self.hold:
                    self.held += [(frame, place) for place in places]
                else:
                    self._answer(connection, frame, places)
            case wire.Request():
                connection.send(wire.encode(wire.Reply(frame.id, self._perform(frame))))

    def _answer(self, connection: ServerConnection, submit: wire.Submit, places: list[int]) -> None:
        places = [place for place in places if (submit.call, submit.first + place) not in self._done]
        self._done |= {(submit.call, submit.first + place) for place in places}
        outcomes = [self._compute(submit, place) for place in places]
        self._number += len(places)
        indexes = [submit.first + place for place in places]
        statuses, results = [one[0] for one in outcomes], [one[1] for one in outcomes]
        self._results.append(wire.Results(self._number, submit.call, indexes, statuses, results))
        try:
            connection.send(wire.encode(self._results[-1]))
        except ConnectionClosed:
            pass

    def _compute(self, submit: wire.Submit, place: int) -> tuple[int, bytes]:
        data = submit.payloads[place]
        if place in submit.refs:
            data = self.blobs.read(payloads.decode_ref(data))
        args, kwargs = payloads.load_arguments(data, wire.PICKLE)
        try:
            value = self.functions[submit.function.partition("/")[2]](*args, **kwargs)
        except Exception as error:
            return wire.EXCEPTION, payloads.encode(payloads.describe_exception(error))
        return wire.OK, pickle.dumps(value)

    def _perform(self, request: wire.Request) -> Any:
        body = request.body
        match request.operation:
            case "app.start":
                return {"functions": {one["name"]: f"app/{one['name']}" for one in body["spec"]["functions"]}}
            case "call.cancel" | "app.stop":
                return {"cancelled": 0}
            case _:
                return {}


class Recorder(Observer):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.maps: list[tuple[Any, ...]] = []
        self.lines: list[wire.Log] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def log(self, line: wire.Log) -> None:
        self.lines.append(line)

    def map_started(self, key: int, function: str, total: int | None, pool: str) -> None:
        self.maps.append(("started", function, total))

    def map_advanced(self, key: int, submitted: int, done: int) -> None:
        self.maps.append(("advanced", submitted, done))

    def map_finished(self, key: int) -> None:
        self.maps.append(("finished",))


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    one = Double(tmp_path / "blobs")
    one.start()
    monkeypatch.setattr(service, "attach_or_start", one.handle)
    monkeypatch.setattr(service, "attach", one.handle)
    yield one
    one.stop()


def square(x: int) -> int:
    if x == 13:
        raise ValueError(f"no {x}")
    return x * x


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def app(double: Double, recorder: Recorder) -> Iterator[App]:
    """A running app with one function, `square`, that does not like 13."""
    made = App("app")
    made.function()(square)
    double.functions["square"] = square
    with made.run(observer=recorder):
        yield made


@pytest.fixture(autouse=True)
def no_client_left_over() -> Iterator[None]:
    yield
    assert not client_module._active
