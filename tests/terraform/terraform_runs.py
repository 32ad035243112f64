"""Terraform for tests, on copies of this repository's folders, and dev agents that it is applied to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
from dev_agents import DevAgents, ask, eventually

ROOT = Path(__file__).resolve().parents[2]
RUN_S = 400.0
READY_S = 120.0
MIRROR = """
disable_checkpoint = true
provider_installation {
  filesystem_mirror {
    path = "%s"
  }
}
"""


def plugins() -> str:
    """A folder with the providers. Skips where there is none: nothing is downloaded for a test."""
    folder = os.environ.get("NOMADFN_TEST_TERRAFORM_PLUGINS", "")
    if not folder:
        pytest.skip("NOMADFN_TEST_TERRAFORM_PLUGINS names no folder in which Terraform finds its providers")
    return folder


class Terraform:
    """Runs in one folder. Skips where there is no terraform."""

    def __init__(self, folder: Path, **environ: str) -> None:
        if not shutil.which("terraform"):
            pytest.skip("no terraform on PATH")
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "NOMAD_", "CONSUL_"))}
        self.environ = {**kept, "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", **environ}

    @classmethod
    def copied(cls, work: Path, folder: Path, mirror: str, **environ: str) -> Terraform:
        """In a copy of `folder` of the repository, so that Terraform leaves nothing in it."""
        for name in ("terraform", "jobspecs"):
            left_out = shutil.ignore_patterns(".terraform*", "*.tfstate*", "__pycache__")
            shutil.copytree(ROOT / name, work / name, ignore=left_out)
        config = work / "terraform.rc"
        config.write_text(MIRROR % mirror)
        return cls(work / folder, TF_CLI_CONFIG_FILE=str(config), **environ)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["terraform", *words, "-no-color"] if words[0] != "fmt" else ["terraform", *words],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_S,
        )

    def ok(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, f"terraform {words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def apply(self) -> None:
        self.ok("apply", "-auto-approve", "-input=false")

    def plans_nothing(self) -> None:
        """Everything is as it is written."""
        self.ok("plan", "-input=false", "-detailed-exitcode")

    def outputs(self) -> dict[str, Any]:
        return {name: one["value"] for name, one in json.loads(self.ok("output", "-json")).items()}


class OwnedAgents(DevAgents):
    """With ACLs on default deny, and the tokens of their owner."""

    def __init__(self, folder: Path, consul_version: tuple[int, ...]) -> None:
        super().__init__(folder, consul_version)
        self._consul_token = str(uuid.uuid4())
        self._nomad_token = ""
        management = "initial_management" if consul_version >= (1, 11) else "master"
        consul, nomad = folder / "consul.json", folder / "nomad.hcl"
        tokens = dict.fromkeys((management, "agent"), self._consul_token)
        acl = {"enabled": True, "default_policy": "deny", "tokens": tokens}
        consul.write_text(json.dumps(json.loads(consul.read_text()) | {"acl": acl}))
        told = nomad.read_text().replace("consul {", f'consul {{\n  token = "{self._consul_token}"')
        nomad.write_text(f"{told}\nacl {{\n  enabled = true\n}}\n")

    def wait(self) -> None:
        eventually(lambda: self._is_alive() and ask(f"{self.consul_url}/v1/status/leader"), "Consul starts", READY_S)

        def bootstrap() -> bool:
            self._nomad_token = (ask(f"{self.nomad_url}/v1/acl/bootstrap", "POST") or {}).get("SecretID", "")
            return bool(self._is_alive() and self._nomad_token)

        eventually(bootstrap, "Nomad starts", READY_S)

    @property
    def tokens(self) -> dict[str, str]:
        return {"NOMAD_TOKEN": self._nomad_token, "CONSUL_HTTP_TOKEN": self._consul_token}
