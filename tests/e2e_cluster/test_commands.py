"""The commands for a cluster, on a real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_world import ClusterWorld, made_in
from consul_server import ConsulServer
from real_nomad import RealNomad
from world import eventually

pytestmark = [pytest.mark.nomad, pytest.mark.consul, pytest.mark.timeout(300)]

PROGRAM = """
    import nomadfn

    app = nomadfn.App("tools")

    @app.function(max_containers=2, scaledown_window=2)
    def greet(name):
        return "hello " + name

    @app.function(gpu="L40S")
    def embed(text):
        return text
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, nomad: RealNomad, consul: ConsulServer) -> Iterator[ClusterWorld]:
    """One led cluster for all tests of this file."""
    with made_in(tmp_path_factory.mktemp("commands"), nomad, consul) as world:
        world.start_control()
        world.led()
        world.write("tools.py", PROGRAM)
        yield world


def test_what_render_prints_is_what_deploy_registers(cluster: ClusterWorld) -> None:
    text = cluster.nomadfn("render", "tools.py").ok().out
    assert 'job "nomadfn-function"' in text
    jobs = cluster.nomadfn("render", "tools.py", "--json").ok().json
    assert "nothing changes" not in cluster.nomadfn("plan", "tools.py").ok().out
    cluster.nomadfn("deploy", "tools.py", timeout_s=120).ok()
    registered = {job["ID"] for job in cluster.api().jobs(f"{cluster.name}-fn-tools-")}
    assert {job["ID"] for job in jobs.values()} <= registered
    assert cluster.nomadfn("plan", "tools.py").ok().out.count("nothing changes") == 2


def test_a_dry_run_says_what_has_room_and_what_is_missing(cluster: ClusterWorld) -> None:
    done = cluster.nomadfn("deploy", "--dry-run", "tools.py").ok()
    assert "greet: room for all 2 containers" in done.out
    assert "embed: no room now: embed wants 1 × L40S; no node has one" in done.out
    assert "nothing is deployed" in done.err


def test_a_gpu_that_no_node_has_is_told_to_who_waits_for_it(cluster: ClusterWorld) -> None:
    done = cluster.nomadfn("deploy", "tools.py", timeout_s=120).ok()
    assert "embed wants 1 × L40S; no node has one" in done.err
    call = cluster.start("nomadfn", "function", "call", "tools", "embed", '"x"')
    eventually(lambda: "embed waits: embed wants 1 × L40S; no node has one" in call.err, call)
    eventually(
        lambda: "embed wants 1 × L40S" in cluster.explain("tools", "embed")["blocked"], "why it waits is explained"
    )
    call.process.kill()
    cluster.nomadfn("app", "stop", "tools", timeout_s=60).ok()


def test_an_app_goes_back_to_what_it_was(cluster: ClusterWorld) -> None:
    cluster.write("back.py", PROGRAM.replace("tools", "back").replace('@app.function(gpu="L40S")', "@app.function()"))
    cluster.nomadfn("deploy", "back.py", timeout_s=120).ok()
    cluster.write("back.py", (cluster.folder / "back.py").read_text().replace("hello ", "goodbye "))
    cluster.nomadfn("deploy", "back.py", timeout_s=120).ok()
    call = ("function", "call", "back", "greet", "you")
    assert "goodbye you" in cluster.nomadfn(*call, timeout_s=60).ok().out
    versions = cluster.nomadfn("app", "history", "back", "--json").ok().json["versions"]
    assert [one["version"] for one in versions] == [2, 1]
    assert "version 1 again" in cluster.nomadfn("app", "rollback", "back").ok().out
    assert "hello you" in cluster.nomadfn(*call, timeout_s=60).ok().out
    cluster.nomadfn("app", "stop", "back", timeout_s=60).ok()
    eventually(lambda: not cluster.api().jobs(f"{cluster.name}-fn-back-"), "the app's jobs are gone")


def test_a_setting_that_is_put_into_consul_holds_at_once(cluster: ClusterWorld) -> None:
    cluster.write("kept.py", PROGRAM.replace("tools", "kept"))
    cluster.nomadfn("deploy", "kept.py", timeout_s=120).ok()
    client = cluster.consul.client()
    key = f"nomadfn/{cluster.name}/overrides/kept/greet"
    client.kv.put(key, json.dumps({"min_containers": 1}))
    eventually(lambda: cluster.explain("kept", "greet")["settings"]["min_containers"] == 1, "the override holds")
    eventually(lambda: cluster.explain("kept", "greet")["containers"], "a container is there", 60)
    client.kv.delete(key)
    eventually(lambda: cluster.explain("kept", "greet")["settings"]["min_containers"] == 0, "it holds no more")
    client.http.session.close()
    cluster.nomadfn("app", "stop", "kept", timeout_s=60).ok()


def test_the_doctor_looks_at_every_part(cluster: ClusterWorld, tmp_path: Path) -> None:
    findings = {one["part"]: one for one in cluster.nomadfn("doctor", "--json", timeout_s=120).ok().json}
    assert {
        "token",
        "Consul",
        "Consul rights",
        "Nomad",
        "Nomad rights",
        "kill_timeout",
        "driver",
        "Python",
        "secrets",
    } <= set(findings)
    assert all(one["ok"] is not False for one in findings.values()), findings
    assert findings["control service"]["ok"] is True
    done = cluster.nomadfn("doctor", CONSUL_HTTP_TOKEN="00000000-0000-0000-0000-000000000000", timeout_s=120)
    assert done.code == 3
    assert "CONSUL_HTTP_TOKEN" in done.out
