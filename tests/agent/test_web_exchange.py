"""One request between an application and the gateway: ASGI's rules, what travels when, and who waits for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from nomadfn_agent.web.exchange import PIECE_BYTES, Exchange
from nomadfn_agent.web.lifespan import Lifespan, LifespanError
from nomadfn_agent.wire import PART_EXTRA_BYTES, STREAM_WINDOW_BYTES, Fed, Part
from nomadfn_agent.wire import web as messages

START = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}


def body(data: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def request(data: bytes = b"", *, more: bool = False, websocket: bool = False) -> messages.Request:
    return messages.Request(
        websocket, "GET", "http", "1.1", "/a/f", "/a/f/x", b"/a/f/x", b"q=1", [(b"host", b"h")], body=data, more=more
    )


class Line:
    """What a container would send."""

    def __init__(self) -> None:
        self.fed: list[int] = []
        self.parts: list[list[Any]] = []
        self.numbers: list[int] = []
        self.waiting: list[Exchange] = []

    def tell(self, frame: Part | Fed) -> None:
        if isinstance(frame, Fed):
            self.fed.append(frame.number)
        else:
            self.numbers.append(frame.number)
            self.parts.append(messages.decode_from_app(frame.payloads[0]))

    def flush_soon(self, exchange: Exchange) -> None:
        self.waiting.append(exchange)

    def turn(self) -> None:
        """The end of the loop's turn."""
        waiting, self.waiting = self.waiting, []
        for exchange in waiting:
            exchange.flush()


Story = Callable[[Exchange, Line], Awaitable[None]]


def play(story: Story, asked: messages.Request | None = None) -> tuple[Exchange, Line]:
    line = Line()
    exchange = Exchange(7, asked or request(), line)

    async def run() -> None:
        async with asyncio.timeout(20):
            await story(exchange, line)

    asyncio.run(run())
    return exchange, line


def test_a_small_response_is_one_message_and_no_part() -> None:
    async def story(exchange: Exchange, line: Line) -> None:
        assert (await exchange.receive())["body"] == b""
        await exchange.send(START)
        await exchange.send(body(b"whole"))
        assert (await exchange.receive())["type"] == "http.disconnect"

    exchange, line = play(story)
    assert exchange.rest() == [messages.Start(200, [(b"a", b"b")], b"whole", False)]
    line.turn()
    assert (line.parts, line.fed) == ([], [])


def test_what_comes_in_one_turn_is_one_part_and_large_bodies_are_pieces() -> None:
    async def story(exchange: Exchange, line: Line) -> None:
        await exchange.send(START)
        line.turn()
        await exchange.send(body(b"1", more=True))
        await exchange.send(body(b"2", more=True))
        line.turn()
        await exchange.send(body(bytes(3 * PIECE_BYTES)))

    exchange, line = play(story)
    line.turn()
    assert exchange.rest() == []
    assert line.parts[0] == [messages.Start(200, [(b"a", b"b")], b"", True)]
    assert line.parts[1] == [messages.Body(b"1", True), messages.Body(b"2", True)]
    assert [[len(one.data) for one in part] for part in line.parts[2:]] == [[PIECE_BYTES]] * 3
    assert [part[-1].more for part in line.parts[2:]] == [True, True, False]
    assert line.numbers == [1, 2, 3, 4, 5]


def test_a_sender_waits_while_the_client_takes_nothing() -> None:
    async def story(exchange: Exchange, line: Line) -> None:
        await exchange.send(START)
        sent = 0

        async def produce() -> None:
            nonlocal sent
            for _ in range(64):
                await exchange.send(body(bytes(PIECE_BYTES), more=True))
                sent += 1

        producing = asyncio.create_task(produce())
        for _ in range(200):
            await asyncio.sleep(0)
            line.turn()
        assert sent * PIECE_BYTES <= STREAM_WINDOW_BYTES + 2 * PIECE_BYTES
        while not producing.done():
            exchange.consumed(line.numbers[-1])
            await asyncio.sleep(0)
            line.turn()
        assert sent == 64

    play(story)


def test_nobody_waits_for_a_client_that_is_gone() -> None:
    async def story(exchange: Exchange, line: Line) -> None:
        await exchange.receive()
        await exchange.send(START)
        producing = asyncio.create_task(produce(exchange))
        for _ in range(100):
            await asyncio.sleep(0)
            line.turn()
        assert not producing.done()
        exchange.disconnect()
        await producing
        assert (await exchange.receive())["type"] == "http.disconnect"
        parts = len(line.parts)
        line.turn()
        assert len(line.parts) == parts

    async def produce(exchange: Exchange) -> None:
        for _ in range(64):
            await exchange.send(body(bytes(PIECE_BYTES), more=True))

    exchange, _ = play(story)
    assert exchange.finished


def test_a_body_is_said_to_be_taken_before_the_application_has_it() -> None:
    async def story(exchange: Exchange, line: Line) -> None:
        assert line.fed == []
        assert (await exchange.receive())["body"] == b"first"
        assert line.fed == [0]
        for number in range(1, 9):
            exchange.feed(number, [messages.Body(bytes(PIECE_BYTES), number < 8)])
        taken = [await exchange.receive() for _ in range(8)]
        assert [one["more_body"] for one in taken] == [True] * 7 + [False]

    _, line = play(story, request(b"first", more=True))
    assert line.fed[0] == 0
    assert line.fed[-1] >= 8 - STREAM_WINDOW_BYTES // 4 // (PIECE_BYTES + PART_EXTRA_BYTES) - 1
    assert len(line.fed) < 5  # not for each


def test_an_empty_body_is_nothing_to_be_taken() -> None:
    async def story(exchange: Exchange, line: Line) -> None:
        await exchange.receive()

    assert play(story)[1].fed == []


def test_a_websocket_has_its_events_in_order() -> None:
    async def story(exchange: Exchange, line: Line) -> None:
        assert (await exchange.receive())["type"] == "websocket.connect"
        await exchange.send({"type": "websocket.accept", "subprotocol": "x"})
        exchange.feed(1, [messages.Text("a"), messages.Data(b"b"), messages.Close(1001, "going")])
        got = [await exchange.receive() for _ in range(3)]
        assert got == [
            {"type": "websocket.receive", "text": "a"},
            {"type": "websocket.receive", "bytes": b"b"},
            {"type": "websocket.disconnect", "code": 1001, "reason": "going"},
        ]
        await exchange.send({"type": "websocket.send", "text": "late"})
        await exchange.send({"type": "websocket.close", "code": 4000})

    _, line = play(story, request(websocket=True))
    line.turn()
    assert line.parts == [[messages.Accept("x", []), messages.Text("late"), messages.Close(4000)]]
    scope = Exchange(1, request(websocket=True), line).scope({})
    assert (scope["type"], scope["subprotocols"], "method" in scope) == ("websocket", [], False)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        ([body(b"early")], RuntimeError),
        ([START, START], RuntimeError),
        ([START, body(), body()], RuntimeError),
        ([START, {"type": "http.response.body", "body": "text"}], TypeError),
        ([{"type": "http.response.start", "status": 200, "headers": [("a", "b")]}], TypeError),
        ([{"type": "websocket.send", "text": "a"}], RuntimeError),
        ([{"type": "something.else"}], RuntimeError),
    ],
)
def test_an_application_that_breaks_the_rules_is_told(sent: list[dict[str, Any]], error: type[Exception]) -> None:
    async def story(exchange: Exchange, line: Line) -> None:
        for message in sent[:-1]:
            await exchange.send(message)
        with pytest.raises(error):
            await exchange.send(sent[-1])

    play(story)


def test_the_scope_is_that_of_asgi() -> None:
    state = {"pool": 1}
    scope = Exchange(1, request(), Line()).scope(state)
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/a/f", "/a/f/x", b"/a/f/x")
    assert (scope["query_string"], scope["headers"], scope["method"]) == (b"q=1", [(b"host", b"h")], "GET")
    assert scope["state"] == state
    assert scope["state"] is not state


def test_an_application_without_lifespan_starts_and_one_that_fails_does_not() -> None:
    async def knows_none(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def raises(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise LookupError("no database")

    async def start(app: Any) -> None:
        one = Lifespan(app)
        await one.start()
        await one.stop()

    asyncio.run(start(knows_none))
    with pytest.raises(LifespanError, match="no database"):
        asyncio.run(start(fails))
    with pytest.raises(LookupError):
        asyncio.run(start(raises))
