"""Standing by, over a lease and a leader that the test moves."""

from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from nomadfn.control import leadership
from nomadfn.exception import ServiceError
from nomadfn.ports import LeaseHeldError

WAIT_S = 20.0


@dataclass(frozen=True)
class Record:
    data_url: str = ""
    http_url: str = ""


class HeldLease:
    """A lease in memory; `who` has it."""

    def __init__(self, who: Record | None) -> None:
        self.who = who
        self.changed = threading.Condition()
        self.taken_over: list[Record] = []
        self.faults = 0

    def acquire(self) -> int:
        if self.who is not None:
            raise LeaseHeldError("held")
        return 5

    def take_over(self, leader: Record) -> int:
        self.taken_over.append(leader)
        return 6

    def leader(self) -> Record | None:
        if self.faults:
            self.faults -= 1
            raise ServiceError("Consul is away")
        return self.who

    def wait_for_change(self, known: Any, timeout_s: float) -> Record | None:
        with self.changed:
            self.changed.wait_for(lambda: self.who != known, timeout_s)
            return self.who

    def give(self, who: Record | None) -> None:
        with self.changed:
            self.who = who
            self.changed.notify_all()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(leadership, "RETRY_S", 0.01)
    return []


async def stand_by(lease: HeldLease, said: list[str]) -> int:
    token = "nf_" + "a" * 20
    waiting = leadership.await_lease(lease, token, "http://me", lambda leader: None, said.append)
    return await asyncio.wait_for(waiting, WAIT_S)


def test_a_free_lease_is_taken(said: list[str]) -> None:
    assert asyncio.run(stand_by(HeldLease(None), said)) == 5


def test_a_lease_that_is_given_back_is_taken_at_once(said: list[str]) -> None:
    async def scene() -> int:
        lease = HeldLease(Record())
        standing = asyncio.ensure_future(stand_by(lease, said))
        await asyncio.sleep(0)
        await asyncio.to_thread(lease.give, None)
        return await standing

    assert asyncio.run(scene()) == 5


def test_a_leader_whose_process_is_gone_loses_its_lease_at_once(said: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        gone = Record(f"ws://127.0.0.1:{closed.getsockname()[1]}/v1/connect")
    lease = HeldLease(gone)
    assert asyncio.run(stand_by(lease, said)) == 6
    assert lease.taken_over == [gone]


def test_a_leader_that_is_there_and_cannot_be_watched_keeps_its_lease(said: list[str]) -> None:
    """Something else than a control service answers: only the lease says when its holder is gone."""

    async def scene() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
            asked.set()
            await writer.drain()
            writer.close()

        asked = asyncio.Event()
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        lease = HeldLease(Record(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/connect"))
        standing = asyncio.ensure_future(stand_by(lease, said))
        await asyncio.wait_for(asked.wait(), WAIT_S)
        await asyncio.to_thread(lease.give, None)
        assert await standing == 5
        assert lease.taken_over == []
        server.close()

    asyncio.run(scene())


def test_while_the_lease_cannot_be_asked_for_that_is_said_once(said: list[str]) -> None:
    lease = HeldLease(None)
    lease.faults = 3
    assert asyncio.run(stand_by(lease, said)) == 5
    assert said == ["standing by: Consul is away"]


def test_a_leader_whose_process_is_slow_to_go_loses_its_lease_all_the_same(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections end before its listener: for a moment it takes new ones, and drops them."""
    monkeypatch.setattr(leadership, "WATCH_S", 10 * WAIT_S)

    async def scene() -> None:
        met = 0

        async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal met
            met += 1
            writer.close()
            if met == 3:
                server.close()

        server = await asyncio.start_server(drop, "127.0.0.1", 0)
        leader = Record(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/connect")
        lease = HeldLease(leader)
        assert await stand_by(lease, said) == 6
        assert lease.taken_over == [leader]
        lease.give(None)

    asyncio.run(scene())
