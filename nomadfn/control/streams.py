"""Streams that the control service itself reads and feeds: generators over HTTP, requests of the web gateway.

    async with service.streams.open(function, arguments, codec) as stream:
        await stream.feed(data)                    # waits while the window is full
        async for status, payload in stream.parts():
            ...                                    # taking the next one says that this one is taken
        status, payload = await stream.result()    # what the function ended with

Leaving the block before the end cancels the input, and its container's user code sees that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from secrets import token_hex
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import msgspec
from nomadfn_agent import wire
from nomadfn_agent.wire import outcome
from nomadfn_agent.wire.payload import is_large

from nomadfn.control.clients import LOCAL_SESSION, deadline_of, error_of
from nomadfn.core import calls, effects
from nomadfn.core.model import NO_DEADLINE, Function

if TYPE_CHECKING:
    from nomadfn.control.service import Service

StreamEffect = effects.SendParts | effects.FeedTaken | effects.Consumed | effects.SendFeed

TAKEN_EVERY_BYTES = wire.STREAM_WINDOW_BYTES // 4


class Reader(Protocol):
    """What a stream tells whoever reads and feeds it."""

    def _on_parts(self, number: int, statuses: list[int], payloads: list[bytes]) -> None: ...

    def _on_feed_taken(self, number: int) -> None: ...

    def _end(self, outcome: tuple[int, bytes] | Exception) -> None: ...


class Streams:
    """All that are open, by their call."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._open: dict[str, Reader] = {}
        self._run, self._count = token_hex(8), 0
        """Together in the ids of calls: none is given twice."""
        self._seen = 0
        """Number of the last result that has come and is not acknowledged."""

    def open(
        self,
        function: Function,
        arguments: bytes,
        codec: int = wire.JSON,
        *,
        is_reference: bool = False,
        priority: int = 0,
        deadline: float = NO_DEADLINE,
        method: str = "",
    ) -> Stream:
        """Hand in one input. What refuses it, such as a limit, is raised by whatever is asked of the stream first."""
        stream = Stream(self._service, codec)
        refs = [0] if is_reference else []
        stream.call = self.hand_in(
            function, arguments, codec, stream, refs=refs, priority=priority, deadline=deadline, method=method
        )
        return stream

    def hand_in(
        self,
        function: Function,
        arguments: bytes,
        codec: int,
        reader: Reader,
        *,
        refs: Sequence[int] = (),
        priority: int = 0,
        deadline: float = NO_DEADLINE,
        method: str = "",
    ) -> str:
        """The same for a reader of another kind, which says what it has `taken`; returns the call's id."""
        now = self._service.now()
        self._count += 1
        call = f"fc-{int(now):08x}{self._run}{self._count:08x}"
        self._open[call] = reader
        submission = calls.Submission(
            call, function.id, wire.REMOTE, 0, [arguments], codec, refs, priority, deadline, method=method
        )
        self._service.core.submit(now, LOCAL_SESSION, submission)
        self._service.poke()
        return call

    def taken(self, call: str, number: int) -> None:
        """The reader has the parts up to `number`."""
        self._service.core.parts_taken(LOCAL_SESSION, call, 0, number)
        self._service.poke()

    async def call(
        self, function: Function, arguments: bytes, priority: int, deadline_s: float | None, method: str
    ) -> Stream:
        """As `open`, with JSON arguments of any size, and a deadline so many seconds from now."""
        large = is_large(arguments)
        data = await self._service.desk.keep(arguments, function.app) if large else arguments
        deadline = deadline_of(self._service.now(), deadline_s)
        return self.open(function, data, is_reference=large, priority=priority, deadline=deadline, method=method)

    def carry_out(self, effect: StreamEffect) -> None:
        """What the core asks for about anybody's streams."""
        containers = self._service.containers
        match effect:
            case effects.SendParts(session, call, index, attempt, number, statuses, payloads):
                if session != LOCAL_SESSION:
                    connection = self._service.clients.sessions.get(session)
                    if connection is not None:
                        connection.send(wire.Parts(call, index, attempt, number, statuses, payloads))
                elif (stream := self._open.get(call)) is not None:
                    stream._on_parts(number, statuses, payloads)
            case effects.FeedTaken(_, call, _, number):
                if (stream := self._open.get(call)) is not None:
                    stream._on_feed_taken(number)
            case effects.Consumed(container, delivery, number):
                containers.send(container, wire.Consumed(delivery, number))
            case effects.SendFeed(container, delivery, number, payloads, last):
                containers.send(container, wire.Feed(delivery, number, payloads, last))

    def on_results(self, effect: effects.SendResults) -> None:
        if (stream := self._open.pop(effect.call, None)) is not None:
            stream._end((effect.statuses[0], effect.payloads[0]))
        self._seen = effect.number

    def acknowledge(self) -> None:
        """Say which results are here: once for all that came together."""
        if self._seen:
            self._service.core.acknowledge(LOCAL_SESSION, self._seen)
            self._seen = 0

    def rejected(self, effect: effects.Reject) -> None:
        if (stream := self._open.pop(effect.call, None)) is not None:
            stream._end(error_of(effect))


class Stream:
    """One input that is read while it runs. For one task that feeds and one that reads."""

    def __init__(self, service: Service, codec: int) -> None:
        self.call = ""
        self.codec = codec
        """Of the arguments, and so of what comes."""
        self._service = service
        self._ended: asyncio.Future[tuple[int, bytes] | Exception] = service.loop.create_future()
        self._arrived: deque[tuple[int, int, bytes]] = deque()
        self._changed: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._fed: deque[tuple[int, int]] = deque()
        """Number and size of what was fed and is not taken."""
        self._fed_bytes = 0
        self._untold_bytes = 0

    @property
    def has_more(self) -> bool:
        """Whether a part is there that nobody has been given."""
        return bool(self._arrived)

    @property
    def ended(self) -> bool:
        """Whether the input has its result; parts that came before may be left to read."""
        return self._ended.done()

    async def feed(self, data: bytes, *, last: bool = False) -> bool:
        """Give the running input its next part, and wait while the window is full; False once it has ended.

        `last` is the end of what it is fed; with empty `data` there is no part before it.
        """
        while self._fed_bytes >= wire.STREAM_WINDOW_BYTES and not self.ended:
            self._room = self._service.loop.create_future()
            await asyncio.wait((self._room, self._ended), return_when=asyncio.FIRST_COMPLETED)
        if self.ended:
            return False
        number = self._service.core.feed(self.call, 0, [] if last and not data else [data], last=last)
        size = len(data) + wire.PART_EXTRA_BYTES
        self._fed.append((number, size))
        self._fed_bytes += size
        self._service.poke()
        return True

    async def parts(self) -> AsyncIterator[tuple[int, bytes]]:
        """Each part's status and payload as it comes; with `wire.REF` the payload names a blob, which is the reader's.

        Raises what refused the input.
        """
        taken = 0
        while True:
            while self._arrived:
                number, status, payload = self._arrived.popleft()
                yield status, payload
                taken = number
                self._untold_bytes += size_of(status, payload)
                if self._untold_bytes >= TAKEN_EVERY_BYTES:
                    self._untold_bytes = 0
                    self._service.core.parts_taken(LOCAL_SESSION, self.call, 0, taken)
                    self._service.poke()
            if self.ended:
                break
            self._changed = self._service.loop.create_future()
            await asyncio.wait((self._changed, self._ended), return_when=asyncio.FIRST_COMPLETED)
        ended = self._ended.result()
        if isinstance(ended, Exception):
            raise ended

    async def result(self) -> tuple[int, bytes]:
        """The status and the payload that the input ends with, once it does; a generator's counts its parts."""
        ended = await asyncio.shield(self._ended)
        if isinstance(ended, Exception):
            raise ended
        return ended

    def cancel(self) -> None:
        """Nobody needs the rest: user code is interrupted. No error once the input has ended."""
        left = [payload for _, status, payload in self._arrived if status & wire.REF]
        self._arrived.clear()
        if not self.ended:
            self._service.core.drop_stream(self.call, 0)
            self._service.core.cancel_call(self._service.now(), self.call)
            self._service.poke()
        else:
            for reference in left:
                self._service.drop_blob(reference)

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _on_parts(self, number: int, statuses: list[int], payloads: list[bytes]) -> None:
        first = number - len(payloads) + 1
        for place, (status, payload) in enumerate(zip(statuses, payloads, strict=True)):
            self._arrived.append((first + place, status, payload))
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def _on_feed_taken(self, number: int) -> None:
        while self._fed and self._fed[0][0] <= number:
            self._fed_bytes -= self._fed.popleft()[1]
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _end(self, outcome: tuple[int, bytes] | Exception) -> None:
        if not self._ended.done():
            self._ended.set_result(outcome)


def size_of(status: int, payload: bytes) -> int:
    """What a part counts for in its window."""
    if status & wire.REF:
        try:
            return outcome.decode_ref(payload).size + wire.PART_EXTRA_BYTES
        except msgspec.DecodeError:
            pass
    return len(payload) + wire.PART_EXTRA_BYTES
