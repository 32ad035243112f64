"""Running a generator function: each value that it yields goes out as a part of its input's stream."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

from . import context
from .outcomes import CODEC_MASK, Coder, Outcome
from .streams import TaskStream, ThreadStream
from .wire import FAILURE


def run_generator(
    generator: Generator[Any, Any, Any],
    stream: ThreadStream,
    coder: Coder,
    codec: int,
    look: Callable[[], None],
    shield: Callable[[bool], None],
) -> Outcome:
    """Give out what `generator` yields; how many values those were is its result.

    `look` is called when something was put that something else has to send. An interruption is raised wherever this
    runs, but not while it is shielded: to wait for room, where the stream itself ends it, and to close the generator,
    whose `finally` then runs undisturbed.
    """
    part, put, flush = coder.part, stream.put, stream.flush
    try:
        for value in generator:
            status, payload = part(value, codec)
            if status == FAILURE:
                return status, payload
            if put(payload, status):
                flush()
            else:
                look()
            if stream.is_full:
                shield(True)
                stream.wait_for_room()
                shield(False)
            elif stream.cancelled:
                break
        return coder.result(stream.number, codec & CODEC_MASK)
    except context.Terminated:
        raise
    except BaseException as error:
        return coder.raised(error, codec)
    finally:
        shield(True)
        try:
            generator.close()
        except BaseException:
            traceback.print_exc()  # Nobody waits for it any more: its place is the log.
        flush()


async def run_async_generator(
    generator: AsyncGenerator[Any, Any], stream: TaskStream, coder: Coder, codec: int
) -> Outcome:
    """As `run_generator`, in a task that an interruption cancels; what is raised is raised here."""
    part, put, send_soon = coder.part, stream.put, stream.send_soon
    try:
        async for value in generator:
            status, payload = part(value, codec)
            if status == FAILURE:
                return status, payload
            due = put(payload, status)
            send_soon(due)
            if stream.is_full:
                await stream.wait_for_room()
            elif due:
                await asyncio.sleep(0)  # One that never waits lets the others run, and the link be read.
            if stream.cancelled:
                break
        return coder.result(stream.number, codec & CODEC_MASK)
    finally:
        try:
            await generator.aclose()
        except BaseException:
            traceback.print_exc()
        stream.flush_now()
