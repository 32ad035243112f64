"""Agents and a real control service: real sockets, the agent from the file that Nomad would fetch, real containers.

The cluster is one of allocations in memory; containers see no folder of the control service.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import io
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import nomadfn_jobspecs
import pytest
from nomadfn_agent import wire
from nomadfn_agent.join import PING_S
from nomadfn_agent.wire.link import Link, LinkClosed, LinkRefused

from nomadfn import ports
from nomadfn.adapters.file_secrets import FileSecrets
from nomadfn.adapters.jobspec import AGENT_PATH
from nomadfn.adapters.local import describe_exit
from nomadfn.adapters.memory import MemoryBlobs, MemoryCluster, MemoryJournal, MemoryRegistry
from nomadfn.control import agents, api
from nomadfn.control.address import Address
from nomadfn.control.connections import listen
from nomadfn.control.join_tokens import JoinTokens
from nomadfn.control.service import Service
from nomadfn.control.tokens import Identity, Tokens
from nomadfn.core.core import Core
from nomadfn.core.limits import Limits
from nomadfn.core.model import DRAINING
from nomadfn.exception import NotFoundError

OWNER = "nf_" + "o" * 43
JOINING = JoinTokens(OWNER)
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
WAIT_S = 40.0
SOURCE = """
import os, time
import nomadfn
app = nomadfn.App("shop")
@app.function()
def f(x):
    return [x + 1, os.environ["GREETING"], os.path.dirname(os.path.dirname(nomadfn.__file__))]
@app.function()
def slow(mark):
    open(mark, "w").close()
    while not os.path.exists(mark + ".go"):
        time.sleep(0.01)
    return "done"
@app.function()
def large(n):
    return "x" * n
"""
Result = TypeVar("Result")


class Allocations(MemoryCluster):
    """One allocation a job, in memory; the agent that joins as it gets the containers that wait."""

    def __init__(self) -> None:
        super().__init__(answers=False)
        self.seats: dict[str, Seat] = {}
        self.waiting: list[wire.Start] = []
        self.refusal = ""
        self.may_attach = threading.Event()
        self.may_attach.set()

    async def attach(self, join: wire.Join, send: Callable[[wire.Start | wire.Stop], None]) -> Seat:
        await asyncio.to_thread(self.may_attach.wait, WAIT_S)
        if self.refusal:
            raise NotFoundError(self.refusal)
        seat = self.seats[join.alloc] = Seat(self, send)
        while self.waiting:
            seat.start(self.waiting.pop())
        return seat

    def start(self, placement: ports.Placement) -> None:
        super().start(placement)
        frame = wire.Start(placement.container, placement.env)
        if seat := next(iter(self.seats.values()), None):
            seat.start(frame)
        else:
            self.waiting.append(frame)

    def stop(self, container: str, grace_s: float) -> None:
        super().stop(container, grace_s)
        for seat in self.seats.values():
            seat.send(wire.Stop(container, grace_s))


class Seat:
    def __init__(self, cluster: Allocations, send: Callable[[wire.Start | wire.Stop], None]) -> None:
        self.cluster = cluster
        self.send = send
        self.containers: list[str] = []

    def start(self, frame: wire.Start) -> None:
        self.containers.append(frame.container)
        self.send(frame)

    def on_frame(self, frame: wire.SupervisorFrame) -> None:
        match frame:
            case wire.Started(container, pid):
                self.cluster.emit(ports.ContainerStarted(container, pid))
            case wire.Ended(container, exit_code, tail):
                self.containers.remove(container)
                self.cluster.emit(ports.ContainerEnded(container, describe_exit(exit_code), tail))
            case wire.Log(container, stream, text):
                self.cluster.emit(ports.ContainerOutput(container, stream, text))

    def closed(self) -> None:
        for container in self.containers:
            self.cluster.emit(ports.ContainerEnded(container, "its agent is gone", ""))
        self.cluster.seats = {alloc: seat for alloc, seat in self.cluster.seats.items() if seat is not self}


class World:
    """A control service in a thread with a loop of its own, and agents as processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = MemoryBlobs()
        self.http = socket.create_server(("127.0.0.1", 0))
        self.http_url = f"http://127.0.0.1:{self.http.getsockname()[1]}"
        self.faults: list[Exception] = []
        self._running: Future[asyncio.Event] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))
        self._thread.start()
        self._stop = self._running.result(timeout=WAIT_S)

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.cluster = Allocations()
        address = Address(http_url=self.http_url, code_cache="/nowhere/code")
        core = Core(Limits(), epoch=5)
        self.service = Service(
            core,
            self.cluster,
            MemoryRegistry(),
            self.blobs,
            Tokens(OWNER),
            address,
            MemoryJournal(),
            self.faults.append,
            FileSecrets(Path("/nowhere")),
        )
        self.service.agents.open(self.cluster.attach, JOINING.verify)
        listener = await listen(self.service, "127.0.0.1", 0)
        address.data_url = self.data_url = f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1/connect"
        await self.service.start()
        server = await api.serve_api(api.create_api(self.service, self.service.desk), self.http)
        stop = asyncio.Event()
        self._running.set_result(stop)
        await stop.wait()
        listener.close()
        await self.service.close("the test is over")
        await server.close()

    def on_loop(self, work: Callable[[], Result]) -> Result:
        async def call() -> Result:
            return work()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(WAIT_S)

    def ask(self, method: str, path: str, body: Any = None, token: str = OWNER) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http.getsockname()[1], timeout=WAIT_S)
        try:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def call(self, function: str, *args: Any) -> Any:
        status, body = self.ask("POST", f"/v1/apps/shop/functions/{function}/call", {"args": args})
        return json.loads(body)["result"] if status == 200 else json.loads(body)["error"]

    def deploy(self) -> str:
        """Deploy the program; returns the digest of its code."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("shop.py", SOURCE)
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        self.blobs.put(digest, buffer.getvalue())
        functions = [
            wire.FunctionSpec(name=name, module="shop", qualname=name, env={"GREETING": "hello"})
            for name in ("f", "slow", "large")
        ]
        code = wire.CodeRef(digest=digest, main_module="shop", python=PYTHON)
        spec = msgspec.to_builtins(wire.AppSpec(name="shop", functions=functions, code=code))
        work = self.service.perform("app.deploy", {"spec": spec}, Identity())
        asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_S)
        return digest

    @contextmanager
    def agent(self, alloc: str = "1111", job: str = "job-f", token: str = "") -> Iterator[subprocess.Popen[bytes]]:
        """An agent as a job starts it, in a Python without any package."""
        folder = self.folder / secrets.token_hex(4)
        folder.mkdir()
        environment = {
            "PATH": os.environ["PATH"],
            "XDG_CACHE_HOME": str(self.folder),
            "NOMADFN_CONTROL_URLS": self.http_url,
            "NOMADFN_AGENT": AGENT_PATH,
            "NOMAD_JOB_ID": job,
            "NOMAD_ALLOC_ID": alloc,
            "NOMAD_GROUP_NAME": "lane-0",
            "NOMAD_ALLOC_INDEX": "0",
            "NOMAD_TASK_DIR": str(folder),
            "NOMADFN_JOIN_TOKEN": token or JOINING.token(job),
        }
        self.log = folder / "stderr"
        with self.log.open("wb") as stderr:
            command = [sys.executable, "-E", "-S", "-c", nomadfn_jobspecs.start()]
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=stderr, cwd=folder)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        assert self.faults == []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    shared.deploy()
    yield shared
    shared.cluster.refusal = ""
    eventually(lambda: not shared.cluster.seats, "no agent is left")


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {WAIT_S} s: {what}"
        time.sleep(0.01)


def test_an_agent_from_the_offered_file_runs_functions_whose_code_comes_over_http(world: World) -> None:
    with world.agent():
        result, greeting, library = world.call("f", 41)
        assert (result, greeting) == (42, "hello")
        assert "/nomadfn/agent-" in library
        assert world.call("large", 1000) == "x" * 1000
        assert world.call("large", 5_000_000) == "x" * 5_000_000


def test_an_agent_that_is_told_to_end_finishes_what_it_runs(world: World, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    answers: Future[Any] = Future()
    caller = threading.Thread(target=lambda: answers.set_result(world.call("slow", str(mark))))
    caller.start()
    with world.agent() as process:
        eventually(mark.exists, "the function runs")
        process.terminate()
        [container] = world.cluster.running
        state = world.service.core.state
        eventually(lambda: state.containers[container].state == DRAINING, "the container drains")
        Path(f"{mark}.go").touch()
        assert answers.result(WAIT_S) == "done"
        assert process.wait(WAIT_S) == 0
    caller.join(WAIT_S)


def test_a_second_connection_of_an_allocation_takes_the_first_ones_place(world: World) -> None:
    first, second = join(world), join(world)
    with pytest.raises(LinkClosed, match="joined anew"):
        first.receive(WAIT_S)
    assert world.on_loop(lambda: list(world.cluster.seats)) == ["1111"]
    first.close()
    second.close()


def test_an_agent_that_sends_no_ping_any_more_is_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "SILENT_S", 0.2)
    link = join(world)
    with pytest.raises(LinkClosed):
        link.receive(WAIT_S)
    eventually(lambda: not world.cluster.seats, "its seat is free")
    link.close()


def test_an_agent_that_does_ping_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "SILENT_S", 3 * PING_S)
    with world.agent() as process:
        eventually(lambda: world.cluster.seats, "the agent is there")
        [seat] = world.cluster.seats.values()
        [connection] = world.on_loop(lambda: list(world.service.agents._seats))
        first = connection.heard_at
        eventually(lambda: connection.heard_at > first, "a ping has come")
        assert list(world.cluster.seats.values()) == [seat]
        assert process.poll() is None


def join(world: World, job: str = "job-f", bearer: str = "", alloc: str = "1111", version: int = wire.VERSION) -> Link:
    """Join as an agent does. Raises LinkClosed, with the reason, when it is not taken in."""
    link = Link.connect(world.data_url, bearer or JOINING.token("job-f"))
    try:
        link.send(wire.encode(wire.Join(version, job, alloc, 0, 0, [])))
        joined = [wire.decode_to_supervisor(message) for message in link.receive(WAIT_S)]
        assert joined == [wire.Joined(5)]
    except BaseException:
        link.close()
        raise
    return link


def test_an_agent_joins_only_as_its_own_job(world: World) -> None:
    with pytest.raises(LinkClosed, match="only join as its own allocation"):
        join(world, job="job-g")
    with pytest.raises(LinkClosed, match="join token is wrong"):
        join(world, bearer=JoinTokens("nf_" + "x" * 43).token("job-f"))
    world.cluster.refusal = "the allocation is none of this cluster's"
    with pytest.raises(LinkClosed, match="none of this cluster's"):
        join(world)


def test_an_agent_of_another_version_hears_so(world: World) -> None:
    with pytest.raises(LinkClosed, match="deploy again"):
        join(world, version=wire.VERSION + 1)


def test_a_join_token_is_good_for_nothing_else(world: World) -> None:
    token = JOINING.token("job-f")
    status, _ = world.ask("GET", "/v1/apps", token=token)
    assert status == 401
    for role in ("client", "runner", "agent"):
        link = Link.connect(world.data_url, token)
        link.send(wire.encode(wire.Hello(wire.VERSION, role, "se-1")))
        with pytest.raises(LinkClosed, match="of no use for that"):
            link.receive(WAIT_S)
        link.close()


def test_no_other_token_lets_anybody_join(world: World) -> None:
    with pytest.raises(LinkClosed, match="of no use for that"):
        join(world, bearer=OWNER)
    with pytest.raises(LinkRefused):
        join(world, bearer="nf_wrong")


def test_an_agent_that_speaks_before_it_is_taken_in_is_let_go(world: World) -> None:
    world.cluster.may_attach.clear()
    link = Link.connect(world.data_url, JOINING.token("job-f"))
    link.send(wire.encode(wire.Join(wire.VERSION, "job-f", "2222", 0, 0, [])))
    link.send(wire.encode(wire.Leaving("early")))
    with pytest.raises(LinkClosed, match="waits until it is taken in"):
        link.receive(WAIT_S)
    world.cluster.may_attach.set()
    link.close()


def test_a_container_reads_the_code_of_its_own_app_and_nothing_else(world: World) -> None:
    digest = world.deploy()
    app = world.on_loop(lambda: world.service.core.state.deployed["shop"])
    world.blobs.put("abc123", b"a payload of somebody")
    own = world.on_loop(lambda: world.service.tokens.issue("ct-own", app))
    other = world.on_loop(lambda: world.service.tokens.issue("ct-other", "ap-other"))
    status, data = world.ask("GET", f"/v1/blobs/{digest}", token=own)
    assert (status, hashlib.sha256(data).hexdigest()) == (200, digest)
    assert world.ask("GET", "/v1/blobs/abc123", token=own)[0] == 404
    assert world.ask("GET", f"/v1/blobs/{digest}", token=other)[0] == 404
    assert world.ask("GET", f"/v1/blobs/{digest}", token="")[0] == 401
    assert world.ask("GET", "/v1/blobs/abc123") == (200, b"a payload of somebody")
    assert world.ask("GET", "/v1/blobs/unknown")[0] == 404


def test_who_leads_is_told_without_a_token(world: World) -> None:
    status, body = world.ask("GET", "/v1/leader", token="")
    leader = json.loads(body)
    assert (status, leader["data_url"], leader["epoch"]) == (200, world.data_url, 5)
