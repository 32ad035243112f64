"""What a client sends: at once, or together with what else its event loop sends in the same turn, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from nomadfn_agent import wire
from nomadfn_agent.wire.link import Link, LinkClosed

from nomadfn.sdk.blocking import run_async, run_sync
from nomadfn.sdk.outgoing import COLLECT, Outgoing


class RecordingLink:
    def __init__(self) -> None:
        self.writes: list[list[int]] = []
        self.closed = False

    def send_all(self, messages: Sequence[bytes]) -> None:
        if self.closed:
            raise LinkClosed("it is closed")
        self.writes.append([wire.decode_from_client(one).number for one in messages])  # type: ignore[union-attr]


def make() -> tuple[RecordingLink, Outgoing]:
    link = RecordingLink()
    return link, Outgoing(lambda: cast(Link, link))


async def call(outgoing: Outgoing, number: int) -> None:
    outgoing.send_soon(wire.Ack(number))


def test_tasks_of_one_turn_send_the_first_frame_at_once_and_the_others_together() -> None:
    link, outgoing = make()

    async def main() -> list[list[int]]:
        await asyncio.gather(*(run_async(call(outgoing, number)) for number in range(5)))
        await asyncio.sleep(0)
        await run_async(call(outgoing, 9))
        return list(link.writes)

    assert asyncio.run(main()) == [[0], [1, 2, 3, 4], [9]]


def test_no_frame_waits_for_more_than_a_few_others() -> None:
    link, outgoing = make()

    async def main() -> None:
        await asyncio.gather(*(run_async(call(outgoing, number)) for number in range(2 * COLLECT + 2)))

    asyncio.run(main())
    assert [len(one) for one in link.writes] == [1, COLLECT, COLLECT, 1]
    assert [number for one in link.writes for number in one] == list(range(2 * COLLECT + 2))


def test_what_is_sent_now_stands_behind_what_was_collected_before() -> None:
    link, outgoing = make()

    async def main() -> None:
        for number in range(3):
            await run_async(call(outgoing, number))
        outgoing.send(wire.Ack(3))

    asyncio.run(main())
    assert link.writes == [[0], [1, 2], [3]]


def test_a_call_that_blocks_its_event_loop_is_sent_at_once_with_all_before_it() -> None:
    link, outgoing = make()
    seen: list[Any] = []

    async def main() -> None:
        await run_async(call(outgoing, 0))
        await run_async(call(outgoing, 1))
        run_sync(call(outgoing, 2))
        seen.extend(link.writes)

    asyncio.run(main())
    assert seen == [[0], [1], [2]]


def test_frames_for_a_link_that_is_gone_are_left_to_who_sends_them_again() -> None:
    link, outgoing = make()
    link.closed = True
    run_sync(call(outgoing, 1))
    Outgoing(lambda: None).send(wire.Ack(1))
    assert link.writes == []
