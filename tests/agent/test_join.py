"""The agent of an allocation, as a process of its own: it finds who leads, joins, comes back, and leaves in order."""

from __future__ import annotations

import json
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from agent_harness import PYTHON, WAIT_S, Runner, is_running, wait_until
from nomadfn_agent import wire
from nomadfn_agent.channel import Channel, LengthFraming
from shared_folder import SharedFolder
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

TOKEN = "nf_join_test"
AGENT_COMMAND = [sys.executable, "-P", "-m", "nomadfn_agent"]
WAITER = """
import time
def f(seconds):
    print("begun", flush=True)
    time.sleep(seconds)
    return "done"
"""


class Control:
    """A double of the control service: its HTTP and its data address are one port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = SharedFolder(folder / "blobs")
        self.leads = True
        self.refusal = ""
        self.bearers: list[str] = []
        self.joins: queue.SimpleQueue[tuple[wire.Join, ServerConnection]] = queue.SimpleQueue()
        self.frames: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.runners: dict[str, Runner] = {}
        self.server = serve(self._serve, "127.0.0.1", 0, compression=None, max_size=None, process_request=self._answer)
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()
        self.port: int = self.server.socket.getsockname()[1]
        self.http_url = f"http://127.0.0.1:{self.port}"
        self.data_url = f"ws://127.0.0.1:{self.port}/v1/connect"

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path.partition("?")[0] == "/v1/leader":
            if not self.leads:
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "it stands by\n")
            body = json.dumps({"data_url": self.data_url, "epoch": 7}).encode()
            return Response(200, "OK", Headers({"Content-Length": str(len(body)), "Connection": "close"}), body)
        self.bearers.append(request.headers["Authorization"].removeprefix("Bearer "))
        return None

    def _serve(self, connection: ServerConnection) -> None:
        try:
            first = wire.decode_first(connection.recv())
            if isinstance(first, wire.Hello):
                runner = self.runners[first.session] = Runner(connection, first)
                for message in connection:
                    runner.frames.put(wire.decode_from_runner(message))
                return
            if self.refusal:
                connection.close(1001, self.refusal)
                return
            connection.send(wire.encode(wire.Joined(7)))
            self.joins.put((first, connection))
            for message in connection:
                self.frames.put(wire.decode_from_agent(message))
        except ConnectionClosed:
            pass

    def joined(self) -> tuple[wire.Join, ServerConnection]:
        return self.joins.get(timeout=WAIT_S)

    def next(self, kind: type[Any]) -> Any:
        """The agent's next frame that is no Log, which must be of this kind."""
        while isinstance(frame := self.frames.get(timeout=WAIT_S), wire.Log):
            pass
        assert isinstance(frame, kind), frame
        return frame

    def run(self, connection: ServerConnection, source: str, **env: str) -> tuple[Runner, int]:
        """Have a container started; returns its runner, ready, and its process id."""
        name = f"ct-{secrets.token_hex(8)}"
        joining = {"NOMADFN_DATA_URL": self.data_url, "NOMADFN_TOKEN": "nf_runner", "NOMADFN_CONTAINER_ID": name}
        connection.send(wire.encode(wire.Start(name, joining | env)))
        started = self.next(wire.Started)
        assert started.container == name
        wait_until(lambda: name in self.runners, f"{name} has joined")
        spec = wire.FunctionSpec(name="f", module="hello", qualname="f")
        code = wire.CodeRef(digest=self.archive(source), main_module="hello", python=PYTHON)
        runner = self.runners[name]
        runner.send(
            wire.Bind(
                "ap-1/f",
                spec,
                code,
                "ap-1",
                "shop",
                0,
                self.blobs.place.folder,
                str(self.folder / "code"),
                blobs_mark=self.blobs.place.mark,
            )
        )
        runner.expect(wire.Ready)
        return runner, started.pid

    def archive(self, source: str) -> str:
        buffer = BytesIO()
        with ZipFile(buffer, "w") as archive:
            archive.writestr("hello.py", source)
        return self.blobs.write_code(buffer.getvalue())

    def close(self) -> None:
        self.server.shutdown()
        for runner in self.runners.values():
            runner.connection.close()
        while not self.joins.empty():
            self.joins.get()[1].close()
        self._thread.join(WAIT_S)


class Allocation:
    """An agent as Nomad starts it."""

    def __init__(self, folder: Path, urls: str, command: list[str] | None = None, **env: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.log = folder / "stderr"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("NOMAD", "NVIDIA"))}
        environment |= {
            "NOMADFN_CONTROL_URLS": urls,
            "NOMAD_JOB_ID": "nomadfn-fn-shop-f-1",
            "NOMAD_ALLOC_ID": "11111111-2222",
            "NOMAD_GROUP_NAME": "lane-3",
            "NOMAD_ALLOC_INDEX": "2",
            "NOMAD_SECRETS_DIR": str(folder),
            "NOMAD_TASK_DIR": str(folder),
            "NOMADFN_JOIN_TOKEN": TOKEN,
        }
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(
                command or AGENT_COMMAND,
                stdin=subprocess.PIPE,
                stdout=stderr,
                stderr=stderr,
                env=environment | env,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.log.read_text()

    def says(self, words: str) -> None:
        wait_until(lambda: words in self.said(), f"the agent says {words!r}; it has said {self.said()!r}")

    def ends(self) -> int:
        return self.process.wait(WAIT_S)


@contextmanager
def allocation(folder: Path, urls: str, command: list[str] | None = None, **env: str) -> Iterator[Allocation]:
    made = Allocation(folder, urls, command, **env)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    made = Control(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def agent(control: Control, tmp_path: Path) -> Iterator[Allocation]:
    with allocation(tmp_path / "alloc", control.http_url) as made:
        yield made


def unused_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_leader_is_found_among_addresses_that_are_dead_or_stand_by(control: Control, tmp_path: Path) -> None:
    standby = Control(tmp_path / "standby")
    standby.leads = False
    try:
        urls = f"{unused_address()} {standby.http_url} {control.http_url}"
        with allocation(tmp_path / "alloc", urls):
            join, _ = control.joined()
            said = join.version, join.job, join.alloc, join.lane, join.position, join.containers
            assert said == (wire.VERSION, "nomadfn-fn-shop-f-1", "11111111-2222", 3, 2, [])
            assert standby.joins.empty()
    finally:
        standby.close()


def test_an_identity_that_nomad_has_signed_goes_before_the_join_token_and_is_read_anew(
    control: Control, agent: Allocation
) -> None:
    _, first = control.joined()
    assert control.bearers == [TOKEN]
    (agent.folder / "nomad_nomadfn.jwt").write_text("a.b.c\n")
    first.close()
    control.joined()
    assert control.bearers == [TOKEN, "a.b.c"]


def test_a_data_address_needs_no_asking(control: Control, tmp_path: Path) -> None:
    control.leads = False
    with allocation(tmp_path / "alloc", control.data_url):
        control.joined()


def test_containers_run_as_they_do_on_one_machine(control: Control, agent: Allocation) -> None:
    _, connection = control.joined()
    source = "import os\ndef f(x):\n    print('seen', x)\n    return x + 1, dict(os.environ)\n"
    runner, _ = control.run(connection, source, EXTRA="given")
    result, environment = runner.call(41)
    assert (result, environment["EXTRA"]) == (42, "given")
    assert "NOMADFN_JOIN_TOKEN" not in environment
    log = control.frames.get(timeout=WAIT_S)
    assert isinstance(log, wire.Log)
    assert (log.container, log.stream, log.text) == (runner.hello.session, 1, "seen 41\n")
    runner.send(wire.Drain())
    ended = control.next(wire.Ended)
    assert (ended.container, ended.exit_code) == (runner.hello.session, 0)


def test_a_container_sees_the_gpus_that_nomad_has_assigned(control: Control, tmp_path: Path) -> None:
    source = "import os\ndef f():\n    return os.environ.get('CUDA_VISIBLE_DEVICES')\n"
    for devices, seen in (("GPU-1,GPU-2", "GPU-1,GPU-2"), ("all", None)):
        with allocation(tmp_path / "alloc", control.http_url, NVIDIA_VISIBLE_DEVICES=devices):
            runner, _ = control.run(control.joined()[1], source)
            assert runner.call() == seen


def test_stop_ends_a_container(control: Control, agent: Allocation) -> None:
    _, connection = control.joined()
    runner, pid = control.run(connection, WAITER)
    connection.send(wire.encode(wire.Stop(runner.hello.session, 0.0)))
    assert control.next(wire.Ended).exit_code == -signal.SIGKILL
    assert not is_running(pid)


def test_after_a_lost_connection_the_agent_comes_back_with_its_containers(control: Control, agent: Allocation) -> None:
    _, connection = control.joined()
    runner, pid = control.run(connection, WAITER)
    [delivery] = runner.deliver([(1.0,)])
    connection.close()
    join, _ = control.joined()
    assert join.containers == [runner.hello.session]
    assert runner.value(delivery) == "done"
    assert is_running(pid)
    agent.says("lost its control service")


def test_how_a_container_ended_while_nobody_led_is_told_to_the_next_leader(control: Control, agent: Allocation) -> None:
    _, connection = control.joined()
    runner, pid = control.run(
        connection, "import os\ndef f():\n    os.write(2, b'my last words\\n')\n    os._exit(9)\n"
    )
    control.leads = False
    connection.close()
    agent.says("lost its control service")
    runner.deliver([()])
    wait_until(lambda: not is_running(pid), "the container has ended")
    control.leads = True
    join, _ = control.joined()
    assert join.containers == [runner.hello.session]
    ended = control.next(wire.Ended)
    assert (ended.container, ended.exit_code, ended.tail) == (runner.hello.session, 9, "my last words")


def test_what_is_printed_while_nobody_leads_is_heard_later_whole_and_in_bounded_memory(
    control: Control, agent: Allocation
) -> None:
    _, connection = control.joined()
    source = "def f(n):\n    for number in range(n):\n        print(f'line {number} {\"x\" * 90}')\n"
    runner, _ = control.run(connection, source)
    control.leads = False
    connection.close()
    agent.says("lost its control service")
    used = memory_mib(agent.process.pid)
    [flood] = runner.deliver([(100_000,)])
    agent.says("still looks for the control service that leads")
    assert flood not in runner.statuses
    assert memory_mib(agent.process.pid) - used < 16
    control.leads = True
    _, connection = control.joined()
    runner.value(flood)
    runner.send(wire.Drain())
    lines: list[str] = []
    while not isinstance(frame := control.frames.get(timeout=WAIT_S), wire.Ended):
        lines += frame.text.splitlines() if frame.stream == 1 else []
    assert [line.split()[1] for line in lines] == [str(number) for number in range(100_000)]


def memory_mib(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


def test_a_control_service_that_is_frozen_is_left_for_the_one_that_leads(control: Control, tmp_path: Path) -> None:
    with frozen_service() as url, allocation(tmp_path / "alloc", f"{url} {control.http_url}") as agent:
        agent.says("joined the control service at " + url)
        control.joined()
        agent.says("has not answered for")


@contextmanager
def frozen_service() -> Iterator[str]:
    """A data address that takes agents in, one of them, and then says nothing more."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"ws://127.0.0.1:{listener.getsockname()[1]}/v1/connect"
    held: list[socket.socket] = []

    def welcome() -> None:
        from websockets.server import ServerProtocol

        sock, _ = listener.accept()
        listener.close()
        held.append(sock)
        protocol = ServerProtocol()
        events: list[Any] = []
        while not events:
            protocol.receive_data(sock.recv(65536))
            events = protocol.events_received()
        protocol.send_response(protocol.accept(events[0]))
        protocol.send_binary(wire.encode(wire.Joined(1)))
        sock.sendall(b"".join(protocol.data_to_send()))

    thread = threading.Thread(target=welcome)
    thread.start()
    try:
        yield url
    finally:
        thread.join(WAIT_S)
        for sock in held:
            sock.close()


def test_a_refusal_is_told_and_the_agent_tries_again(control: Control, tmp_path: Path) -> None:
    control.refusal = "allocation 11111111 is none of this cluster's"
    with allocation(tmp_path / "alloc", control.http_url) as agent:
        agent.says("is none of this cluster's")
        control.refusal = ""
        control.joined()


def test_told_to_end_with_nothing_to_do_it_ends(control: Control, agent: Allocation) -> None:
    control.joined()
    agent.process.terminate()
    assert agent.ends() == 0


def test_told_to_end_before_it_has_joined_it_ends(tmp_path: Path) -> None:
    with allocation(tmp_path / "alloc", unused_address()) as agent:
        agent.says("still looks")
        agent.process.terminate()
        assert agent.ends() == 0


def test_told_to_end_it_says_so_at_once_and_ends_with_its_last_container(control: Control, agent: Allocation) -> None:
    _, connection = control.joined()
    runner, _ = control.run(connection, WAITER)
    [delivery] = runner.deliver([(1.0,)])
    agent.process.terminate()
    assert control.next(wire.Leaving).what == "Nomad stops its allocation"
    connection.send(wire.encode(wire.Start("ct-late", {})))
    assert control.next(wire.Ended).container == "ct-late"
    runner.send(wire.Drain())
    assert runner.value(delivery) == "done"
    assert control.next(wire.Ended).exit_code == 0
    assert agent.ends() == 0


def test_a_leader_that_comes_later_hears_that_the_agent_leaves(control: Control, agent: Allocation) -> None:
    _, connection = control.joined()
    control.run(connection, WAITER)
    agent.process.terminate()
    control.next(wire.Leaving)
    connection.close()
    control.joined()
    control.next(wire.Leaving)


@pytest.mark.parametrize("how", [lambda one: one.terminate(), lambda one: one.kill()])
def test_told_twice_or_killed_it_ends_with_all_of_them(
    control: Control, agent: Allocation, how: Callable[[subprocess.Popen[bytes]], None]
) -> None:
    _, connection = control.joined()
    runner, pid = control.run(connection, WAITER)
    runner.deliver([(600.0,)])
    agent.process.terminate()
    control.next(wire.Leaving)
    how(agent.process)
    agent.ends()
    wait_until(lambda: not is_running(pid), "the container is gone")


def test_an_agent_whose_parent_is_gone_ends(control: Control, tmp_path: Path) -> None:
    start = f"import subprocess, sys; print(subprocess.Popen({AGENT_COMMAND!r}).pid, flush=True); sys.stdin.read()"
    with allocation(tmp_path / "alloc", control.http_url, command=[sys.executable, "-c", start]) as parent:
        control.joined()
        agent = int(parent.said().split()[0])
        try:
            parent.process.kill()
            wait_until(lambda: not is_running(agent), "the agent has ended")
            assert "nobody else could end it" in parent.said()
        finally:
            with suppress(ProcessLookupError):
                os.kill(agent, signal.SIGKILL)


def test_without_nomads_variables_it_says_what_is_missing(tmp_path: Path) -> None:
    with allocation(tmp_path / "alloc", "", NOMAD_JOB_ID="") as agent:
        assert agent.ends() == 2
        assert "NOMADFN_CONTROL_URLS, NOMAD_JOB_ID are not set" in agent.said()


def test_a_message_that_was_cut_off_is_sent_whole_on_the_next_connection() -> None:
    channel = Channel()
    first, second = ([*socket.socketpair()] for _ in range(2))
    try:
        first[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        channel.open(first[0], LengthFraming())
        messages = [bytes([number]) * size for number, size in enumerate((10, 500_000, 20))]
        for message in messages:
            channel.put(message)
        channel.write()
        assert channel.wants_write
        assert LengthFraming().feed(first[1].recv(1000)) == messages[:1]
        channel.close()
        channel.open(second[0], LengthFraming())
        framing, got = LengthFraming(), list[bytes]()
        deadline = time.monotonic() + WAIT_S
        while len(got) < 2 and time.monotonic() < deadline:
            channel.write()
            got += framing.feed(second[1].recv(65536))
        assert got == messages[1:]
        assert channel.waiting_bytes == 0
    finally:
        for sock in (*first, *second):
            sock.close()
