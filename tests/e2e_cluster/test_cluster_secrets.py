"""Environment, secrets and a function's rights over its own app, on a cluster."""

from __future__ import annotations

import json
import subprocess

import nomad
import pytest
from cluster_world import ClusterWorld
from nomad_double.server import NomadDouble
from own_app import OTHER, PROGRAM, REFUSED, SCALED_DOWN, SCALED_UP
from world import NOMADFN, WAIT_S, World, eventually

from nomadfn.adapters.consul_store import POLICY

pytestmark = [pytest.mark.consul, pytest.mark.timeout(240)]

MARK = "hunter2"
"""Stands in every value; nothing of it may be seen anywhere."""
VALUE = MARK + "'\"\\\n\r\t${HOME} %{if true}{{env}} $$ é 🎈"
KEYS = """
    import os, pathlib
    import nomadfn

    app = nomadfn.App("keys")
    ENV = {'N"a\\'m$e ${HOME} %{if} {b}\\n': pathlib.Path("value").read_bytes().decode()} if nomadfn.is_local() else {}
    SECRETS = [
        nomadfn.Secret.from_dotenv(),
        nomadfn.Secret.from_name("db", required_keys=["PASSWORD"]),
        nomadfn.Secret.from_name("nomad:team/db"),
        nomadfn.Secret.from_name("consul:nomadfn-tests/db"),
    ]

    @app.function(env=ENV, secrets=SECRETS, scaledown_window=2)
    def get(names):
        return [os.environ.get(name) for name in names]
"""
NAME = "N\"a'm$e ${HOME} %{if} {b}\n"
NAMES = [NAME, "DOTENV", "PASSWORD", "TEAM", "KEY"]


def create(world: World, name: str, *words: str, stdin: str) -> subprocess.CompletedProcess[str]:
    command = [NOMADFN, "secret", "create", name, *words]
    return subprocess.run(
        command, input=stdin, cwd=world.folder, env=world.env, capture_output=True, text=True, timeout=WAIT_S
    )


def allow_keys(world: ClusterWorld) -> None:
    """The control service's token for Consul may also read what the program names."""
    policy = POLICY + 'key "nomadfn-tests/db" { policy = "read" }\n'
    world.env["CONSUL_HTTP_TOKEN"] = world.consul.make_token(policy)


def led(world: ClusterWorld) -> None:
    world.start_control()
    world.led()


def written(world: ClusterWorld) -> None:
    """The program with all that it names, but for the secret `db`."""
    led(world)
    world.write("keys.py", KEYS)
    (world.folder / "value").write_bytes(VALUE.encode())
    world.write(".env", f"DOTENV={MARK}-file\n")
    api = world.api()
    api.put_variable("team/db", {"TEAM": f"{MARK}-team"})
    api.close()
    client = world.consul.client()
    client.kv.put("nomadfn-tests/db", json.dumps({"KEY": f"{MARK}-key"}))
    client.http.session.close()


def test_values_reach_the_function_under_every_leader_and_stand_nowhere_else(any_world: ClusterWorld) -> None:
    world = any_world
    allow_keys(world)
    written(world)
    world.nomadfn("deploy", "keys.py").refused(3, "there is no secret db", "nomad var put -namespace=default")
    assert create(world, "db", "PASSWORD=-", stdin=f"{MARK}-first\n").returncode == 0
    world.nomadfn("deploy", "keys.py", timeout_s=120).ok()
    call = ("function", "call", "keys", "get", json.dumps(NAMES))
    rest = [f"{MARK}-team", f"{MARK}-key"]
    assert world.nomadfn(*call, timeout_s=120).ok().json == [VALUE, f"{MARK}-file", f"{MARK}-first", *rest]
    assert MARK not in everything_shown(world)
    assert create(world, "db", "--force", "PASSWORD=-", stdin=f"{MARK}-second").returncode == 0
    leading = world.leading()
    leading.process.terminate()
    leading.wait()
    led(world)
    eventually(lambda: world.count() == 0, "its container has gone", 60)
    assert world.nomadfn(*call, timeout_s=120).ok().json == [VALUE, f"{MARK}-file", f"{MARK}-second", *rest]
    eventually(lambda: world.count() == 0, "its container has gone", 60)
    assert [one["name"] for one in world.nomadfn("secret", "list", "--json").ok().json] == ["db"]
    world.nomadfn("secret", "delete", "db").ok()
    world.nomadfn(*call, timeout_s=120).refused(3, "there is no secret db", "nomadfn/secrets/db")


def everything_shown(world: ClusterWorld) -> str:
    """What commands, Nomad, Consul, logs, process lists and the shared folder show of the app."""
    commands = [("render", "keys.py"), ("plan", "keys.py"), ("app", "history", "keys", "--json"), ("secret", "list")]
    shown = [world.nomadfn(*words, timeout_s=60).ok().report for words in commands]
    shown.append(json.dumps(world.explain("keys", "get")))
    api, client = world.api(), nomad.Nomad(address=world.nomad.address.url)
    for stub in api.jobs(f"{world.name}-fn-"):
        shown += [json.dumps(client.job.get_job(stub["ID"])), json.dumps(api.evaluations(stub["ID"]))]
    assert len(shown) > len(commands) + 1
    api.close()
    consul = world.consul.client()
    entries = consul.kv.get(f"nomadfn/{world.name}/", recurse=True)[1]
    consul.http.session.close()
    assert any("/versions/keys/" in one["Key"] for one in entries)
    shown += [(one["Value"] or b"").decode(errors="replace") for one in entries]
    shared = [path for path in (world.folder.parent / "blobs").rglob("*") if path.is_file()]
    assert shared
    shown += [path.read_text(errors="replace") for path in shared]
    return "\n".join([*shown, world.story(), *world.processes().values()])


def test_a_token_that_may_not_write_secrets_is_told_what_to_run(any_world: ClusterWorld) -> None:
    if not isinstance(any_world.nomad, NomadDouble):
        pytest.skip("this Nomad has no ACLs")
    led(any_world)
    any_world.nomad.state.forbidden.append("nomadfn/secrets/")
    done = create(any_world, "db", "PASSWORD=-", stdin=MARK)
    assert done.returncode == 3
    assert "nomad var put -namespace=default nomadfn/secrets/db PASSWORD=…" in done.stderr
    assert MARK not in done.stderr


def test_a_function_scales_its_own_app_and_may_do_nothing_else(any_world: ClusterWorld) -> None:
    world = any_world
    led(world)
    world.write("mine.py", PROGRAM)
    world.write("other.py", OTHER)
    world.nomadfn("deploy", "mine.py", timeout_s=120).ok()
    world.nomadfn("deploy", "other.py", timeout_s=120).ok()
    call = ("function", "call", "my-app")
    assert world.nomadfn(*call, "scale_up_for_peak", timeout_s=120).ok().json == SCALED_UP
    assert world.explain("my-app", "process")["settings"]["min_containers"] == 1
    assert world.nomadfn(*call, "scale_down_after_peak", timeout_s=120).ok().json == SCALED_DOWN
    assert world.nomadfn(*call, "overreach", timeout_s=120).ok().json == REFUSED
    world.nomadfn("deploy", "mine.py", timeout_s=120).ok()
    eventually(lambda: not world.explain("my-app", "process")["overridden"], "the next deploy reverts it")
