"""The example for a laptop, applied to dev agents with and without ACLs, used, changed and destroyed."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import real_nomad
from consul_server import consul_binary
from dev_agents import DevAgents, versions
from terraform_runs import OwnedAgents, Terraform, plugins
from world import World, eventually

pytestmark = [pytest.mark.nomad, pytest.mark.consul, pytest.mark.timeout(900)]

PROGRAM = """
    import nomadfn

    app = nomadfn.App("hello")

    @app.function()
    def square(x):
        return x * x
"""
CHANGES = """
module "nomadfn" {
  limits               = { pending_inputs = 5000 }
  environment          = { EXAMPLE = "$${x} %%{ if true }\\"quoted\\" 'é'" }
  autoscaler_overrides = { "hello/square" = { min_containers = 1, max_containers = 3, scaledown_window_s = 7 } }
}
"""
"""An override file: Terraform lays it over the module's call in the example."""


class Applied:
    """The example on agents of its own, and the folder of someone who uses it."""

    def __init__(self, work: Path, agents: DevAgents, world: World, has_workload_identity: bool) -> None:
        self.agents = agents
        self.world = world
        self.tokens = agents.tokens if isinstance(agents, OwnedAgents) else {}
        inputs = {
            "nomad_address": agents.nomad_url,
            "consul_address": agents.consul_url,
            "blobs": str(work / "blobs"),
            "python": sys.executable,
            "acl": json.dumps(bool(self.tokens)),
            "workload_identity": json.dumps(has_workload_identity),
        }
        environ = {f"TF_VAR_{name}": value for name, value in inputs.items()}
        self.terraform = Terraform.copied(work, Path("terraform/examples/laptop"), plugins(), **environ, **self.tokens)

    def use(self) -> None:
        """From now on, commands are those of someone who has nothing but the outputs."""
        outputs = self.terraform.outputs()
        self.world.write("nomadfn.toml", outputs["profile"])
        self.world.env |= {"NOMADFN_PROFILE": outputs["cluster"], "NOMADFN_TOKEN": outputs["token"]}
        if outputs.get("consul_token"):
            self.world.env["CONSUL_HTTP_TOKEN"] = outputs["consul_token"]

    def nomad(self, path: str) -> Any:
        return self._get(self.agents.nomad_url + path, "X-Nomad-Token", self.tokens.get("NOMAD_TOKEN", ""))

    def consul(self, path: str) -> Any:
        return self._get(self.agents.consul_url + path, "X-Consul-Token", self.tokens.get("CONSUL_HTTP_TOKEN", ""))

    def _get(self, url: str, header: str, token: str) -> Any:
        request = urllib.request.Request(url, headers={header: token} if token else {})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    def left(self) -> dict[str, Any]:
        """What there is in Nomad and Consul that is not there from the start."""
        found = {
            "jobs": [one["ID"] for one in self.nomad("/v1/jobs?namespace=*")],
            "namespaces": [one["Name"] for one in self.nomad("/v1/namespaces") if one["Name"] != "default"],
            "variables": [one["Path"] for one in self.nomad("/v1/vars?namespace=*")],
            "overrides": [key for key in self.kept() if "/overrides/" in key],
        }
        if self.tokens:
            found |= {
                "policies": [one["Name"] for one in self.nomad("/v1/acl/policies")],
                "tokens": [one["Name"] for one in self.nomad("/v1/acl/tokens") if one["Type"] != "management"],
                "consul policies": [one["Name"] for one in self.consul("/v1/acl/policies") if "laptop" in one["Name"]],
                "consul tokens": [
                    one["Description"] for one in self.consul("/v1/acl/tokens") if "nomadfn" in one["Description"]
                ],
            }
        return {name: what for name, what in found.items() if what}

    def kept(self) -> list[str]:
        keys: list[str] = self.consul("/v1/kv/nomadfn/?keys")
        return keys


@pytest.fixture(params=["without ACLs", "with ACLs"])
def applied(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Applied]:
    plugins()
    path, why_not = real_nomad.find()
    if not path:
        pytest.skip(f"needs a real Nomad (1.6 or newer): {why_not}")
    for name in ("bin", "agents"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin/nomad").symlink_to(path)
    (tmp_path / "bin/consul").symlink_to(consul_binary())
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    found = versions()
    kind = OwnedAgents if request.param == "with ACLs" else DevAgents
    agents = kind(tmp_path / "agents", found["consul"])
    try:
        agents.start()
        agents.wait()
        with closing(World(tmp_path)) as world:
            yield Applied(tmp_path, agents, world, found["nomad"] >= (1, 7))
    finally:
        agents.end()


def test_applied_used_changed_and_destroyed(applied: Applied) -> None:
    terraform, world = applied.terraform, applied.world
    terraform.ok("init", "-input=false")
    terraform.apply()
    terraform.plans_nothing()
    applied.use()
    world.write("hello.py", PROGRAM)
    world.nomadfn("deploy", "hello.py", timeout_s=120).ok()
    call = ("function", "call", "hello", "square")
    assert world.nomadfn(*call, "7", timeout_s=120).ok().out.strip() == "49"

    (terraform.folder / "changed_override.tf").write_text(CHANGES)
    terraform.apply()
    terraform.plans_nothing()
    explained = ("function", "explain", "hello", "square", "--json")
    eventually(
        lambda: world.nomadfn(*explained, timeout_s=60).ok().json["settings"]["max_containers"] == 3,
        "the setting from Terraform holds",
    )
    assert world.nomadfn(*call, "8", timeout_s=120).ok().out.strip() == "64"

    world.nomadfn("app", "stop", "hello", timeout_s=60).ok()
    eventually(lambda: "laptop-fn-" not in str(applied.nomad("/v1/jobs?namespace=*")), "the app's jobs are gone")
    terraform.ok("destroy", "-auto-approve", "-input=false")
    assert applied.left() == {}
    # Spawned inputs and their results outlive the control services, as they outlive `nomadfn down`.
    assert [key for key in applied.kept() if not key.startswith("nomadfn/laptop.shards/0/")] == []
