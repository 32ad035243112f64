"""The blocking websocket end, against a real websocket server."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import Any

import pytest
from nomadfn_agent.wire.link import JOINED_BYTES, MAX_PARTS, Link, LinkClosed, LinkRefused
from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.sync.server import ServerConnection, serve, unix_serve
from websockets.uri import parse_uri


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


@pytest.mark.parametrize("sizes", [[10] * 5, [200, 300_000, 0, 70_000], [JOINED_BYTES] * 3, [2_000] * (2 * MAX_PARTS)])
def test_messages_that_are_sent_together_come_back_whole_and_in_order(sizes: list[int]) -> None:
    messages = [bytes([place % 251]) * size for place, size in enumerate(sizes)]
    with server(echo) as url:
        link = Link.connect(url, "nf_good")
        link.send_all(messages)
        got: list[bytes] = []
        while len(got) < len(sizes):
            arrived = link.receive(20)
            assert arrived
            got += arrived
        assert [bytes(one) for one in got] == messages
        link.close()


class Interrupted:
    """A socket whose `sendmsg` takes a part only, as one does that a signal ends."""

    def __init__(self, inner: socket.socket, most: int) -> None:
        self._inner = inner
        self._most = most

    def sendmsg(self, parts: list[bytes]) -> int:
        return self._inner.send(b"".join(parts)[: self._most])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.mark.parametrize("most", [0, 1, 9, 100_000, 200_014, 200_020, 300_000, 999_999])
def test_what_a_signal_keeps_from_being_sent_at_once_is_sent_then(most: int) -> None:
    messages = [os.urandom(size) for size in (200_000, 50, 200_000)]
    with server(echo) as url:
        link = Link.connect(url, "nf_good")
        link._socket = Interrupted(link._socket, most)  # type: ignore[assignment]
        link.send_all(messages)
        got: list[bytes] = []
        while len(got) < len(messages):
            arrived = link.receive(20)
            assert arrived
            got += arrived
        assert [bytes(one) for one in got] == messages
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


def frame(first: int, data: bytes) -> bytes:
    """A frame as a server sends it."""
    size = len(data)
    if size < 126:
        return bytes((first, size)) + data
    return (
        bytes((first, 126)) + size.to_bytes(2) + data
        if size < 1 << 16
        else bytes((first, 127)) + size.to_bytes(8) + data
    )


def test_frames_come_in_their_order_however_they_are_cut() -> None:
    random = Random(7)
    frames: list[bytes] = []
    expected: list[bytes] = []
    for number in range(400):
        data = random.randbytes(random.choice((0, 1, 125, 126, 127, 1000, 65535, 65536, 70_000)))
        match number % 5:
            case 0:  # in two fragments, with a ping between them
                cut = len(data) // 2
                frames += frame(0x02, data[:cut]), frame(0x89, b"?"), frame(0x80, data[cut:])
            case 1:
                frames += frame(0x89, b"ping"), frame(0x82, data)
            case _:
                frames.append(frame(0x82, data))
        expected.append(data)
    stream = b"".join(frames)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = Link(ours, opened())
        got: list[bytes] = []
        start = 0
        while start < len(stream):
            size = random.choice((1, 2, 3, 9, 100, 1000, 100_000))
            theirs.sendall(stream[start : start + size])
            start += size
            while link.wait(0):
                got += link.receive_once()
                theirs.setblocking(False)
                with suppress(BlockingIOError):
                    theirs.recv(1 << 20)  # the answers to the pings
                theirs.setblocking(True)
        assert [bytes(one) for one in got] == expected


def opened() -> ClientProtocol:
    """The client's side of a websocket that has shaken hands."""
    client, other = ClientProtocol(parse_uri("ws://here/")), ServerProtocol()
    client.send_request(client.connect())
    other.receive_data(b"".join(client.data_to_send()))
    (request,) = other.events_received()
    assert isinstance(request, Request)
    other.send_response(other.accept(request))
    client.receive_data(b"".join(other.data_to_send()))
    client.events_received()
    return client


@pytest.mark.parametrize("wrong", [frame(0x82, b"x")[:1] + b"\x81" + b"mask" + b"x", frame(0xC2, b"reserved")])
def test_what_no_server_may_send_ends_the_link(wrong: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = Link(ours, opened())
        theirs.sendall(frame(0x82, b"good") + wrong)
        assert link.receive(20) == [b"good"]
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(LinkClosed, match="broke the websocket protocol"):
            link.receive(20)


def test_what_has_come_of_a_frame_goes_along_when_the_connection_is_handed_over() -> None:
    for data in (b"small", bytes(600), bytes(100_000)):
        whole = frame(0x82, data)
        for cut in {1, 2, 3, 6, min(11, len(whole) - 1), len(whole) - 1}:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                link = Link(ours, opened())
                theirs.sendall(frame(0x82, b"before") + whole[:cut])
                assert link.receive(20) == [b"before"]
                while link.wait(0):
                    assert link.receive_once() == []
                _, protocol, messages = link.release()
                assert messages == []
                protocol.receive_data(whole[cut:])
                (event,) = protocol.events_received()
                assert isinstance(event, Frame)
                assert bytes(event.data) == data


def test_whoever_stays_awake_sees_what_comes_the_end_and_the_time() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = Link(ours, opened())
        assert not link.spin(time.monotonic() + 0.001)
        theirs.sendall(frame(0x82, b"here"))
        assert link.spin(time.monotonic() + 20)
        assert link.receive_once() == [b"here"]
        theirs.shutdown(socket.SHUT_WR)
        assert link.spin(time.monotonic() + 20)
        with pytest.raises(LinkClosed):
            link.receive_once()
        link.close()
        assert link.spin(time.monotonic() + 20)


def test_a_torn_link_gives_nothing_that_has_come_already() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = Link(ours, opened())
        theirs.sendall(frame(0x82, b"lost"))
        link.tear()
        with pytest.raises(LinkClosed):
            link.receive(20)


def test_a_server_is_reached_over_its_unix_socket_and_by_tcp_where_there_is_none(tmp_path: Path) -> None:
    path = str(tmp_path / "data.sock")
    with unix_serve(echo, path, compression=None) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            link = Link.connect("ws://127.0.0.1:1/v1/connect", "nf_good", socket_path=path)
            link.send(b"by the socket")
            assert link.receive(20) == [b"by the socket"]
            link.close()
        finally:
            running.shutdown()
            thread.join(10)
    with server(echo) as url:
        link = Link.connect(url, "nf_good", socket_path=str(tmp_path / "nobody"))
        link.send(b"by TCP")
        assert link.receive(20) == [b"by TCP"]
        link.close()
