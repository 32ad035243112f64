"""What every cluster must do. An adapter joins with one `ClusterWorld` in `test_cluster.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

import pytest

from nomadfn.ports import (
    Cluster,
    ClusterEvent,
    ContainerEnded,
    ContainerStarted,
    Placement,
)

WAIT_S = 60.0
Event = TypeVar("Event", ContainerStarted, ContainerEnded)


class Watched:
    """A cluster that is open, and what it has said so far."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.events: list[ClusterEvent] = []
        self._changed = asyncio.Event()

    def listen(self, event: ClusterEvent) -> None:
        self.events.append(event)
        self._changed.set()

    def said(self, kind: type[Event], container: str) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind) and event.container == container]

    async def until(self, kind: type[Event], container: str) -> Event:
        async with asyncio.timeout(WAIT_S):
            while not self.said(kind, container):
                self._changed.clear()
                await self._changed.wait()
        return self.said(kind, container)[0]


class ClusterWorld(Protocol):
    """Where an adapter's containers run."""

    def opened(self) -> AbstractAsyncContextManager[Watched]:
        """A cluster without containers, closed at the end."""
        ...

    def placement(self, container: str, index: int = 0) -> Placement:
        """A container that starts, and then stays until it is stopped."""
        ...


class ClusterContract:
    @pytest.fixture
    def run(self, world: ClusterWorld) -> Callable[[Callable[[Watched], Awaitable[None]]], None]:
        def run(scenario: Callable[[Watched], Awaitable[None]]) -> None:
            async def main() -> None:
                async with world.opened() as watched:
                    await scenario(watched)

            asyncio.run(main())

        return run

    def test_what_was_started_says_so_and_ends_once_when_it_is_stopped(
        self, world: ClusterWorld, run: Callable[[Callable[[Watched], Awaitable[None]]], None]
    ) -> None:
        async def scenario(watched: Watched) -> None:
            watched.cluster.start(world.placement("ct-1"))
            assert watched.events == [], "the listener is told later, never within a call"
            started = await watched.until(ContainerStarted, "ct-1")
            assert started.pid > 0
            watched.cluster.stop("ct-1", 0.0)
            await watched.until(ContainerEnded, "ct-1")
            watched.cluster.stop("ct-1", 0.0)
            await watched.cluster.close()
            assert len(watched.said(ContainerStarted, "ct-1")) == len(watched.said(ContainerEnded, "ct-1")) == 1

        run(scenario)

    def test_stopping_one_leaves_the_others(
        self, world: ClusterWorld, run: Callable[[Callable[[Watched], Awaitable[None]]], None]
    ) -> None:
        async def scenario(watched: Watched) -> None:
            for index in range(3):
                watched.cluster.start(world.placement(f"ct-{index}", index))
            for index in range(3):
                await watched.until(ContainerStarted, f"ct-{index}")
            watched.cluster.stop("ct-1", 0.0)
            await watched.until(ContainerEnded, "ct-1")
            assert watched.said(ContainerEnded, "ct-0") == watched.said(ContainerEnded, "ct-2") == []

        run(scenario)

    def test_stopping_or_recalling_what_is_not_there_is_no_error(
        self, world: ClusterWorld, run: Callable[[Callable[[Watched], Awaitable[None]]], None]
    ) -> None:
        async def scenario(watched: Watched) -> None:
            watched.cluster.stop("ct-never", 1.0)
            watched.cluster.recall("ct-never", 5)
            await watched.cluster.close()
            assert watched.events == []

        run(scenario)

    def test_closing_ends_every_container_and_may_be_done_twice(
        self, world: ClusterWorld, run: Callable[[Callable[[Watched], Awaitable[None]]], None]
    ) -> None:
        async def scenario(watched: Watched) -> None:
            for index in range(3):
                watched.cluster.start(world.placement(f"ct-{index}", index))
            await watched.until(ContainerStarted, "ct-2")
            await watched.cluster.close()
            for index in range(3):
                assert len(watched.said(ContainerEnded, f"ct-{index}")) == 1
            await watched.cluster.close()

        run(scenario)

    def test_only_idle_containers_may_be_stopped(
        self, world: ClusterWorld, run: Callable[[Callable[[Watched], Awaitable[None]]], None]
    ) -> None:
        async def scenario(watched: Watched) -> None:
            indexes = frozenset(range(5))
            for idle in (frozenset[int](), frozenset({4}), frozenset({0, 3}), indexes):
                assert watched.cluster.may_stop(indexes, idle) <= idle
            assert watched.cluster.may_stop(indexes, indexes) == indexes

        run(scenario)

    def test_a_capacity_has_a_reason_in_words(
        self, world: ClusterWorld, run: Callable[[Callable[[Watched], Awaitable[None]]], None]
    ) -> None:
        async def scenario(watched: Watched) -> None:
            capacity = watched.cluster.capacity
            assert capacity is None or str(capacity) in watched.cluster.capacity_reason

        run(scenario)
