"""Web functions on a cluster: the leader's gateway answers, a standby says that it does not lead, and takes over."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest
from cluster_world import ClusterWorld
from consul_server import free_ports
from world import NOMADFN, eventually

pytestmark = [pytest.mark.consul, pytest.mark.timeout(240)]

PROGRAM = """
    import os

    import nomadfn

    app = nomadfn.App("site")

    @app.function(max_containers=1)
    @nomadfn.concurrent(max_inputs=5)
    @nomadfn.asgi_app()
    def api():
        async def web(scope, receive, send):
            size = 0
            while (message := await receive())["type"] == "http.request":
                size += len(message["body"])
                if not message["more_body"]:
                    break
            text = f"{os.getpid()} {size}".encode()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": text})

        return web
"""


@pytest.fixture
def ports(any_world: ClusterWorld, tmp_path: Path) -> list[int]:
    """Of the gateways of a leader and a standby, with an app deployed."""
    found = free_ports(2)
    any_world.write("site.py", PROGRAM)
    for place, port in enumerate(found):
        any_world.controls.append(any_world.start(NOMADFN, "control", NOMADFN_WEB_PORT=str(port)))
        if place == 0:
            any_world.led()
    standby = any_world.controls[1]
    eventually(lambda: "standing by at " in standby.out, standby)
    any_world.nomadfn("deploy", "site.py", timeout_s=90).ok()
    return found


def test_the_next_leader_answers_with_the_same_containers(any_world: ClusterWorld, ports: list[int]) -> None:
    listed = any_world.nomadfn("function", "list", "--json").ok().json
    assert [one["web_url"] for one in listed] == [f"http://127.0.0.1:{ports[0]}/site/api"]
    leading, standing = (f"http://127.0.0.1:{port}" for port in ports)
    with httpx.Client(timeout=60, trust_env=False) as client:
        first = client.post(f"{leading}/site/api", content=bytes(3_000_000))
        assert (first.status_code, first.text.split()[1]) == (200, "3000000")
        assert client.get(f"{leading}/-/healthz").status_code == 200
        refused = client.get(f"{standing}/site/api")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert client.get(f"{standing}/-/healthz").status_code == 503

        any_world.controls[0].process.send_signal(signal.SIGKILL)
        eventually(lambda: client.get(f"{standing}/-/healthz").status_code == 200, "the standby leads", 90)
        second = client.get(f"{standing}/site/api")
        assert (second.status_code, second.text.split()[0]) == (200, first.text.split()[0])
        listed = any_world.nomadfn("function", "list", "--json").ok().json
        assert listed[0]["web_url"] == f"{standing}/site/api"
