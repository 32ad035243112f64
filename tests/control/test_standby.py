"""What a standby answers who asks for the leader: at once, or when there is another one than the one that was lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nomadfn.control import standby
from nomadfn.control.standby import Front
from nomadfn.control.tokens import Tokens

OLD, NEW = ({"http_url": f"http://{name}", "data_url": f"ws://{name}", "epoch": n} for n, name in ((1, "a"), (2, "b")))


async def ask(front: Front, query: str = "") -> tuple[int, bytes]:
    """GET /v1/leader, without a socket."""
    scope = {"type": "http", "method": "GET", "path": "/v1/leader", "query_string": query.encode(), "headers": []}
    answer: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        answer.append(message)

    await front(scope, receive, send)
    return answer[0]["status"], answer[1]["body"]


@pytest.fixture
def front() -> Front:
    return Front(Tokens("nf_" + "o" * 43))


async def until_held(asking: asyncio.Task[Any]) -> None:
    for _ in range(10):
        await asyncio.sleep(0)
    assert not asking.done()


def test_a_plain_question_is_answered_at_once(front: Front) -> None:
    async def scene() -> None:
        assert (await ask(front))[0] == 503
        front.know(OLD)
        assert b'"ws://a"' in (await ask(front))[1]

    asyncio.run(scene())


def test_who_lost_a_leader_hears_of_the_next_one_when_there_is_one(front: Front) -> None:
    async def scene() -> None:
        front.know(OLD)
        asking = asyncio.ensure_future(ask(front, "unlike=ws%3A%2F%2Fa"))
        await until_held(asking)
        front.know({})
        await until_held(asking)
        front.know(NEW)
        assert b'"ws://b"' in (await asking)[1]

    asyncio.run(scene())


def test_a_standby_that_becomes_the_leader_names_itself(front: Front) -> None:
    async def app(*_: Any) -> None: ...

    async def scene() -> None:
        asking = asyncio.ensure_future(ask(front, "unlike="))
        await until_held(asking)
        front.lead(app, NEW)
        assert b'"ws://b"' in (await asking)[1]

    asyncio.run(scene())


def test_a_question_is_not_held_for_ever(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "HOLD_S", 0.01)

    async def scene() -> None:
        front.know(OLD)
        assert b'"ws://a"' in (await ask(front, "unlike=ws%3A%2F%2Fa"))[1]
        front.know({})
        assert (await ask(front, "unlike=ws%3A%2F%2Fa"))[0] == 503

    asyncio.run(scene())
