"""Containers as child processes of this machine, made by a warm parent (`nomadfn_agent.supervisor`).

The warm parent has everything imported that a container needs and forks one in a few milliseconds. Should
it be killed, its containers end with it; the adapter sees to that, says so, and starts another one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from typing import cast

import msgspec
from nomadfn_agent.wire import (
    STREAM_HEADER,
    Ended,
    ImageSpec,
    Log,
    Prepare,
    Preparing,
    Recall,
    Start,
    Started,
    Stop,
    SupervisorFrame,
    Withdrawn,
    decode_from_supervisor,
    encode_for_stream,
    image_id,
)

from nomadfn.adapters.warm_parent import WarmParent
from nomadfn.exception import UnsupportedError
from nomadfn.ports import (
    ClusterEvent,
    ClusterLost,
    ContainerEnded,
    ContainerOutput,
    ContainerPreparing,
    ContainerStarted,
    ContainerWithdrawn,
    EnvironmentOutput,
    Needs,
    Placement,
)

MAX_ENVIRONMENTS = 256
"""Environments whose log is told to those who watch the function that they were prepared for."""
MAX_RESTARTS = 3
RESTART_WINDOW_S = 60.0
"""A warm parent that ends more often than MAX_RESTARTS in this time is not started again."""
GONE_TIMEOUT_S = 5.0
"""The longest wait for processes that were killed, before the adapter goes on without them."""
SIGNAL_NOTES = {
    signal.SIGSEGV: "segmentation fault",
    signal.SIGABRT: "it aborted",
    signal.SIGBUS: "bus error",
    signal.SIGFPE: "arithmetic error",
    signal.SIGILL: "illegal instruction",
    signal.SIGKILL: "the kernel kills like that when memory runs out",
}


class LocalCluster:
    """The `Cluster` port on one machine. `capacity` is how many containers fit; by default one a core."""

    def __init__(self, parent: WarmParent, capacity: int | None = None) -> None:
        self._parent = parent
        self._capacity = capacity if capacity is not None else usable_cores()
        self._by_cores = capacity is None
        self._listener: Callable[[ClusterEvent], None] = lambda event: None
        self._connection: _Connection | None = None
        self._containers: dict[str, int] = {}
        """Process id of each container; 0 until the warm parent has said it."""
        self._environments: dict[str, str] = {}
        """The function that an environment was prepared for, by the environment's name."""
        self._stopping: set[str] = set()
        self._waiting: list[bytes] = []
        """What is to be told to the next warm parent, while there is none."""
        self._restarts: deque[float] = deque(maxlen=MAX_RESTARTS)
        self._recovery: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def capacity(self) -> int | None:
        return self._capacity

    @property
    def capacity_reason(self) -> str:
        containers = "1 container" if self._capacity == 1 else f"{self._capacity} containers"
        why = "its cores; set NOMADFN_CAPACITY to change it" if self._by_cores else "set by NOMADFN_CAPACITY"
        return f"this machine's capacity of {containers} ({why})"

    async def open(self, listener: Callable[[ClusterEvent], None]) -> None:
        self._listener = listener
        await self._connect()

    def check(self, needs: Needs) -> None:
        """Containers are processes here: there is no container image."""
        if needs.image:
            raise UnsupportedError(
                f"function {needs.function} asks for the container image {needs.image!r}, and on this machine "
                f"containers are processes without one: use Image.debian_slim().pip_install(...), or run it on a "
                f"cluster whose driver is docker"
            )

    def prepare(self, function: str, environment: ImageSpec) -> None:
        """Have the function's environment made, unless it is there: it will be needed on this machine."""
        if len(self._environments) == MAX_ENVIRONMENTS:
            del self._environments[next(iter(self._environments))]
        self._environments[image_id(environment)] = function
        self._send(Prepare(environment))

    def start(self, placement: Placement) -> None:
        self._containers[placement.container] = 0
        self._send(Start(placement.container, placement.env, placement.environment))

    def stop(self, container: str, grace_s: float) -> None:
        if container in self._containers:
            self._stopping.add(container)
            self._send(Stop(container, grace_s))

    def recall(self, container: str, up_to: int) -> None:
        if container in self._containers:
            self._send(Recall(container, up_to))

    def note(self, function: str, reason: str) -> None:
        """Nobody looks at it from outside."""

    def retire(self, app: str, function: str = "") -> None:
        """Nothing is kept of an app."""

    def may_stop(self, indexes: frozenset[int], idle: frozenset[int]) -> frozenset[int]:
        """Any idle one: processes of one machine don't depend on each other."""
        return idle & indexes

    async def close(self) -> None:
        """End every container and the warm parent, and wait until they are gone. More than once is no error."""
        self._closing = True
        if self._recovery is not None:
            await asyncio.wait([self._recovery], timeout=2 * GONE_TIMEOUT_S)
        connection, process = self._connection, self._parent.process
        if connection is not None:
            connection.finish()
            await asyncio.wait([connection.ended], timeout=GONE_TIMEOUT_S)
        else:
            self._parent.control.close()
        try:
            await asyncio.to_thread(process.wait, GONE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait, GONE_TIMEOUT_S)
        if connection is not None:
            connection.abort()
        pids, self._containers = list(self._containers.values()), {}
        await _kill_groups(pids)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        connection = _Connection(self._on_frame, ended)
        await loop.create_unix_connection(lambda: connection, sock=self._parent.control)
        ended.add_done_callback(lambda _: self._on_parent_gone(connection))
        self._connection = connection
        for data in self._waiting:
            connection.send(data)
        self._waiting.clear()

    def _send(self, frame: Start | Stop | Recall | Prepare) -> None:
        if self._connection is not None:
            self._connection.send(encode_for_stream(frame))
        else:
            self._waiting.append(encode_for_stream(frame))

    def _on_frame(self, frame: SupervisorFrame) -> None:
        match frame:
            case Started(container, pid):
                self._containers[container] = pid
                self._listener(ContainerStarted(container, pid))
            case Ended(container, exit_code, tail):
                self._containers.pop(container, None)
                stopped = container in self._stopping
                self._stopping.discard(container)
                what = "stopped" if stopped else frame.what or describe_exit(exit_code)
                self._listener(ContainerEnded(container, what, tail))
            case Preparing(container, text):
                self._listener(ContainerPreparing(container, text))
            case Log(container, _, text) if container in self._environments:
                self._listener(EnvironmentOutput(self._environments[container], text))
            case Log(container, stream, text):
                self._listener(ContainerOutput(container, stream, text))
            case Withdrawn():
                self._listener(ContainerWithdrawn(*msgspec.structs.astuple(frame)))

    def _on_parent_gone(self, connection: _Connection) -> None:
        if not self._closing and self._connection is connection:
            self._connection = None
            lost, self._containers = self._containers, {}
            self._stopping.clear()
            self._recovery = asyncio.get_running_loop().create_task(self._recover(connection, lost))

    async def _recover(self, connection: _Connection, lost: dict[str, int]) -> None:
        """The warm parent is gone: see to it that its containers are, say so, and start another."""
        connection.abort()
        process = self._parent.process
        try:
            await asyncio.to_thread(process.wait, 1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
        await _kill_groups(list(lost.values()))
        what = f"the process that containers are forked from ended: {describe_exit(process.returncode)}"
        for container in lost:
            self._listener(ContainerEnded(container, what, ""))
        now = time.monotonic()
        failing = len(self._restarts) == MAX_RESTARTS and now - self._restarts[0] < RESTART_WINDOW_S
        self._restarts.append(now)
        if self._closing:
            return
        try:
            if failing:
                raise OSError(f"that has happened {MAX_RESTARTS + 1} times in {RESTART_WINDOW_S:.0f} s")
            self._parent = WarmParent.launch()
            await self._connect()
        except OSError as error:
            self._listener(ClusterLost(f"{what}; it was not started again: {error}"))


class _Connection(asyncio.Protocol):
    """Frames behind their length, over the socket to a warm parent. `ended` is done when it is gone."""

    def __init__(self, on_frame: Callable[[SupervisorFrame], None], ended: asyncio.Future[None]) -> None:
        self.ended = ended
        self._on_frame = on_frame
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._finished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop has transports of its own, which are not instances of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        start, head = 0, STREAM_HEADER.size
        while len(self._buffer) - start >= head:
            (length,) = STREAM_HEADER.unpack_from(self._buffer, start)
            end = start + head + length
            if len(self._buffer) < end:
                break
            self._on_frame(decode_from_supervisor(bytes(self._buffer[start + head : end])))
            start = end
        del self._buffer[:start]

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def send(self, data: bytes) -> None:
        if self._transport is not None and not (self._finished or self._transport.is_closing()):
            self._transport.write(data)

    def finish(self) -> None:
        """Nothing more comes from here: the warm parent ends its containers, says so, and ends."""
        self._finished = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_exit(exit_code: int) -> str:
    """An exit code as `subprocess` gives it, in words."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        number = signal.Signals(-exit_code)
    except ValueError:
        return f"killed by signal {-exit_code}"
    note = SIGNAL_NOTES.get(number)
    return f"killed by {number.name} ({note})" if note else f"killed by {number.name}"


async def _kill_groups(pids: list[int]) -> None:
    """Kill these process groups and wait until they are gone; 0 is a container whose process nobody knows."""
    deadline = time.monotonic() + GONE_TIMEOUT_S
    left = [pid for pid in pids if pid]
    while (left := [pid for pid in left if _kill_group(pid)]) and time.monotonic() < deadline:
        await asyncio.sleep(0.005)


def _kill_group(pid: int) -> bool:
    """Send SIGKILL to a process group; says whether it may still be there."""
    try:
        os.killpg(pid, signal.SIGKILL)
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except (OSError, IndexError):
        return False
