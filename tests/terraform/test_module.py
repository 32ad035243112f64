"""The Terraform module as text: documented, whole, and in step with the job spec and the settings that it fills in."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import hcl2
import nomadfn_jobspecs
import pytest
from terraform_runs import Terraform, plugins

from nomadfn.adapters.consul_store import POLICY
from nomadfn.cli.cluster import SECRETS, STORE_PREFIXES
from nomadfn.control.settings import _KINDS
from nomadfn.core.limits import Limits

ROOT = Path(__file__).resolve().parents[2]
TERRAFORM = ROOT / "terraform"
MODULE = TERRAFORM / "modules/nomadfn"
FOLDERS = [MODULE, *sorted((TERRAFORM / "examples").iterdir())]
SHARED = {"region", "namespace", "datacenters", "node_pool", "constraints", "workload_identity"}
"""Settings of the functions' jobs that the module takes for all jobs at once."""
NOT_OFFERED = {"agent_url", "agent_args"}
"""Settings of the functions' jobs that are for who builds images or tests."""

each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def source(folder: Path) -> str:
    """All of it, without comments."""
    text = "\n".join(path.read_text() for path in sorted(folder.glob("*.tf")))
    return re.sub(r"(^|\s)#.*", r"\1", text)


def bare(value: Any) -> Any:
    """As it was written: the parser leaves strings in their quotes, also those that name a block."""
    if isinstance(value, dict):
        return {bare(name): bare(one) for name, one in value.items() if name != "__is_block__"}
    if isinstance(value, list):
        return [bare(one) for one in value]
    return value[1:-1] if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"' else value


@cache
def parsed(text: str) -> dict[str, Any]:
    whole: dict[str, Any] = bare(hcl2.loads(text))
    return whole


def blocks(text: str, kind: str) -> dict[str, Any]:
    """The blocks of a kind by their name; resources and data by both of their labels."""
    found: dict[str, Any] = {}
    for block in parsed(text).get(kind, []):
        for name, content in block.items():
            if kind in ("resource", "data"):
                found |= {f"{name}.{label}": body for label, body in content.items()}
            else:
                found[name] = content
    return found


@each_folder
def test_every_variable_says_its_type_and_what_it_is_for(folder: Path) -> None:
    variables = blocks(source(folder), "variable")
    assert variables
    assert [name for name, one in variables.items() if not one.get("type") or not one.get("description")] == []
    outputs = blocks(source(folder), "output")
    assert outputs
    assert [name for name, one in outputs.items() if not one.get("description")] == []


@each_folder
def test_every_reference_leads_somewhere_and_every_name_is_used(folder: Path) -> None:
    text = source(folder)
    assert set(re.findall(r"\bvar\.(\w+)", text)) == set(blocks(text, "variable"))
    assert set(re.findall(r"\blocal\.(\w+)", text)) == set(blocks(text, "locals"))
    data = set(re.findall(r"\bdata\.(\w+\.\w+)", text))
    assert data == set(blocks(text, "data"))
    referred = set(re.findall(r"(?<![\w.])((?:nomad|consul|random)_\w+\.\w+)", text))
    assert referred - set(blocks(text, "resource")) == set()
    outputs = set(blocks(source(MODULE), "output"))
    assert set(re.findall(r"\bmodule\.nomadfn\.(\w+)", text)) - outputs == set()


@each_folder
def test_every_call_of_the_module_gives_what_it_takes(folder: Path) -> None:
    taken = blocks(source(MODULE), "variable")
    required = {name for name, one in taken.items() if "default" not in one}
    for call in blocks(source(folder), "module").values():
        assert (folder / call["source"]).resolve() == MODULE
        given = set(call) - {"source"}
        assert required <= given <= set(taken)


def test_the_job_spec_gets_a_value_for_each_of_its_variables_in_its_type() -> None:
    spec = blocks(nomadfn_jobspecs.read("control.nomad.hcl"), "variable")
    texts = {name for name, one in spec.items() if one["type"] == "string"}
    known = blocks(source(MODULE), "locals")
    assert set(known["texts"]) == texts
    assert set(known["expressions"]) == set(spec) - texts


def test_the_readme_names_every_input_and_output() -> None:
    readme = (MODULE / "README.md").read_text()
    named = {name for line in readme.splitlines() for name in re.findall(r"`(\w+)`", line)}
    assert set(blocks(source(MODULE), "variable")) | set(blocks(source(MODULE), "output")) <= named


def test_the_module_registers_the_job_spec_that_up_registers() -> None:
    [path] = re.findall(r'file\("\$\{path\.module\}/(.*)"\)', source(MODULE))
    assert (MODULE / path).read_text() == nomadfn_jobspecs.read("control.nomad.hcl")


def test_the_secrets_that_up_takes_along_are_handed_over_and_never_shown() -> None:
    items = re.search(r"items = merge\((.*?)\n  \)", source(MODULE), re.DOTALL)
    assert items
    assert set(re.findall(r"([A-Z_]+) = ", items[1])) == set(SECRETS)
    refused = blocks(source(MODULE), "variable")["environment"]["validation"][0]["condition"]
    assert set(re.findall(r'"([A-Z_]+)"', refused)) == set(SECRETS)
    assert "var.blob_credentials" in items[1]
    taken = blocks(source(MODULE), "variable")["blob_credentials"]["validation"][0]["condition"]
    assert f"({'|'.join(STORE_PREFIXES)})" in taken


def attributes(variable: str) -> set[str]:
    """The names in an object type."""
    return set(re.findall(r"(\w+) = optional\(", blocks(source(MODULE), "variable")[variable]["type"]))


def test_the_module_offers_the_settings_that_there_are() -> None:
    settings = {name.partition(".")[2] for name in _KINDS if name.startswith("job.")}
    assert attributes("functions") == settings - SHARED - NOT_OFFERED
    spec = set(blocks(nomadfn_jobspecs.read("control.nomad.hcl"), "variable"))
    common = {"job_id", "cluster", "settings", "has_secrets"} | SHARED
    assert attributes("control") == spec - common
    named = re.search(r"profile: (.*) and so on", blocks(source(MODULE), "variable")["limits"]["description"])
    assert named
    assert set(named[1].split(", ")) <= {one.name for one in fields(Limits)}


def test_the_rights_in_consul_are_those_of_the_documentation_and_narrower() -> None:
    documented = dict(re.findall(r'^(\w+ "[^"]*") \{ policy = "(\w+)" \}$', POLICY, re.MULTILINE))
    rules = re.search(r"rules\s+= <<-EOT\n(.*?)\n  EOT", source(MODULE), re.DOTALL)
    assert rules
    given = dict(re.findall(r'^ +(\w+ "[^"]*") \{ policy = "(\w+)" \}$', rules[1], re.MULTILINE))
    keys = {name for name in given if name.startswith("key_prefix")}
    assert keys == {f'key_prefix "nomadfn/${{var.cluster}}{end}"' for end in ("/", ".shards/")}
    others = {name: policy for name, policy in given.items() if name not in keys}
    # Nomad announces the control services, so they need no right to.
    assert others == {
        name: policy for name, policy in documented.items() if not name.startswith(("key_prefix", "service"))
    }


def test_terraform_itself_would_write_it_so() -> None:
    done = Terraform(TERRAFORM).run("fmt", "-check", "-recursive", "-diff")
    assert done.returncode == 0, done.stdout + done.stderr


@each_folder
def test_terraform_itself_finds_nothing_wrong_in_it(folder: Path, tmp_path: Path) -> None:
    terraform = Terraform.copied(tmp_path, folder.relative_to(ROOT), plugins())
    terraform.ok("init", "-input=false")
    terraform.ok("validate")
