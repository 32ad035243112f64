"""The `Cluster` port on one machine, over a real warm parent and real runners."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop
from agent_harness import TOKEN, WAIT_S, Listener, is_running, wait_until
from nomadfn_agent import wire

from nomadfn.adapters.local import MAX_RESTARTS, LocalCluster, describe_exit, usable_cores
from nomadfn.adapters.warm_parent import WarmParent
from nomadfn.ports import ClusterLost, ContainerEnded, ContainerOutput, ContainerStarted, Placement


class Watched:
    """A cluster, and everything that it has told."""

    def __init__(self, listener: Listener, capacity: int | None = None) -> None:
        self.listener = listener
        self.cluster = LocalCluster(WarmParent.launch(), capacity)
        self.events: list[Any] = []
        self._changed = asyncio.Event()

    def tell(self, event: Any) -> None:
        self.events.append(event)
        self._changed.set()

    def start(self, container: str) -> None:
        env = {"NOMADFN_DATA_URL": self.listener.url, "NOMADFN_TOKEN": TOKEN, "NOMADFN_CONTAINER_ID": container}
        self.cluster.start(Placement(container, "ap-1/f", 0, env))

    async def event(self, kind: type, container: str | None = None) -> Any:
        async with asyncio.timeout(WAIT_S):
            while True:
                for event in self.events:
                    if isinstance(event, kind) and container in (None, getattr(event, "container", None)):
                        return event
                self._changed.clear()
                await self._changed.wait()

    def parent_pid(self) -> int:
        return self.cluster._parent.process.pid


def with_cluster(scenario: Callable[[Watched], Awaitable[None]], capacity: int | None = None) -> None:
    """Run a scenario over an open cluster, then check that nothing of it is left."""

    async def run(listener: Listener) -> None:
        watched = Watched(listener, capacity)
        try:
            await watched.cluster.open(watched.tell)
            await scenario(watched)
        finally:
            await watched.cluster.close()
            await watched.cluster.close()
        pids = [event.pid for event in watched.events if isinstance(event, ContainerStarted)]
        assert [pid for pid in [*pids, watched.parent_pid()] if is_running(pid)] == []

    for loop_factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        listener = Listener()
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(run(listener))
        finally:
            listener.close()


def test_containers_start_end_and_are_told() -> None:
    async def scenario(watched: Watched) -> None:
        watched.start("ct-1")
        started = await watched.event(ContainerStarted, "ct-1")
        assert is_running(started.pid)
        watched.cluster.stop("ct-1", 0.0)
        ended = await watched.event(ContainerEnded, "ct-1")
        assert ended.what == "stopped"
        assert not is_running(started.pid)
        watched.cluster.stop("ct-1", 0.0)
        watched.cluster.stop("ct-unknown", 0.0)

    with_cluster(scenario)


def test_a_crash_is_told_in_words_with_what_the_container_wrote() -> None:
    async def scenario(watched: Watched) -> None:
        watched.start("ct-1")
        started = await watched.event(ContainerStarted, "ct-1")
        await asyncio.to_thread(watched.listener.join, "ct-1")
        os.kill(started.pid, signal.SIGSEGV)
        ended = await watched.event(ContainerEnded, "ct-1")
        assert ended.what == "killed by SIGSEGV (segmentation fault)"
        assert "Segmentation fault" in ended.tail
        assert "Segmentation fault" in "".join(
            event.text for event in watched.events if isinstance(event, ContainerOutput)
        )

    with_cluster(scenario)


def test_close_ends_every_container_and_tells_of_each() -> None:
    seen: list[Any] = []

    async def scenario(watched: Watched) -> None:
        seen.append(watched)
        for name in ("ct-1", "ct-2", "ct-3"):
            watched.start(name)
        await watched.event(ContainerStarted, "ct-3")

    with_cluster(scenario)
    assert {event.container for event in seen[0].events if isinstance(event, ContainerEnded)} == {
        "ct-1",
        "ct-2",
        "ct-3",
    }


def test_a_killed_warm_parent_is_replaced_once_its_containers_are_gone() -> None:
    async def scenario(watched: Watched) -> None:
        for name in ("ct-1", "ct-2"):
            watched.start(name)
        pids = [(await watched.event(ContainerStarted, name)).pid for name in ("ct-1", "ct-2")]
        first = watched.parent_pid()
        os.kill(first, signal.SIGKILL)
        watched.start("ct-late")
        for name in ("ct-1", "ct-2"):
            ended = await watched.event(ContainerEnded, name)
            assert "SIGKILL" in ended.what
        assert [pid for pid in pids if is_running(pid)] == []
        watched.start("ct-3")
        assert is_running((await watched.event(ContainerStarted, "ct-3")).pid)
        assert watched.parent_pid() != first
        late = [event for event in watched.events if getattr(event, "container", "") == "ct-late"]
        assert late
        assert not any(isinstance(event, ClusterLost) for event in watched.events)

    with_cluster(scenario)


def test_what_a_container_has_started_ends_too_when_the_warm_parent_is_killed() -> None:
    async def scenario(watched: Watched) -> None:
        watched.start("ct-1")
        runner = await asyncio.to_thread(watched.listener.join, "ct-1")
        spec = wire.FunctionSpec(name="f", module="subprocess", qualname="getoutput")
        runner.send(wire.Bind("ap-1/f", spec, wire.CodeRef(), "ap-1", "thumbs", 0, "", ""))
        await asyncio.to_thread(runner.expect, wire.Ready)
        pid = int(await asyncio.to_thread(runner.call, "sleep 600 > /dev/null 2>&1 & echo $!"))
        assert is_running(pid)
        os.kill(watched.parent_pid(), signal.SIGKILL)
        await watched.event(ContainerEnded, "ct-1")
        wait_until(lambda: not is_running(pid), "the container's child is gone")

    with_cluster(scenario)


def test_a_warm_parent_that_keeps_ending_is_given_up() -> None:
    async def scenario(watched: Watched) -> None:
        for number in range(MAX_RESTARTS + 1):
            name = f"ct-{number}"
            watched.start(name)
            await watched.event(ContainerStarted, name)
            os.kill(watched.parent_pid(), signal.SIGKILL)
            await watched.event(ContainerEnded, name)
        lost = await watched.event(ClusterLost)
        assert "SIGKILL" in lost.what

    with_cluster(scenario)


def test_the_capacity_is_the_cores_or_what_is_set() -> None:
    async def by_cores(watched: Watched) -> None:
        assert watched.cluster.capacity == usable_cores() == len(os.sched_getaffinity(0))
        assert "its cores; set NOMADFN_CAPACITY to change it" in watched.cluster.capacity_reason

    async def by_setting(watched: Watched) -> None:
        assert watched.cluster.capacity == 1
        assert watched.cluster.capacity_reason == "this machine's capacity of 1 container (set by NOMADFN_CAPACITY)"
        assert watched.cluster.may_stop(frozenset({1, 2, 3}), frozenset({2, 3})) == {2, 3}

    with_cluster(by_cores)
    with_cluster(by_setting, 1)


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-9, "killed by SIGKILL (the kernel kills like that when memory runs out)"),
        (-15, "killed by SIGTERM"),
        (-250, "killed by signal 250"),
    ],
)
def test_an_exit_code_in_words(exit_code: int, words: str) -> None:
    assert describe_exit(exit_code) == words
