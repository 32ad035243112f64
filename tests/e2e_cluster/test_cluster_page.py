"""docs/cluster.md: what stands there exists and parses, in every run; with a real Nomad, it is done as it stands."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import real_nomad
from consul_server import consul_binary, consul_version
from real_nomad import free_ports
from test_docs import ROOT, blocks

from nomadfn.adapters.consul_store import POLICY
from nomadfn.control.settings import load_settings
from nomadfn.profiles import load_profile

PAGE = ROOT / "docs" / "cluster.md"
FILE = re.compile(r"# ([\w-]+\.(?:hcl|toml|py))\n")
WAIT_S = 400
ENDS = "kill $(jobs -p)"


def files() -> dict[str, str]:
    """What the page says that stands in files, by their names."""
    found = {}
    for kind in ("hcl", "toml", "python"):
        for body in blocks(PAGE, kind):
            name = FILE.match(body)
            assert name or body.startswith("[profiles."), (
                f"a file that does not say its name in its first line:\n{body}"
            )
            if name:
                found[name[1]] = body
    return found


def parts_of_profiles() -> list[str]:
    """What may stand in a profile beside what the page's own has."""
    return [body for body in blocks(PAGE, "toml") if not FILE.match(body)]


def nomadfn_commands() -> list[list[str]]:
    lines = "\n".join(blocks(PAGE, "sh")).splitlines()
    return [shlex.split(line) for line in lines if line.startswith("nomadfn ")]


def test_every_command_of_the_page_is_one() -> None:
    nomadfn = Path(sysconfig.get_path("scripts")) / "nomadfn"
    options: dict[tuple[str, ...], str] = {}
    for words in nomadfn_commands():
        command = tuple(words[1:3] if words[1] in ("app", "function") else words[1:2])
        if command not in options:
            asked = [nomadfn, *command, "--help"]
            done = subprocess.run(
                asked, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "200"}
            )
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            options[command] = done.stdout
        for word in words[1:]:
            assert not word.startswith("-") or word in options[command], f"{' '.join(words)}: there is no {word}"


def test_the_profile_of_the_page_is_taken(tmp_path: Path) -> None:
    (tmp_path / "nomadfn.toml").write_text(files()["nomadfn.toml"])
    profile = load_profile(environ={}, folder=tmp_path)
    assert profile.name == "laptop"
    settings = load_settings(environ={}, profile=profile)
    assert settings.job["driver"] == "raw_exec"


@pytest.mark.parametrize("part", parts_of_profiles())
def test_a_part_of_a_profile_on_the_page_is_taken(tmp_path: Path, part: str) -> None:
    (tmp_path / "nomadfn.toml").write_text(f'[profiles.laptop]\ncluster = "laptop"\n{part}')
    profile = load_profile("laptop", environ={}, folder=tmp_path)
    load_settings(environ={}, profile=profile)


def test_the_policy_of_the_page_is_the_one_that_the_tests_of_the_adapters_run_with() -> None:
    assert files()["consul-policy.hcl"].partition("\n")[2] == POLICY


def test_the_page_names_the_capabilities_that_the_doctor_looks_for() -> None:
    policy = files()["nomad-policy.hcl"]
    for right in (
        "list-jobs",
        "read-job",
        "submit-job",
        "scale-job",
        "read-logs",
        '"write", "destroy"',
        "nomad/jobs/*",
        "nomadfn/secrets/*",
    ):
        assert right in policy


@pytest.mark.nomad
@pytest.mark.consul
@pytest.mark.timeout(WAIT_S + 60)
@pytest.mark.parametrize("part", ["From two dev agents to a served function", "With ACLs: the least rights"])
def test_the_page_is_done_word_for_word(part: str, tmp_path: Path) -> None:
    """Only ports and paths are others than on the page; Consul and Nomad are told of theirs by wrappers on PATH."""
    path, why = real_nomad.find()
    if not path:
        pytest.skip(f"needs a real Nomad (1.6 or newer): {why}")
    http, consul_http = _write_wrappers(tmp_path, path)
    changes = {"4646": str(http), "8500": str(consul_http), "/usr/bin/python3.11": sys.executable}
    changes["/tmp/nomadfn-blobs"] = str(tmp_path / "blobs")

    def adapted(text: str) -> str:
        for old, new in changes.items():
            text = text.replace(old, new)
        return text

    work = tmp_path / "work"
    work.mkdir()
    for name, body in files().items():
        (work / name).write_text(adapted(body))
    script = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT\n"
    script += "set -x\n" + "".join(map(adapted, _of(part)))
    token = 'export NOMADFN_TOKEN="nf_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"\n'
    env = {"NOMAD_ADDR": f"http://127.0.0.1:{http}", "CONSUL_HTTP_ADDR": f"127.0.0.1:{consul_http}"}
    done = _bash(script if "NOMADFN_TOKEN=" in script else token + script, work, tmp_path, env)
    told = f"{done.stdout}\n{done.stderr}\n{_tail(work / 'nomad.log')}\n{_tail(work / 'consul.log')}"
    assert done.returncode == 0, told
    results = [line for line in done.stdout.splitlines() if line.isdigit()]
    assert results == (["49", "64"] if part.startswith("From") else ["81"]), told


def _of(part: str) -> list[str]:
    """The commands of one part of the page."""
    text = PAGE.read_text().partition(f"## {part}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert ENDS in found[-1]
    return found


def _write_wrappers(folder: Path, nomad: str) -> tuple[int, int]:
    """`nomad` and `consul` for PATH, which take free ports and what a machine without a cloud needs; the HTTP ports."""
    http, rpc, serf, consul_http, consul_serf, consul_server = free_ports(6)
    (folder / "bin").mkdir()
    config = folder / "ports.hcl"
    ends = {"http": http, "rpc": rpc, "serf": serf}
    denied = "env_aws,env_gce,env_azure,env_digitalocean,vault,cni,bridge"
    config.write_text(
        f'bind_addr = "127.0.0.1"\nports {{\n{_lines(ends)}}}\n'
        f'consul {{\n  address = "127.0.0.1:{consul_http}"\n}}\n'
        f'client {{\n  options = {{\n    "fingerprint.denylist" = "{denied}"\n  }}\n}}\n'
    )
    unused = ["dns", "grpc", "serf_wan", *(["grpc_tls"] if consul_version() >= (1, 14) else [])]
    taken = {"http": consul_http, "serf_lan": consul_serf, "server": consul_server, **dict.fromkeys(unused, -1)}
    (folder / "ports.json").write_text(json.dumps({"ports": taken, "disable_update_check": True}))
    for name, binary, option in (
        ("nomad", nomad, f"-config={config} -log-level=WARN"),
        ("consul", consul_binary(), f"-config-file={folder / 'ports.json'}"),
    ):
        wrapper = folder / "bin" / name
        command = shlex.quote(str(Path(binary).resolve()))
        wrapper.write_text(f'#!/bin/sh\n[ "$1" = agent ] && exec {command} "$@" {option}\nexec {command} "$@"\n')
        wrapper.chmod(0o755)
    return http, consul_http


def _lines(values: dict[str, int]) -> str:
    return "".join(f"  {name} = {value}\n" for name, value in values.items())


def _bash(script: str, work: Path, folder: Path, addresses: dict[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NOMAD", "CONSUL"))}
    path = f"{folder / 'bin'}{os.pathsep}{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    env = {**kept, **addresses, "PATH": path, "TMPDIR": str(folder)}
    (folder / "script.sh").write_text(script)
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        command = ["bash", str(folder / "script.sh")]
        process = subprocess.Popen(command, cwd=work, env=env, stdout=out, stderr=err, start_new_session=True)
        try:
            code = process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            real_nomad.clean_up(folder)
    return subprocess.CompletedProcess(command, code, (folder / "out").read_text(), (folder / "err").read_text())


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-3000:] if path.exists() else ""
