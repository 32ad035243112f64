"""Blobs over HTTP on real sockets: from the client that programs and containers have, through the API, into a store."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from nomadfn_agent import wire
from nomadfn_agent.wire import store as wire_store
from nomadfn_agent.wire.payload import BlobRef, digest_of
from nomadfn_agent.wire.store import BlobStore, Place, Refused, payload_name

from nomadfn.adapters.memory import MemoryBlobs
from nomadfn.control import api, blob_desk
from nomadfn.control.blob_desk import BlobDesk
from nomadfn.control.tokens import Identity
from nomadfn.core.limits import Limits
from nomadfn.core.model import App
from nomadfn.core.state import State
from nomadfn.exception import AuthError, ServiceError

OWN, OTHER = "ap-Own1", "ap-Other2"
IDENTITIES = {
    "nf_owner": Identity(),
    "nf_container": Identity("ct-1", OWN),
    "nf_stranger": Identity("ct-2", OTHER),
}
NAME = f"{'ab' * 16}-{OWN}"
LARGE = os.urandom(5 << 20)
WAIT_S = 30.0


class MoodyBlobs(MemoryBlobs):
    """A store that can be made to fail, and to hang."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Exception] = []
        self.goes_on = threading.Event()
        self.goes_on.set()

    def parts(self, name: str) -> Iterator[bytes]:
        self._mood()
        data = self.get(name)
        for first in range(0, len(data), 1 << 20):
            yield data[first : first + (1 << 20)]
            self._mood()

    def put(self, name: str, data: bytes) -> None:
        self._mood()
        super().put(name, data)

    def _mood(self) -> None:
        assert self.goes_on.wait(WAIT_S)
        if self.failures:
            raise self.failures.pop(0)


class Door:
    """A control service that has nothing but blobs."""

    def __init__(self) -> None:
        self.blobs = MoodyBlobs()
        self.state = State(Limits())
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))
        self._thread.start()
        self._loop, self._stop = self._running.result(WAIT_S)

    def identify(self, bearer: str | None) -> Identity:
        if bearer not in IDENTITIES:
            raise AuthError("the token is wrong")
        return IDENTITIES[bearer]

    def trouble(self) -> str:
        return ""

    async def _serve(self) -> None:
        desk = BlobDesk(self.blobs, self.state)
        server = await api.serve_api(api.create_api(self, desk), self.listener)  # type: ignore[arg-type]
        stop = asyncio.Event()
        self._running.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()
        await server.close()
        desk.close()

    def store(self, token: str = "nf_container") -> BlobStore:
        return BlobStore(lambda: Place(http_url=self.url, token=token))

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        try:
            connection.request(method, path, body, {"Authorization": "Bearer nf_owner", **headers})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def close(self) -> None:
        self.blobs.goes_on.set()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    monkeypatch.setattr(wire_store, "PATIENCE_S", 2.0)
    one = Door()
    yield one
    one.close()


def test_five_mebibytes_go_in_and_come_out_until_they_are_deleted(door: Door) -> None:
    store = door.store()
    ref = store.write(LARGE, OWN)
    assert ref == BlobRef(ref.name, digest_of(LARGE), len(LARGE))
    assert door.blobs.get(ref.name) == LARGE
    assert store.read(ref) == LARGE
    store.delete(ref)
    assert list(door.blobs.names()) == []
    with pytest.raises(Refused, match="there is no blob"):
        store.read(ref)
    assert store.read(store.write(b"", OWN)) == b""


def test_containers_share_the_payloads_of_their_app_and_see_no_others(door: Door) -> None:
    ref = door.store("nf_owner").write(b"arguments", OWN)
    assert door.store("nf_container").read(ref) == b"arguments"
    stranger = door.store("nf_stranger")
    with pytest.raises(Refused, match="for this container's app"):
        stranger.read(ref)
    with pytest.raises(Refused, match="payloads of its own app, and nothing else"):
        stranger.write(b"forged", OWN)
    stranger.delete(ref)
    assert door.blobs.get(ref.name) == b"arguments"


def test_code_is_written_by_the_owner_alone_and_read_by_its_app(door: Door) -> None:
    digest = door.store("nf_owner").write_code(b"an archive")
    app = door.state.apps[OWN] = App(OWN, "shop", "", True, 0.0)
    app.code = wire.CodeRef(digest=digest)
    assert door.store("nf_container").read_code(digest) == b"an archive"
    with pytest.raises(Refused, match="for this container's app"):
        door.store("nf_stranger").read_code(digest)
    with pytest.raises(Refused, match="and nothing else"):
        door.store("nf_container").write_code(b"an archive")


def test_without_a_good_token_nothing_is_taken_or_given(door: Door) -> None:
    for work in (lambda: door.store("nf_wrong").write(LARGE, OWN), lambda: door.store("").read(BlobRef("abc", "", 1))):
        with pytest.raises(Refused, match="the token is wrong"):
            work()
    assert list(door.blobs.names()) == []


@pytest.mark.parametrize(
    ("path", "headers", "status", "words"),
    [
        ("abc?sha256=" + digest_of(b"x"), {}, 400, "no name for a blob"),
        (NAME, {}, 400, "64 hexadecimal digits"),
        (NAME + "?sha256=" + "0" * 64, {}, 400, "another digest than it says"),
        ("0" * 64 + "?sha256=" + digest_of(b"x"), {}, 400, "its own sha256"),
        ("..%2Fabc?sha256=" + digest_of(b"x"), {}, 404, "there is nothing at"),
        (NAME + "?sha256=" + digest_of(b"x"), {"Transfer-Encoding": "chunked"}, 400, "Content-Length"),
    ],
)
def test_an_upload_that_is_not_what_it_says_leaves_nothing(
    door: Door, path: str, headers: dict[str, str], status: int, words: str
) -> None:
    body = b"1\r\nx\r\n0\r\n\r\n" if headers else b"x"
    assert (answer := door.ask("PUT", f"/v1/blobs/{path}", body, **headers))[0] == status, answer
    assert words in answer[1].decode()
    assert list(door.blobs.names()) == []


def test_what_is_over_the_limit_is_refused_with_the_setting(door: Door) -> None:
    door.state.limits = Limits(payload_bytes=1 << 20)
    with pytest.raises(Refused, match=r"has 5,242,880 bytes, over the limit of 1,048,576 .* limits\.payload_bytes"):
        door.store().write(LARGE, OWN)
    door.state.limits = Limits(payload_bytes=wire.INLINE_PAYLOAD_BYTES)
    with pytest.raises(Refused, match="without a blob store: set blobs in the profile"):
        door.store().write(LARGE, OWN)


def test_a_damaged_blob_is_not_taken_for_what_it_was(door: Door) -> None:
    store = door.store("nf_owner")
    ref, digest = store.write(LARGE, OWN), store.write_code(b"an archive")
    door.blobs.put(ref.name, LARGE[:-1] + b"?")
    door.blobs.put(digest, b"an archiv")
    with pytest.raises(ValueError, match="is damaged"):
        store.read(ref)
    with pytest.raises(ValueError, match="deploy or run the program again"):
        store.read_code(digest)


def test_a_store_that_is_down_for_a_moment_is_asked_again_and_then_named(door: Door) -> None:
    down = ServiceError("the blob store s3://bucket cannot be reached")
    door.blobs.failures = [down, down]
    ref = door.store().write(LARGE, OWN)
    door.blobs.failures = [down]
    assert door.store().read(ref) == LARGE
    door.blobs.failures = [down] * 1000
    for work in (lambda: door.store().read(ref), lambda: door.store().write(LARGE, OWN)):
        with pytest.raises(OSError, match=r"within 2 s: the blob store s3://bucket cannot be reached"):
            work()


def test_a_download_that_breaks_off_is_begun_again(door: Door) -> None:
    ref = door.store().write(LARGE, OWN)
    parts = door.blobs.parts

    def breaking(name: str) -> Iterator[bytes]:
        door.blobs.parts = parts  # type: ignore[method-assign]
        yield next(parts(name))
        raise ServiceError("gone in the middle")

    door.blobs.parts = breaking  # type: ignore[method-assign]
    assert door.store().read(ref) == LARGE


def test_another_leader_is_found_where_the_first_one_is_gone(door: Door) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        gone = f"http://127.0.0.1:{closed.getsockname()[1]}"
    places = iter([Place(), Place(http_url=gone), Place(http_url=gone)])
    store = BlobStore(lambda: next(places, Place(http_url=door.url, token="nf_owner")))
    assert not store.is_here()
    assert door.blobs.get(store.write(LARGE, OWN).name) == LARGE


def test_nobody_who_answers_ends_the_search_with_a_reason(door: Door) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        gone = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(OSError, match=rf"from {gone} within 2 s: .*refused"):
        BlobStore(lambda: Place(http_url=gone)).write(LARGE, OWN)


def test_a_container_that_the_next_leader_does_not_know_yet_asks_again(door: Door) -> None:
    tokens = iter(["nf_unknown", "nf_unknown", "nf_unknown"])
    place = lambda: Place(http_url=door.url, token=next(tokens, "nf_container"))  # noqa: E731
    assert BlobStore(place, joins=True).write(LARGE, OWN).size == len(LARGE)


def test_a_store_that_hangs_holds_up_nobody_else_and_is_told_of(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = door.store().write(LARGE, OWN)
    monkeypatch.setattr(blob_desk, "ANSWER_S", 0.2)
    door.blobs.goes_on.clear()
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(door.ask("GET", f"/v1/blobs/{ref.name}")))
        for _ in range(2 * blob_desk.MAX_TRANSFERS)
    ]
    for thread in threads:
        thread.start()
    assert door.ask("GET", "/healthz")[0] == 200
    for thread in threads:
        thread.join(WAIT_S)
    assert {status for status, _ in answers} == {503}
    assert all(b"has not answered" in body for _, body in answers)
    path = f"/v1/blobs/{payload_name(OWN)}?sha256={digest_of(LARGE)}"
    assert door.ask("PUT", path, LARGE)[0] == 503
    assert door.ask("GET", "/healthz")[0] == 200


def test_of_an_upload_that_the_store_does_not_take_little_is_read(door: Door) -> None:
    door.blobs.goes_on.clear()
    taken = threading.Event()

    class Slow:
        def write(self, data: bytes) -> None:
            taken.set()
            assert door.blobs.goes_on.wait(WAIT_S)

    class Writing:
        def __enter__(self) -> Slow:
            return Slow()

        def __exit__(self, *_: object) -> None: ...

    door.blobs.writing = lambda name: Writing()  # type: ignore[assignment,method-assign]
    sock = socket.create_connection(("127.0.0.1", door.port), WAIT_S)
    size = 256 << 20
    try:
        head = f"PUT /v1/blobs/{payload_name(OWN)}?sha256={'0' * 64} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n"
        sock.sendall(f"{head}Authorization: Bearer nf_owner\r\n\r\n".encode())
        sock.settimeout(1.0)
        sent = sent_until_full(sock, size)
        assert taken.wait(WAIT_S)
        assert sent < 64 << 20
    finally:
        sock.close()


def sent_until_full(sock: socket.socket, size: int) -> int:
    """How many bytes the other side took until it took no more for a second."""
    sent = 0
    try:
        while sent < size:
            sent += sock.send(bytes(1 << 20))
    except TimeoutError:
        pass
    return sent
