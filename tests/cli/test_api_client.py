from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nomadfn import exception
from nomadfn.cli import api_client
from nomadfn.cli.api_client import ApiClient, FunctionError, path
from nomadfn.sdk.leader import Leader
from nomadfn.sdk.service import ServiceHandle


@contextmanager
def answering(answer: bytes) -> Iterator[ApiClient]:
    """A server that gives one answer to whatever it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield ApiClient(f"http://127.0.0.1:{listener.getsockname()[1]}", "nf_token")
        thread.join(timeout=20)


def http(status: str, body: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", body]
    return "\r\n".join(lines).encode()


def test_an_error_of_the_service_is_raised_as_its_class() -> None:
    body = '{"error": {"kind": "NotFoundError", "message": "no app shop"}}'
    with answering(http("404 Not Found", body)) as client, pytest.raises(exception.NotFoundError, match="no app shop"):
        client.ask("GET", "/v1/apps")


def test_over_a_limit_it_says_when_to_try_again() -> None:
    body = '{"error": {"kind": "ResourceExhaustedError", "message": "full"}}'
    with (
        answering(http("429 Too Many Requests", body, "Retry-After: 7")) as client,
        pytest.raises(exception.ResourceExhaustedError) as caught,
    ):
        client.ask("GET", "/v1/apps")
    assert caught.value.retry_after_s == 7


def test_what_a_function_raised_keeps_its_traceback() -> None:
    body = '{"error": {"kind": "KeyError", "message": "x", "traceback": "Traceback: here"}}'
    with answering(http("500 Error", body)) as client, pytest.raises(FunctionError, match="KeyError: x") as caught:
        client.ask("POST", "/v1/x", {})
    assert caught.value.traceback == "Traceback: here"


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (http("200 OK", "<html>"), "without JSON"),
        (http("500 Error", "[1]"), "without saying why"),
        (http("500 Error", '{"error": {"kind": "annotations", "message": "m"}}'), "annotations: m"),
        (b"not http at all\r\n\r\n", "does not answer"),
        (b"", "does not answer"),
    ],
)
def test_whatever_else_answers_is_a_service_error(answer: bytes, part: str) -> None:
    with answering(answer) as client, pytest.raises(exception.ServiceError, match=part):
        client.ask("GET", "/v1/status")


def test_nobody_there_is_a_service_error_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(exception.ServiceError, match="nomadfn up"):
        ApiClient(url, "").ask("GET", "/v1/status")


def test_paths_are_quoted_and_what_is_none_is_left_out() -> None:
    assert path("apps", "a/b c", "logs", tail=3, follow=None) == "/v1/apps/a%2Fb%20c/logs?tail=3"
    assert path("functions", app=None) == "/v1/functions"


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def handle_of(url: str, leaders: list[Leader | None]) -> tuple[ServiceHandle, list[str]]:
    """Of a cluster whose next looks for the leader find these; and what was said to be lost each time."""
    lost: list[str] = []

    def locate(data_url: str) -> Leader | None:
        lost.append(data_url)
        return leaders.pop(0) if leaders else None

    return ServiceHandle("ws://old", url, "nf_token", False, None, "the cluster", locate=locate), lost


def test_a_command_waits_for_the_control_service_that_takes_over() -> None:
    with answering(http("200 OK", '{"pid": 7}')) as next_one:
        gone = f"http://127.0.0.1:{closed_port()}"
        handle, lost = handle_of(gone, [None, Leader(next_one.url, "ws://new")])
        assert ApiClient(gone, "nf_token", handle).ask("GET", "/v1/status") == {"pid": 7}
        assert lost == ["ws://old", "ws://old"]


def test_where_nobody_takes_over_a_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_client, "TAKEOVER_S", 0.0)
    monkeypatch.setattr(api_client, "PAUSE_S", 0.0)
    gone = f"http://127.0.0.1:{closed_port()}"
    handle, _ = handle_of(gone, [])
    with pytest.raises(exception.ServiceError, match="does not answer"):
        ApiClient(gone, "nf_token", handle).ask("GET", "/v1/status")
