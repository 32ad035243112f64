"""Two halves of a cluster that is not there: `control FOLDER N` is a real control service over a cluster in memory,
`agents FOLDER N` are N agents and their containers in one event loop. They answer inputs as if they had run them.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import picows
import uvloop
from nomadfn_agent import wire

from nomadfn import ports
from nomadfn.adapters.directory_blobs import DirectoryBlobs
from nomadfn.adapters.file_secrets import FileSecrets
from nomadfn.adapters.memory import MemoryCluster, MemoryJournal, MemoryRegistry
from nomadfn.control.address import Address
from nomadfn.control.connections import listen
from nomadfn.control.join_tokens import JoinTokens
from nomadfn.control.service import Service
from nomadfn.control.tokens import Tokens
from nomadfn.core.core import Core
from nomadfn.core.limits import Limits

OWNER = "nf_" + "s" * 43
JOB = "simulated"
HELD_BYTES, HELD_S = 100, 0.05
"""An input of more bytes is answered so much later."""
NOTHING = pickle.dumps(None)
JOINING_AT_ONCE = 50
PING_S = 2.0
"""As often as an agent says that it is there."""
LOOK_S = 0.05


class SimulatedCluster(MemoryCluster):
    """Gives each container to the next agent that has joined, in turn; those that come too early wait."""

    def __init__(self, agents: int) -> None:
        super().__init__(answers=False)
        self._agents = agents
        self._sends: list[Callable[[wire.Start | wire.Stop], None]] = []
        self._given: dict[str, Callable[[wire.Start | wire.Stop], None]] = {}
        self._waiting: list[ports.Placement] = []

    async def attach(self, join: wire.Join, send: Callable[[wire.Start | wire.Stop], None]) -> SimulatedSeat:
        self._sends.append(send)
        if len(self._sends) == self._agents:
            waiting, self._waiting = self._waiting, []
            for placement in waiting:
                self._give(placement)
        return SimulatedSeat(self)

    def start(self, placement: ports.Placement) -> None:
        super().start(placement)
        if len(self._sends) < self._agents:
            self._waiting.append(placement)
        else:
            self._give(placement)

    def _give(self, placement: ports.Placement) -> None:
        send = self._given[placement.container] = self._sends[len(self._given) % self._agents]
        send(wire.Start(placement.container, placement.env))

    def stop(self, container: str, grace_s: float) -> None:
        super().stop(container, grace_s)
        if container in self._given:
            self._given[container](wire.Stop(container, grace_s))


class SimulatedSeat:
    containers: list[str] = []

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster

    def on_frame(self, frame: wire.SupervisorFrame) -> None:
        match frame:
            case wire.Started(container, pid):
                self._cluster.emit(ports.ContainerStarted(container, pid))
            case wire.Ended(container, _, tail):
                self._cluster.emit(ports.ContainerEnded(container, "it has ended", tail))

    def closed(self) -> None:
        pass


async def control(folder: Path, agents: int) -> None:
    cluster = SimulatedCluster(agents)
    blobs = DirectoryBlobs(str(folder / "blobs"))
    address = Address(data_dir=str(folder), code_cache=str(folder / "code"), target="a simulation")
    service = Service(
        Core(Limits(), epoch=1),
        cluster,
        MemoryRegistry(),
        blobs,
        Tokens(OWNER),
        address,
        MemoryJournal(),
        _fail,
        FileSecrets(folder / "secrets"),
    )
    service.agents.open(cluster.attach, JoinTokens(OWNER).verify)
    listener = await listen(service, "127.0.0.1", 0)
    address.data_url = f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1/connect"
    await service.start()
    (folder / "token").write_text(OWNER)
    record = {"pid": os.getpid(), "data_url": address.data_url, "http_url": "http://127.0.0.1:9"}
    (folder / ".service.json").write_text(json.dumps(record))
    (folder / ".service.json").rename(folder / "service.json")
    await asyncio.Event().wait()


def _fail(error: Exception) -> None:
    raise SystemExit(f"the control service cannot go on: {error}")


class Peer(picows.WSListener):
    """One connection of the simulation. `take` is called with each frame."""

    def __init__(self, first: msgspec.Struct, take: Callable[[Peer, Any], None], decode: Callable[[Any], Any]) -> None:
        self._first = first
        self._take = take
        self._decode = decode
        self._transport: picows.WSTransport | None = None

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self._transport = transport
        self.send(self._first)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.BINARY:
            self._take(self, self._decode(frame.get_payload_as_bytes()))

    def send(self, frame: msgspec.Struct) -> None:
        assert self._transport is not None
        self._transport.send(picows.WSMsgType.BINARY, wire.encode(frame))

    def ping(self) -> None:
        if self._transport is not None:
            self._transport.send_ping()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.disconnect()


class Agents:
    def __init__(self, url: str) -> None:
        self._url = url
        self._containers: dict[str, Peer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._join_token = JoinTokens(OWNER).token(JOB)
        self._turn = asyncio.Semaphore(JOINING_AT_ONCE)

    async def join(self, number: int) -> None:
        frame = wire.Join(wire.VERSION, JOB, f"alloc-{number}", 0, 0, [])
        agent = await self._connect(self._join_token, frame, self._on_agent_frame, wire.decode_to_supervisor)
        self._ping(agent)

    def _ping(self, agent: Peer) -> None:
        agent.ping()
        self._loop.call_later(PING_S, self._ping, agent)

    async def _connect(
        self, token: str, first: msgspec.Struct, take: Callable[[Peer, Any], None], decode: Callable[[Any], Any]
    ) -> Peer:
        peer = Peer(first, take, decode)
        async with self._turn:
            headers = {"Authorization": f"Bearer {token}"}
            await picows.ws_connect(lambda: peer, self._url, extra_headers=headers, websocket_handshake_timeout=60)
        return peer

    def _on_agent_frame(self, agent: Peer, frame: wire.ToSupervisorFrame) -> None:
        match frame:
            case wire.Start(container, env):
                task = asyncio.create_task(self._start(agent, container, env))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case wire.Stop(container):
                runner = self._containers.pop(container, None)
                if runner is not None:
                    runner.close()
                agent.send(wire.Ended(container, 0, ""))

    async def _start(self, agent: Peer, container: str, env: dict[str, str]) -> None:
        agent.send(wire.Started(container, os.getpid()))
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        hello = wire.Hello(wire.VERSION, "runner", container, python)
        runner = await self._connect(env["NOMADFN_TOKEN"], hello, self._on_runner_frame, wire.decode_to_runner)
        self._containers[container] = runner

    def _on_runner_frame(self, runner: Peer, frame: wire.ToRunnerFrame) -> None:
        match frame:
            case wire.Bind():
                runner.send(wire.Ready(1))
            case wire.Deliver():
                held = len(frame.payloads[0]) > HELD_BYTES
                count, run_s = len(frame.deliveries), HELD_S if held else 0.0
                outputs = wire.Outputs(
                    frame.deliveries, [wire.OK] * count, [NOTHING] * count, round(run_s * count * 1e9) + count * 1000
                )
                if held:
                    self._loop.call_later(run_s * count, runner.send, outputs)
                else:
                    runner.send(outputs)
            case wire.Recall():
                runner.send(wire.Returned([]))
            case wire.Drain():
                runner.close()


async def agents(folder: Path, count: int) -> None:
    path = folder / "service.json"
    while not path.exists():
        await asyncio.sleep(LOOK_S)
    all_agents = Agents(json.loads(path.read_text())["data_url"])
    await asyncio.gather(*(all_agents.join(number) for number in range(count)))
    await asyncio.Event().wait()


def main(role: str, folder: str, count: str) -> None:
    work = control(Path(folder), int(count)) if role == "control" else agents(Path(folder), int(count))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


if __name__ == "__main__":
    main(*sys.argv[1:])
