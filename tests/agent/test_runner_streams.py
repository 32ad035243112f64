"""A runner's streams: what is gathered into a frame, who waits for room, and what the next leader is given again."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from nomadfn_agent import context
from nomadfn_agent.outbox import Outbox
from nomadfn_agent.streams import Flusher, TaskStream, ThreadStream
from nomadfn_agent.wire import (
    OK,
    PART_EXTRA_BYTES,
    STREAM_WINDOW_BYTES,
    Attach,
    Consumed,
    Fed,
    Feed,
    Outputs,
    Part,
    decode_from_runner,
    encode,
)
from nomadfn_agent.wire.link import LinkClosed

WAIT_S = 20.0
KIB_64 = bytes(64 * 1024 - PART_EXTRA_BYTES)
ITEM = (7, "fc-1", 0, b"", 0, "")


class RecordingLink:
    """Keeps what is sent, until it is closed."""

    def __init__(self) -> None:
        self.frames: list[Any] = []
        self.closed = False

    def send(self, data: bytes) -> None:
        if self.closed:
            raise LinkClosed("the leader is gone")
        self.frames.append(decode_from_runner(data))

    def of(self, kind: type) -> list[Any]:
        return [one for one in self.frames if isinstance(one, kind)]


class Runner:
    """An outbox over one link after another, which holds delivery 7."""

    def __init__(self, *links: RecordingLink) -> None:
        self.links = list(links) or [RecordingLink()]
        rest = iter(self.links[1:])
        self.outbox = Outbox(self.links[0], "code", 1, lambda: [ITEM], lambda: next(rest))  # type: ignore[arg-type,return-value]

    def thread_stream(self) -> ThreadStream:
        return ThreadStream(7, self.outbox, lambda: None)

    def task_stream(self) -> TaskStream:
        return TaskStream(7, self.outbox, lambda: None)


def test_the_first_part_is_due_at_once_and_those_behind_it_go_together() -> None:
    runner = Runner()
    stream = runner.thread_stream()
    assert stream.put(b"1")
    stream.flush()
    stream.put(b"2")
    stream.put(b"3")
    stream.flush()
    stream.flush()
    first, second = runner.links[0].of(Part)
    assert (first.number, first.payloads) == (1, [b"1"])
    assert (second.number, second.payloads, second.statuses) == (3, [b"2", b"3"], [OK, OK])


def test_parts_that_wait_for_others_are_sent_by_the_flusher() -> None:
    runner = Runner()
    stream, flusher = runner.thread_stream(), Flusher()
    flusher.watch(stream)
    for number in range(1, 4):
        stream.put(str(number).encode())
        flusher.look()
        deadline = threading.Event()
        while not (sent := runner.links[0].of(Part)) or sent[-1].number < number:
            assert not deadline.wait(0.001)
    flusher.leave(stream)


def test_who_gives_more_than_the_window_waits_until_some_of_it_is_taken() -> None:
    runner = Runner()
    stream = runner.thread_stream()
    while not stream.is_full:
        stream.put(KIB_64)
    assert stream.number == STREAM_WINDOW_BYTES // (64 * 1024)
    waiting = threading.Thread(target=stream.wait_for_room)
    waiting.start()
    stream.on_consumed(1)
    waiting.join(WAIT_S)
    assert not waiting.is_alive()
    assert not stream.is_full
    assert runner.links[0].of(Part)[-1].number == stream.number


def test_a_cancellation_ends_the_wait_of_a_thread() -> None:
    stream = Runner().thread_stream()
    while not stream.is_full:
        stream.put(KIB_64)
    raised: list[BaseException] = []

    def wait(call: Any) -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=wait, args=(stream.wait_for_room,))]
    threads[0].start()
    stream.cancel()
    threads[0].join(WAIT_S)
    wait(stream.receive)
    assert [type(one) for one in raised] == [context.cancellation_type()] * 2


def test_a_task_waits_for_room_and_goes_on() -> None:
    async def main() -> None:
        runner = Runner()
        stream = runner.task_stream()
        taken = most = 0

        async def give() -> None:
            for _ in range(40):
                await stream.give(KIB_64)

        giving = asyncio.create_task(give())
        while not giving.done():
            await asyncio.sleep(0)
            most = max(most, stream.number - taken)
            if (sent := runner.links[0].of(Part)) and stream.is_full:
                taken = sent[-1].number
                stream.on_consumed(taken)
        stream.flush_now()
        assert runner.links[0].of(Part)[-1].number == 40
        assert most == STREAM_WINDOW_BYTES // (64 * 1024)

    asyncio.run(asyncio.wait_for(main(), WAIT_S))


def test_a_frame_takes_a_small_share_of_the_window_however_much_was_put() -> None:
    runner = Runner()
    stream = runner.thread_stream()
    for size in (40_000, 40_000, 120_000, 10, 10, 70_000):
        stream.put(bytes(size))
    stream.flush()
    assert [[len(one) for one in part.payloads] for part in runner.links[0].of(Part)] == [
        [40_000, 40_000],
        [120_000],
        [10, 10, 70_000],
    ]


def test_the_first_part_that_is_taken_is_told_at_once_and_then_now_and_then() -> None:
    runner = Runner()
    stream = runner.thread_stream()
    stream.on_feed(Feed(7, 2, [b"a", b"b"]))
    assert stream.receive() == b"a"
    assert [one.number for one in runner.links[0].of(Fed)] == [1]
    assert stream.receive() == b"b"
    assert [one.number for one in runner.links[0].of(Fed)] == [1]
    stream.on_feed(Feed(7, 6, [KIB_64] * 4, last=True))
    assert [stream.receive() for _ in range(5)] == [KIB_64] * 4 + [None]
    assert [one.number for one in runner.links[0].of(Fed)] == [1, 6]


def test_a_task_that_is_fed_gets_the_end_when_it_comes() -> None:
    async def main() -> None:
        stream = Runner().task_stream()
        receiving = asyncio.create_task(stream.receive())
        await asyncio.sleep(0)
        stream.on_feed(Feed(7, 1, [b"a"]))
        assert await receiving == b"a"
        receiving = asyncio.create_task(stream.receive())
        await asyncio.sleep(0)
        stream.on_feed(Feed(7, 1, [], last=True))
        assert await receiving is None

    asyncio.run(asyncio.wait_for(main(), WAIT_S))


def test_what_came_with_the_input_itself_counts_as_taken_once_user_code_begins() -> None:
    runner = Runner()
    stream = runner.thread_stream()
    stream.begin()
    stream.begin()
    assert [one.number for one in runner.links[0].of(Fed)] == [0]


def test_the_next_leader_is_given_what_was_not_taken_before_what_the_stream_ended_with() -> None:
    runner = Runner(RecordingLink(), RecordingLink())
    stream = runner.thread_stream()
    for number in range(1, 5):
        stream.put(str(number).encode())
        stream.flush()
    stream.on_consumed(2)
    runner.outbox.put(ITEM, OK, b"4", 1)
    runner.outbox.flush()
    runner.links[0].closed = True
    runner.outbox.join_next(runner.links[0], LinkClosed("gone"))  # type: ignore[arg-type]
    frames = runner.links[1].frames
    assert [type(one) for one in frames] == [Attach, Part, Part, Outputs]
    assert [one.number for one in frames[1:3]] == [3, 4]
    assert frames[0].deliveries == [7]


def test_a_part_that_a_lost_link_swallows_goes_out_over_the_next() -> None:
    runner = Runner(RecordingLink(), RecordingLink())
    stream = runner.thread_stream()
    runner.links[0].closed = True
    stream.put(b"1")
    stream.flush()
    numbers = [one.number for one in runner.links[1].of(Part)]
    assert set(numbers) == {1}
    assert isinstance(runner.links[1].frames[0], Attach)


def test_what_is_taken_of_an_ended_stream_is_not_kept() -> None:
    runner = Runner()
    stream = runner.thread_stream()
    stream.put(b"1")
    stream.flush()
    stream.on_consumed(1)
    assert runner.outbox.kept.parts() == []


@pytest.mark.parametrize("frame", [Consumed(9, 1), Feed(9, 1, [b"x"])])
def test_frames_for_what_runs_no_more_are_small(frame: Any) -> None:
    assert len(encode(frame)) < 32
