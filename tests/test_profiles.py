from __future__ import annotations

import json
from pathlib import Path

import pytest

from nomadfn.cli.cluster import _secrets
from nomadfn.control.clustered import journal_bounds, open_blobs
from nomadfn.control.settings import load_settings
from nomadfn.exception import InvalidError
from nomadfn.profiles import Profile, as_table, load_profile

TOML = """
[profiles.prod]
nomad = "http://nomad:4646"
cluster = "prod"
shard = 2
blobs = "/mnt/nomadfn"
control_urls = ["http://10.0.0.1:8700"]
[profiles.prod.job]
driver = "raw_exec"
ceiling = 20
constraints = [["${attr.kernel.name}", "=", "linux"]]
[profiles.prod.limits]
pending_inputs = 7
"""


def load(folder: Path, toml: str = TOML, name: str | None = None, **environ: str) -> Profile:
    (folder / "nomadfn.toml").write_text(toml)
    return load_profile(name, environ, folder)


def test_this_machine_is_the_default_whatever_the_addresses_say(tmp_path: Path) -> None:
    assert load(tmp_path, NOMAD_ADDR="http://nomad:4646", CONSUL_HTTP_ADDR="http://consul:8500").is_local
    assert load_profile(None, {}, tmp_path / "absent").is_local


def test_a_profile_is_named_by_the_command_the_environment_or_the_file_in_this_order(tmp_path: Path) -> None:
    named = 'profile = "prod"\n' + TOML + "[profiles.other]\n"
    assert load(tmp_path, named).name == "prod"
    assert load(tmp_path, named, NOMADFN_PROFILE="other").name == "other"
    assert load(tmp_path, named, "prod", NOMADFN_PROFILE="other").name == "prod"
    assert load(tmp_path, named, NOMADFN_PROFILE="local").is_local


def test_a_profile_has_its_addresses_and_the_settings_of_its_tables(tmp_path: Path) -> None:
    profile = load(tmp_path, name="prod")
    assert (profile.nomad, profile.consul, profile.shard) == ("http://nomad:4646", "", 2)
    assert profile.control_urls == ("http://10.0.0.1:8700",)
    settings = load_settings({}, {}, tmp_path, profile)
    assert settings.limits.pending_inputs == 7
    assert settings.job["constraints"] == (("${attr.kernel.name}", "=", "linux"),)
    assert load_settings({}, {}, tmp_path).job == {}


def test_a_profile_travels_to_the_job_of_the_control_service_as_json(tmp_path: Path) -> None:
    profile = load(tmp_path, name="prod")
    environ = {"NOMADFN_PROFILE": "prod", "NOMADFN_PROFILE_JSON": json.dumps(as_table(profile))}
    travelled = load_profile(None, environ, tmp_path / "absent")
    assert as_table(travelled) == as_table(profile)
    assert load_settings({}, {}, tmp_path, travelled).job == load_settings({}, {}, tmp_path, profile).job


@pytest.mark.parametrize(
    ("toml", "parts"),
    [
        (TOML, ["there is no profile 'stage'", "local, prod", "[profiles.stage]"]),
        ("[profiles.stage]\nnomad = 'nomad:4646'", ["nomad = 'nomad:4646'", "http://127.0.0.1:4646"]),
        ("[profiles.stage]\nnomda = ''", ["no setting nomda", "did you mean nomad?"]),
        ("[profiles.stage]\nshard = true", ["shard = True", "whole number"]),
        ("[profiles.stage]\njob = 3", ["job must be a table"]),
        ("profiles = 3", ["profiles stand under"]),
    ],
)
def test_a_wrong_profile_is_refused_with_what_is_accepted(tmp_path: Path, toml: str, parts: list[str]) -> None:
    with pytest.raises(InvalidError) as refused:
        load(tmp_path, toml, "stage")
    for part in parts:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ("[profiles.p.job]\ndriwer = 'x'", ["no setting job.driwer", "did you mean job.driver?"]),
        ("[profiles.p.job]\nceiling = 0", ["job.ceiling = 0", "profile p"]),
        ("[profiles.p.job]\nconstraints = [['a', 'b']]", ["job.constraints", "[attribute, operator, value]"]),
        ("[profiles.p.control_job]\ninstances = 0", ["control_job.instances = 0"]),
    ],
)
def test_a_wrong_setting_of_a_profile_is_refused_with_its_table(tmp_path: Path, table: str, parts: list[str]) -> None:
    with pytest.raises(InvalidError) as refused:
        load_settings({}, {}, tmp_path, load(tmp_path, table, "p"))
    for part in parts:
        assert part in str(refused.value)


def test_credentials_of_a_blob_store_go_to_the_control_job_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-s3")
    monkeypatch.setenv("NOMADFN_TOKEN", "nf_owner")
    assert "AWS_SECRET_ACCESS_KEY" not in _secrets(Profile("p", blobs="/mnt/nomadfn"))
    found = _secrets(Profile("p", blobs="s3://bucket/prefix"))
    assert (found["AWS_SECRET_ACCESS_KEY"], found["NOMADFN_TOKEN"]) == ("of-s3", "nf_owner")
    assert "PATH" not in found


def test_a_file_address_is_a_folder_and_any_other_one_a_store(tmp_path: Path) -> None:
    for blobs in (str(tmp_path), f"file://{tmp_path}/"):
        assert open_blobs(Profile("p", blobs=blobs), "journal").folder == f"{tmp_path}/nomadfn/0/journal"
    store = open_blobs(Profile("p", blobs=f"memory:/{tmp_path}"), "payloads")
    assert (store.folder, list(store.names())) == ("", [])


def test_without_a_blob_store_values_are_small_and_results_kept_for_an_hour() -> None:
    settings = load_settings({}, {}, Path("/absent"))
    assert journal_bounds(settings.limits, True)[0] == settings.limits
    limits, _, _ = journal_bounds(settings.limits, False)
    assert (limits.payload_bytes, limits.retention_s) == (128 * 1024, 3600.0)
