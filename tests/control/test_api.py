"""The HTTP API over a real socket, with a service that answers from a table."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from nomadfn_agent import wire
from nomadfn_agent.wire import payload

from nomadfn import exception
from nomadfn.adapters.memory import MemoryBlobs
from nomadfn.control import api, http_server
from nomadfn.control.blob_desk import BlobDesk
from nomadfn.core.limits import Limits
from nomadfn.core.state import State

TOKEN = "nf_" + "t" * 43
CALL = "/v1/apps/shop/functions/f/call"


class TableService:
    """Answers each operation with what the test put there, and keeps what it was asked."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.fault = ""
        self.cancelled = threading.Event()
        self.waiting = threading.Event()
        self.log_closed = threading.Event()

    def identify(self, bearer: str | None) -> str:
        if bearer is None:
            raise exception.AuthError("there was no token; set NOMADFN_TOKEN")
        if bearer != TOKEN:
            raise exception.AuthError("the token is not known here")
        return "the holder"

    async def perform(self, operation: str, body: dict[str, Any], identity: str) -> Any:
        assert identity == "the holder"
        self.asked.append((operation, body))
        answer = self.answers.get(operation, {})
        if answer == "wait":
            self.waiting.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def trouble(self) -> str:
        return self.fault

    async def metrics(self, bearer: str | None) -> bytes:
        self.identify(bearer)
        return b"nomadfn_leader 1.0\n"

    async def follow_logs(self, app: str, tail: int) -> AsyncGenerator[dict[str, Any]]:
        try:
            number = 0
            while True:
                yield {"container": "ct-1", "function": "f", "index": 3, "stream": 1, "text": f"line {number}"}
                number += 1
                await asyncio.sleep(0.01)
        finally:
            self.log_closed.set()


class Client:
    def __init__(self, port: int) -> None:
        self.port = port

    def ask(
        self, method: str, path: str, body: Any = None, token: str | None = TOKEN
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            data = body if isinstance(body, bytes | None) else json.dumps(body)
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            text = response.read()
            is_json = response.headers.get_content_type() == "application/json"
            return response.status, json.loads(text) if is_json else text.decode(), response.headers
        finally:
            connection.close()

    def error(self, method: str, path: str, body: Any = None, token: str | None = TOKEN) -> tuple[int, str, str]:
        status, content, _ = self.ask(method, path, body, token)
        return status, content["error"]["kind"], content["error"]["message"]


class RunningApi:
    """The API on a free port, in a thread with a loop of its own."""

    def __init__(self) -> None:
        self.service = TableService()
        self.blobs = MemoryBlobs()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self._running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))
        self._thread.start()
        self._loop, self._stop = self._running.result(timeout=20)

    async def _serve(self) -> None:
        desk = BlobDesk(self.blobs, State(Limits()))
        app = api.create_api(self.service, desk, max_body_bytes=4096)
        server = await api.serve_api(app, self.listener)
        stop = asyncio.Event()
        self._running.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()
        await server.close()
        desk.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def running() -> Iterator[RunningApi]:
    one = RunningApi()
    yield one
    one.close()


@pytest.fixture
def service(running: RunningApi) -> TableService:
    running.service.reset()
    return running.service


@pytest.fixture
def client(running: RunningApi, service: TableService) -> Client:
    return Client(running.port)


def outcome(status: int, data: bytes, codec: int = wire.JSON) -> dict[str, Any]:
    return {"call": "fc-1", "status": status, "payload": data, "codec": codec}


def test_only_the_health_check_needs_no_token(client: Client) -> None:
    assert client.ask("GET", "/healthz", token=None)[:2] == (200, {"status": "ok", "role": "leader"})
    status, content, headers = client.ask("GET", "/v1/status", token=None)
    assert (status, content["error"]["kind"], headers["WWW-Authenticate"]) == (401, "AuthError", "Bearer")
    assert client.error("GET", "/v1/status", token="nf_wrong")[0] == 401
    assert client.error("GET", "/no/such/path", token=None)[0] == 401


def test_a_service_that_cannot_do_its_work_says_so_to_a_health_check(client: Client, service: TableService) -> None:
    service.fault = "the journal has been waiting for a write for 9 s"
    status, content, _ = client.ask("GET", "/healthz", token=None)
    assert status == 503
    assert content == {"status": "failing", "role": "leader", "reason": service.fault}


def test_metrics_are_a_page_of_text_for_who_holds_a_token(client: Client) -> None:
    status, page, headers = client.ask("GET", "/metrics")
    assert (status, page) == (200, "nomadfn_leader 1.0\n")
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert client.ask("GET", "/metrics", token=None)[0] == 401


def test_reading_routes_pass_on_what_the_operation_gave(client: Client, service: TableService) -> None:
    service.answers |= {"status": {"pid": 7}, "app.list": [{"name": "shop"}], "function.explain": {"wanted": 2}}
    assert client.ask("GET", "/v1/status")[1] == {"pid": 7}
    assert client.ask("GET", "/v1/apps")[1] == {"apps": [{"name": "shop"}]}
    client.ask("GET", "/v1/functions?app=shop")
    assert client.ask("GET", "/v1/apps/shop/functions/f")[1] == {"wanted": 2}
    client.ask("POST", "/v1/apps/my%20shop/stop")
    client.ask("GET", "/v1/calls/fc-1")
    client.ask("POST", "/v1/calls/fc-1/cancel", {"terminate_containers": True})
    assert service.asked == [
        ("status", {}),
        ("app.list", {}),
        ("function.list", {"app": "shop"}),
        ("function.explain", {"app": "shop", "name": "f"}),
        ("app.stop", {"app_id": "my shop"}),
        ("call.info", {"call": "fc-1"}),
        ("call.cancel", {"call": "fc-1", "terminate_containers": True}),
    ]


def test_a_call_hands_over_its_json_and_gets_the_result_untouched(client: Client, service: TableService) -> None:
    service.answers["call.json"] = outcome(wire.OK, b'{"sum": 3, "text": "\\u00e9"}')
    assert client.ask("POST", CALL, {"args": [1], "kwargs": {"y": 2}})[:2] == (200, {"result": {"sum": 3, "text": "é"}})
    operation, body = service.asked[0]
    assert operation == "call.json"
    assert json.loads(body.pop("payload")) == {"args": [1], "kwargs": {"y": 2}}
    assert body == {"app": "shop", "name": "f", "wait_s": 60.0, "deadline_s": None, "priority": 0}


def test_a_call_may_have_a_deadline_and_a_priority(client: Client, service: TableService) -> None:
    service.answers["call.json"] = outcome(wire.OK, b"1")
    assert client.ask("POST", CALL, {"deadline": 2.5, "priority": -3})[0] == 200
    assert (service.asked[0][1]["deadline_s"], service.asked[0][1]["priority"]) == (2.5, -3)


def test_a_call_without_a_body_has_no_arguments(client: Client, service: TableService) -> None:
    service.answers["call.json"] = outcome(wire.OK, b"null")
    assert client.ask("POST", CALL)[:2] == (200, {"result": None})
    assert json.loads(service.asked[0][1]["payload"]) == {"args": [], "kwargs": {}}


def test_a_call_that_takes_longer_than_the_wait_is_a_call_to_ask_for(client: Client, service: TableService) -> None:
    service.answers["call.json"] = {"call": "fc-9", "pending": True}
    status, content, headers = client.ask("POST", f"{CALL}?wait_s=0.5", {})
    assert (status, content) == (202, {"call": "fc-9", "pending": True})
    assert headers["Location"] == "/v1/calls/fc-9/result"
    assert service.asked[0][1]["wait_s"] == 0.5


def test_a_function_that_raised_is_an_error_with_its_own_name_and_traceback(
    client: Client, service: TableService
) -> None:
    raised = payload.Raised(
        b"\x80 never read", "ValueError", "no such colour", "Traceback …\nValueError: no such colour"
    )
    service.answers["call.json"] = outcome(wire.EXCEPTION, payload.encode(raised))
    status, content, _ = client.ask("POST", CALL, {})
    assert status == 500
    assert content["error"] == {"kind": "ValueError", "message": "no such colour", "traceback": raised.traceback}


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("FunctionTimeoutError", 504),
        ("InternalFailure", 500),
        ("ExecutionError", 500),
        ("RequestSizeError", 413),
        ("ServiceError", 503),
        ("InputCancellation", 500),
        ("NoSuchClass", 500),
    ],
)
def test_a_failure_has_the_status_of_its_class(client: Client, service: TableService, kind: str, status: int) -> None:
    service.answers["call.json"] = outcome(wire.FAILURE, payload.encode(payload.Failure(kind, "what happened")))
    assert client.error("POST", CALL, {}) == (status, kind, "what happened")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (exception.InvalidError("m"), 400),
        (exception.PermissionDeniedError("m"), 403),
        (exception.NotFoundError("m"), 404),
        (exception.OutputExpiredError("m"), 404),
        (exception.ConflictError("m"), 409),
        (exception.ServiceError("m"), 503),
        (exception.FunctionTimeoutError("m"), 504),
        (exception.InternalError("m"), 500),
    ],
)
def test_each_error_of_the_service_has_its_status(
    client: Client, service: TableService, error: exception.Error, status: int
) -> None:
    service.answers["status"] = error
    assert client.error("GET", "/v1/status") == (status, type(error).__name__, "m")


def test_over_a_limit_the_answer_says_when_to_try_again(client: Client, service: TableService) -> None:
    service.answers["call.json"] = exception.ResourceExhaustedError("full", retry_after_s=2.2)
    status, content, headers = client.ask("POST", CALL, {})
    assert (status, content["error"]["kind"], headers["Retry-After"]) == (429, "ResourceExhaustedError", "3")


def test_a_fault_of_ours_shows_nothing_of_itself(
    client: Client, service: TableService, caplog: pytest.LogCaptureFixture
) -> None:
    service.answers["status"] = RuntimeError("the secret inside")
    status, content, _ = client.ask("GET", "/v1/status")
    assert (status, content["error"]["kind"]) == (500, "InternalError")
    assert "secret" not in json.dumps(content)
    deadline = time.monotonic() + 20
    while "the secret inside" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "the secret inside" in caplog.text


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b'{"args": [1,]}', "line 1 column"),
        (b"[1, 2]", "must be a JSON object, not list"),
        (b'{"arg": [1]}', 'unknown key "arg"'),
        (b'{"args": 1}', '"args" must be a list'),
        (b'{"kwargs": []}', '"kwargs" an object'),
        (b'{"deadline": 0}', '"deadline" must be a number of seconds'),
        (b'{"deadline": "3"}', '"deadline" must be a number of seconds'),
        (b'{"priority": 1.5}', "-100 to 100"),
        (b'{"priority": 200}', "-100 to 100"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 4000, "not valid JSON"),
    ],
)
def test_a_bad_body_is_refused_with_the_place(client: Client, service: TableService, body: bytes, part: str) -> None:
    status, kind, message = client.error("POST", CALL, body)
    assert (status, kind) == (400, "InvalidError")
    assert part in message
    assert service.asked == []


def test_a_body_over_the_limit_is_not_read(client: Client, service: TableService) -> None:
    status, kind, message = client.error("POST", CALL, {"args": ["x" * 5000]})
    assert (status, kind) == (413, "RequestSizeError")
    assert "4,096" in message
    assert service.asked == []


def test_a_body_over_the_limit_is_refused_without_a_length_too(client: Client, service: TableService) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    headers = {"Authorization": f"Bearer {TOKEN}", "Transfer-Encoding": "chunked"}
    connection.request("POST", CALL, iter([b"x" * 1000] * 8), headers, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413
    response.close()
    connection.close()


def test_wrong_paths_methods_and_queries_are_json_errors_too(client: Client) -> None:
    assert client.error("GET", "/nothing")[:2] == (404, "NotFoundError")
    status, kind, message = client.error("GET", CALL)
    assert (status, kind) == (405, "InvalidError")
    assert "POST" in message
    assert "wait_s" in client.error("POST", f"{CALL}?wait_s=soon", {})[2]
    assert "wait_s" in client.error("POST", f"{CALL}?wait_s=nan", {})[2]
    assert "index" in client.error("GET", "/v1/calls/fc-1/result?index=-1")[2]
    assert "follow" in client.error("GET", "/v1/apps/shop/logs?follow=perhaps")[2]


def test_a_spawn_is_answered_with_where_its_result_will_be(client: Client, service: TableService) -> None:
    service.answers["call.spawn_json"] = {"call": "fc-5"}
    status, content, headers = client.ask("POST", "/v1/apps/shop/functions/f/spawn", {"args": [1]})
    assert (status, content, headers["Location"]) == (202, {"call": "fc-5"}, "/v1/calls/fc-5/result")


def test_a_result_is_there_not_yet_there_or_of_no_input(client: Client, service: TableService) -> None:
    found: dict[str, Any] = {"indexes": [], "statuses": [], "payloads": [], "codec": 1, "num_inputs": 1, "closed": True}
    service.answers["call.outputs"] = found
    assert client.ask("GET", "/v1/calls/fc-1/result")[0] == 202
    assert client.error("GET", "/v1/calls/fc-1/result?index=1")[0] == 404
    service.answers["call.outputs"] = found | {"indexes": [0], "statuses": [wire.OK], "payloads": [b"[1]"]}
    assert client.ask("GET", "/v1/calls/fc-1/result?wait_s=3")[:2] == (200, {"result": [1]})
    assert service.asked[-1] == ("call.outputs", {"call": "fc-1", "first": 0, "count": 1, "wait_s": 3.0})


def test_a_pickled_result_is_not_touched(client: Client, service: TableService) -> None:
    service.answers["call.outputs"] = {
        "indexes": [0],
        "statuses": [wire.OK],
        "payloads": [b"\x80\x05."],
        "codec": wire.PICKLE,
        "num_inputs": 1,
        "closed": True,
    }
    status, kind, message = client.error("GET", "/v1/calls/fc-1/result")
    assert (status, kind) == (400, "InvalidError")
    assert "FunctionCall.from_id" in message


def test_a_large_result_is_streamed_from_its_blob(client: Client, service: TableService, running: RunningApi) -> None:
    data = json.dumps("x" * 3_000_000).encode()
    running.blobs.put("large", data)
    ref = payload.BlobRef("large", payload.digest_of(data), len(data))
    service.answers["call.json"] = outcome(wire.OK + wire.REF, payload.encode(ref))
    assert client.ask("POST", CALL, {})[:2] == (200, {"result": "x" * 3_000_000})
    running.blobs.delete("large")
    assert client.error("POST", CALL, {})[:2] == (404, "OutputExpiredError")


def test_scaling_passes_on_what_is_named_and_refuses_the_rest(client: Client, service: TableService) -> None:
    service.answers["function.lookup"] = {"function_id": "ap-1/f"}
    path = "/v1/apps/shop/functions/f/autoscaler"
    assert client.ask("PATCH", path, {"max_containers": None, "scaledown_window": 5})[0] == 200
    assert service.asked[-1] == (
        "function.scale",
        {"function_id": "ap-1/f", "max_containers": None, "scaledown_window_s": 5},
    )
    assert "keep_warm" in client.error("PATCH", path, {"keep_warm": 1})[2]
    assert "min_containers" in client.error("PATCH", path, {"min_containers": "two"})[2]
    assert "nothing to change" in client.error("PATCH", path, {})[2]


def test_logs_are_lines_of_text_or_of_json(client: Client, service: TableService) -> None:
    line = {"container": "ct-1", "function": "f", "index": 3, "stream": 2, "text": "careful\n"}
    service.answers["app.logs"] = {"lines": [line]}
    assert client.ask("GET", "/v1/apps/shop/logs?tail=7")[1] == "f#3 │ careful\n"
    assert service.asked[-1] == ("app.logs", {"app": "shop", "tail": 7})
    assert json.loads(client.ask("GET", "/v1/apps/shop/logs?format=json")[1]) == line


def test_followed_logs_stream_until_the_client_goes(client: Client, service: TableService) -> None:
    service.answers["app.logs"] = {"lines": []}
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    connection.request("GET", "/v1/apps/shop/logs?follow=1", headers={"Authorization": f"Bearer {TOKEN}"})
    response = connection.getresponse()
    assert [response.readline() for _ in range(3)] == [f"f#3 │ line {n}\n".encode() for n in range(3)]
    response.close()
    connection.close()
    assert service.log_closed.wait(timeout=20)


def test_logs_of_an_app_that_does_not_exist_are_an_error_before_any_line(client: Client, service: TableService) -> None:
    service.answers["app.logs"] = exception.NotFoundError("no app shop")
    assert client.error("GET", "/v1/apps/shop/logs?follow=1")[0] == 404


def test_a_client_that_hangs_up_ends_the_wait_for_its_call(client: Client, service: TableService) -> None:
    service.answers["call.json"] = "wait"
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    connection.request("POST", CALL, b"{}", {"Authorization": f"Bearer {TOKEN}"})
    assert service.waiting.wait(timeout=20)
    connection.close()
    assert service.cancelled.wait(timeout=20)


def test_a_client_that_never_ends_its_headers_is_closed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEADER_TIMEOUT_S", 0.05)
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        assert slow.recv(100) == b""


def test_a_body_that_does_not_come_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BODY_TIMEOUT_S", 0.05)
    head = f"POST {CALL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n"
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as slow:
        slow.sendall(head.encode() + b'{"args"')
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_the_signal_handlers_of_the_process_are_left_alone(service: TableService) -> None:
    async def serve() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        server = await api.serve_api(api.create_api(service, BlobDesk(MemoryBlobs(), State(Limits()))), listener)
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        await server.close()

    asyncio.run(serve())
