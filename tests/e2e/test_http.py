"""The HTTP API from curl, as somebody without Python would use it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from world import World, eventually

WEB = """
    import time
    import nomadfn

    app = nomadfn.App("web")

    @app.function()
    def add(x, y=1):
        return {"sum": x + y}

    @app.function(max_containers=1)
    def nap(seconds):
        time.sleep(seconds)
        return "rested"

    @app.function()
    def fail():
        raise LookupError("nothing here")

    @app.function()
    def odd():
        return {1, 2}

    @app.function()
    def die():
        import os
        os._exit(9)

    @app.function()
    @nomadfn.asgi_app()
    def site():
        raise RuntimeError("nobody asks")
"""


class Curl:
    """Asks the service of a world by curl, with its token."""

    def __init__(self, world: World, **env: str) -> None:
        self._world = world
        self.url = world.up("--capacity", "3", **env)["http_url"]
        self._token = (world.data / "token").read_text().strip()

    def __call__(self, method: str, path: str, *words: str, data: Any = None) -> tuple[int, Any, str]:
        """The status, the JSON and the headers of an answer."""
        body = [] if data is None else ["-d", data if isinstance(data, str) else json.dumps(data)]
        command = ["curl", "-sS", "--max-time", "40", "-D", "headers", "-w", "\n%{http_code}", "-X", method]
        done = self._world.execute(
            *command, "-H", f"Authorization: Bearer {self._token}", *words, *body, self.url + path
        ).ok()
        text, code = done.out.rsplit("\n", 1)
        return int(code), json.loads(text), (self._world.folder / "headers").read_text().lower()

    def error(self, code: int, kind: str, method: str, path: str, *words: str, data: Any = None) -> dict[str, Any]:
        """The error that an answer tells, which has to be this one."""
        status, body, _ = self(method, path, *words, data=data)
        assert (status, body["error"]["kind"]) == (code, kind), body
        assert body["error"]["message"], "and says what happened"
        error: dict[str, Any] = body["error"]
        return error


@pytest.fixture
def curl(world: World) -> Curl:
    world.write("web.py", WEB)
    made = Curl(world)
    world.deploy("web.py")
    return made


def test_a_function_is_called_with_json(world: World, curl: Curl) -> None:
    route = "/v1/apps/web/functions/add/call"
    assert curl("POST", route, data={"args": [1, 2]})[:2] == (200, {"result": {"sum": 3}})
    assert curl("POST", route, data={"kwargs": {"x": 5}})[:2] == (200, {"result": {"sum": 6}})
    assert curl("POST", route, data={"args": ["a", "ü"]})[:2] == (200, {"result": {"sum": "aü"}})
    curl.error(500, "TypeError", "POST", route, data="{}")
    big = "x" * 400_000
    (world.folder / "big.json").write_text(json.dumps({"args": [big, big]}))
    assert curl("POST", route, "--data-binary", "@big.json")[:2] == (200, {"result": {"sum": big + big}})


def test_every_mistake_has_its_status_and_says_what_it_is(world: World, curl: Curl) -> None:
    route = "/v1/apps/web/functions"
    assert "add" in curl.error(404, "NotFoundError", "POST", f"{route}/ad/call", data={})["message"]
    assert "web" in curl.error(404, "NotFoundError", "POST", "/v1/apps/wob/functions/add/call", data={})["message"]
    for verb in ("call", "spawn"):
        told = curl.error(400, "InvalidError", "POST", f"{route}/site/{verb}", data={})["message"]
        assert "site is a web function and takes HTTP requests only; send them to http://" in told
    curl.error(404, "NotFoundError", "GET", f"/v1/calls/fc-{int(time.time()):08x}{0:024}")
    curl.error(404, "NotFoundError", "GET", "/v1/nothing")
    curl.error(405, "InvalidError", "GET", f"{route}/add/call")
    for body in ("{", "[]", '{"args": 3}', '{"args": [], "kwargs": []}', '{"arg": [1]}'):
        curl.error(400, "InvalidError", "POST", f"{route}/add/call", data=body)
    (world.folder / "huge.json").write_text(json.dumps({"args": ["x" * 2_000_000, ""]}))
    curl.error(413, "RequestSizeError", "POST", f"{route}/add/call", "--data-binary", "@huge.json")


def test_what_a_function_raises_is_an_error_with_the_users_frames(curl: Curl) -> None:
    error = curl.error(500, "LookupError", "POST", "/v1/apps/web/functions/fail/call", data={})
    assert error["message"] == "nothing here"
    assert 'web.py", line' in error["traceback"]
    assert "nomadfn_agent" not in error["traceback"]
    curl.error(500, "SerializationError", "POST", "/v1/apps/web/functions/odd/call", data={})
    error = curl.error(500, "InternalFailure", "POST", "/v1/apps/web/functions/die/call", data={})
    assert "exit code 9" in error["message"]


def test_a_spawned_call_is_asked_for_until_it_is_done(curl: Curl) -> None:
    status, body, _ = curl("POST", "/v1/apps/web/functions/nap/spawn", data={"args": [0.5]})
    assert status == 202
    call = f"/v1/calls/{body['call']}"
    status, body, _ = curl("GET", f"{call}/result?wait_s=0")
    assert body.get("pending") is True, body
    assert curl("GET", f"{call}/result?wait_s=30")[:2] == (200, {"result": "rested"})
    assert curl("GET", call)[1]["num_inputs"] == 1


def test_a_call_that_outlasts_the_wait_goes_on_and_can_be_cancelled(curl: Curl) -> None:
    status, body, _ = curl("POST", "/v1/apps/web/functions/nap/call?wait_s=0", data={"args": [600]})
    assert (status, body["pending"]) == (202, True)
    call = f"/v1/calls/{body['call']}"
    assert curl("POST", f"{call}/cancel", data={"terminate_containers": True})[:2] == (200, {"cancelled": 1})
    status, body, _ = curl("GET", f"{call}/result?wait_s=30")
    assert body["error"]["kind"] == "InputCancellation", body


def test_over_a_limit_the_answer_says_when_to_come_again(world: World) -> None:
    world.write("web.py", WEB)
    world.env["NOMADFN_LIMITS_PENDING_SPAWNS"] = "3"
    curl = Curl(world)
    world.deploy("web.py")
    spawn = ("POST", "/v1/apps/web/functions/nap/spawn")
    eventually(lambda: curl(*spawn, data={"args": [600]})[0] == 429, "the limit is reached")
    status, body, headers = curl(*spawn, data={"args": [600]})
    assert (status, body["error"]["kind"]) == (429, "ResourceExhaustedError"), body
    assert "limits.pending_spawns" in body["error"]["message"]
    assert "\nretry-after: " in headers


def test_prometheus_reads_what_became_of_the_inputs(world: World) -> None:
    world.write("web.py", WEB)
    scraper = f"nf_{'m' * 43}"
    curl = Curl(world, NOMADFN_METRICS_TOKEN=scraper)
    world.deploy("web.py")
    assert curl("POST", "/v1/apps/web/functions/add/call", data={"args": [2]})[0] == 200
    assert curl("POST", "/v1/apps/web/functions/fail/call")[0] == 500
    assert curl("POST", "/v1/apps/web/functions/add/spawn", data={"args": [3]})[0] == 202
    page = world.execute("curl", "-sf", f"{curl.url}/metrics", "-H", f"Authorization: Bearer {scraper}").ok().out
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    finished = "nomadfn_inputs_finished_total"
    assert values[finished, ("app", "web"), ("function", "fail"), ("outcome", "failed")] == 1
    assert values[finished, ("app", "web"), ("function", "add"), ("outcome", "succeeded")] >= 1
    assert values["nomadfn_journal_append_seconds_count",] >= 1
    assert values["nomadfn_leader",] == 1
    assert world.execute("curl", "-s", f"{curl.url}/metrics").out.count("AuthError") == 1
    refused = world.execute("curl", "-s", f"{curl.url}/v1/status", "-H", f"Authorization: Bearer {scraper}")
    assert refused.out.count("AuthError") == 1
