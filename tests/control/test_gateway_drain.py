"""A container that is to end waits for its websockets, but not for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nomadfn.control import gateway
from nomadfn.core.core import Core


class Service:
    """As much of one as the gateway asks for beside its requests."""

    def __init__(self) -> None:
        self.core = Core()
        self.loop = asyncio.get_running_loop()
        self.at = 0.0

    def now(self) -> float:
        self.at += 10.0
        return self.at


class Held:
    def __init__(self, *, is_draining: bool) -> None:
        self.is_draining = is_draining
        self.was_told = False

    def end_for_drain(self) -> None:
        self.was_told = True


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "DRAIN_POLL_S", 0.0)
    monkeypatch.setattr(gateway, "LEAVE_S", 0.05)


def test_only_websockets_of_a_container_that_drains_are_told_and_only_after_a_time() -> None:
    async def story() -> list[int]:
        service: Any = Service()
        one = gateway.Gateway(service, "http://h:1", 100)
        held: Any = {Held(is_draining=True), Held(is_draining=False)}
        one._websockets = held
        looking = asyncio.create_task(one._end_websockets_of_draining())
        steps = 0
        while not any(visit.was_told for visit in held):
            await asyncio.sleep(0)
            steps += 1
        told = {visit.is_draining: visit.was_told for visit in held}
        assert told == {True: True, False: False}
        held.clear()
        await looking
        return [int(service.at)]

    [passed_s] = asyncio.run(story())
    assert passed_s >= gateway.DRAIN_S


def test_a_leader_that_leaves_waits_for_open_requests_for_a_short_time_only() -> None:
    async def story() -> bool:
        service: Any = Service()
        one = gateway.Gateway(service, "http://h:1", 100)
        held: Any = {Held(is_draining=False)}
        one._websockets = held
        one._open = 1
        await asyncio.wait_for(one.drain(), 10)
        one._open = 0
        await asyncio.wait_for(one.drain(), 10)
        return all(visit.was_told for visit in held)

    assert asyncio.run(story())
