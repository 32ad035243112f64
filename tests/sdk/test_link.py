"""The blocking websocket end, against a real websocket server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

import pytest
from nomadfn_agent.wire.link import Link, LinkClosed, LinkRefused
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve


@contextmanager
def server(handler: Callable[[ServerConnection], None], token: str = "nf_good") -> Iterator[str]:
    def check(connection: ServerConnection, request: Request) -> Response | None:
        if request.headers.get("Authorization") != f"Bearer {token}":
            return connection.respond(HTTPStatus.UNAUTHORIZED, "no token or a wrong one\n")
        return None

    with serve(handler, "127.0.0.1", 0, compression=None, process_request=check, max_size=None) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        port = running.socket.getsockname()[1]
        try:
            yield f"ws://127.0.0.1:{port}/v1/connect"
        finally:
            running.shutdown()
            thread.join(10)


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


def test_messages_of_every_size_come_back_whole_and_in_order() -> None:
    sizes = [0, 1, 125, 126, 65535, 65536, 300_000, 3_000_000]
    with server(echo) as url:
        link = Link.connect(url, "nf_good")
        got: list[bytes] = []
        for size in sizes:
            link.send(bytes([size % 251]) * size)
        while len(got) < len(sizes):
            arrived = link.receive(20)
            assert arrived
            got += arrived
        assert [bytes(one) for one in got] == [bytes([size % 251]) * size for size in sizes]
        link.close()
        link.close()


def test_messages_that_arrive_together_are_received_together() -> None:
    sent = threading.Event()

    def burst(connection: ServerConnection) -> None:
        for number in range(100):
            connection.send(b"%d" % number)
        connection.ping().wait(20)
        sent.set()
        connection.recv()

    with server(burst) as url:
        link = Link.connect(url, "nf_good")
        got: list[bytes] = []
        calls = 0
        while len(got) < 100:
            got += link.receive(20)
            calls += 1
        assert [int(one) for one in got] == list(range(100))
        for _ in range(400):  # the ping behind the messages is answered while receiving
            assert link.receive(0.05) == []
            if sent.is_set():
                break
        assert sent.is_set(), "the ping was not answered"
        link.send(b"bye")
        link.close()


def test_a_fragmented_message_arrives_as_one() -> None:
    def fragments(connection: ServerConnection) -> None:
        connection.send([b"ab", b"cd", b"ef"])
        connection.recv()

    with server(fragments) as url:
        link = Link.connect(url, "nf_good")
        assert link.receive(20) == [b"abcdef"]
        link.send(b"bye")
        link.close()


def test_receive_gives_nothing_after_its_timeout() -> None:
    with server(echo) as url:
        link = Link.connect(url, "nf_good")
        assert link.receive(0.01) == []
        link.close()


def test_a_wrong_token_is_refused_with_status_and_text() -> None:
    with server(echo) as url:
        with pytest.raises(LinkRefused) as caught:
            Link.connect(url, "nf_bad")
        assert caught.value.status == 401
        assert "no token or a wrong one" in caught.value.body


def test_nobody_there_is_an_os_error() -> None:
    with server(echo) as url:
        pass
    with pytest.raises(OSError):
        Link.connect(url, "nf_good", timeout_s=5)


def test_closing_wakes_a_thread_that_waits_in_receive() -> None:
    with server(echo) as url:
        link = Link.connect(url, "nf_good")
        outcome: list[BaseException] = []
        waiting = threading.Event()

        def wait() -> None:
            waiting.set()
            try:
                link.receive()
            except LinkClosed as error:
                outcome.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        assert waiting.wait(20)
        link.close()
        thread.join(20)
        assert len(outcome) == 1
        with pytest.raises(LinkClosed):
            link.send(b"late")


def test_the_last_messages_before_the_other_side_closes_are_received() -> None:
    def farewell(connection: ServerConnection) -> None:
        connection.send(b"one")
        connection.send(b"two")

    with server(farewell) as url:
        link = Link.connect(url, "nf_good")
        got: list[bytes] = []

        def receive_for_ever() -> None:
            while True:
                got.extend(link.receive(20))

        with pytest.raises(LinkClosed):
            receive_for_ever()
        assert got == [b"one", b"two"]
        link.close()


def test_many_threads_may_send_at_once() -> None:
    with server(echo) as url:
        link = Link.connect(url, "nf_good")

        def send_some(number: int) -> None:
            for _ in range(20):
                link.send(bytes([number]) * 5000)

        threads = [threading.Thread(target=send_some, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        got: list[bytes] = []
        while len(got) < 160:
            arrived = link.receive(20)
            assert arrived
            got += arrived
        for thread in threads:
            thread.join(20)
        assert sorted(one[0] for one in got) == sorted(list(range(8)) * 20)
        assert all(len(set(one)) == 1 for one in got)
        link.close()
