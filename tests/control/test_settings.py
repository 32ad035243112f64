from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nomadfn.control.settings import default_data_dir, is_loopback, load_settings
from nomadfn.core.limits import Limits
from nomadfn.exception import InvalidError

TOKEN = "nf_" + "a" * 43


def load(
    folder: Path, flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None, toml: str = ""
) -> Any:
    if toml:
        (folder / "nomadfn.toml").write_text(toml)
    return load_settings(flags, environ or {}, folder)


def test_without_anything_the_defaults_are_in_force(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.host == "127.0.0.1"
    assert settings.capacity is None
    assert settings.data_dir == default_data_dir()
    assert settings.limits == Limits()
    assert settings.limits.retention_s == 7 * 24 * 3600


def test_the_file_beats_defaults_the_environment_the_file_and_flags_all(tmp_path: Path) -> None:
    toml = "[control]\ncapacity = 2\nport = 2000\ndata_port = 2001\n[limits]\npending_inputs = 5\nmap_share = 1\n"
    environ = {"NOMADFN_PORT": "3000", "NOMADFN_DATA_PORT": "3001", "NOMADFN_LIMITS_TOTAL_INPUTS": "7_000"}
    settings = load(tmp_path, {"port": 4000, "host": None}, environ, toml)
    assert (settings.capacity, settings.data_port, settings.port) == (2, 3001, 4000)
    assert (settings.limits.pending_inputs, settings.limits.total_inputs) == (5, 7000)


def test_the_file_may_stand_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("[control]\ncapacity = 9\n")
    assert load(tmp_path, environ={"NOMADFN_CONFIG": str(tmp_path / "other.toml")}).capacity == 9
    with pytest.raises(InvalidError, match="NOMADFN_CONFIG"):
        load(tmp_path, environ={"NOMADFN_CONFIG": str(tmp_path / "absent.toml")})


@pytest.mark.parametrize(
    ("flags", "environ", "toml", "parts"),
    [
        ({"capacity": 0}, {}, "", ["capacity", "0", "--capacity", "from 1 to 4,096"]),
        ({"data_port": 70000}, {}, "", ["data_port", "70000", "--data-port", "65,535"]),
        ({}, {"NOMADFN_CAPACITY": "lots"}, "", ["capacity", "lots", "NOMADFN_CAPACITY", "whole number"]),
        ({}, {"NOMADFN_LIMITS_RETENTION_S": "nan"}, "", ["limits.retention_s", "nan"]),
        ({}, {}, "[control]\nport = true", ["port", "True", "nomadfn.toml"]),
        ({}, {}, "[control]\nport = 80.5", ["port", "80.5"]),
        ({}, {}, "[control]\nport = [1]", ["port"]),
        ({}, {}, "[limits]\nmap_share = 2", ["limits.map_share", "from 0.01 to 1"]),
        ({}, {}, "[control]\ncapicity = 3", ["capicity", "did you mean capacity"]),
        ({}, {}, "[control]\nzzz = 3", ["zzz", "there are host"]),
        ({}, {}, "[control]\ntoken = 'nf_x'", ["token", "NOMADFN_TOKEN"]),
        ({}, {}, "[control]\ndata_dir = '/x'", ["NOMADFN_DATA_DIR"]),
        ({}, {}, "limits = 3", ["limits must be a table"]),
        ({}, {}, "[control]\nport = ", ["is not valid TOML"]),
        ({}, {"NOMADFN_TOKEN": "secret"}, "", ["NOMADFN_TOKEN", "nf_"]),
        ({"port": 5000, "data_port": 5000}, {}, "", ["both 5000"]),
        ({"insecure_plaintext": "maybe"}, {}, "", ["insecure_plaintext", "true or false"]),
        ({"host": "a b"}, {}, "", ["host"]),
        ({"data_dir": ""}, {}, "", ["data_dir"]),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_its_source_and_what_is_accepted(
    tmp_path: Path, flags: dict[str, Any], environ: dict[str, str], toml: str, parts: list[str]
) -> None:
    with pytest.raises(InvalidError) as caught:
        load(tmp_path, flags, environ, toml)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_token_is_not_shown_in_the_settings_nor_in_its_error(tmp_path: Path) -> None:
    settings = load(tmp_path, environ={"NOMADFN_TOKEN": TOKEN})
    assert settings.token == TOKEN
    assert TOKEN not in repr(settings)
    with pytest.raises(InvalidError) as caught:
        load(tmp_path, environ={"NOMADFN_TOKEN": "my-secret"})
    assert "my-secret" not in str(caught.value)


def test_a_host_that_others_reach_needs_a_token_and_the_insecure_flag(tmp_path: Path) -> None:
    flags = {"host": "0.0.0.0", "data_dir": str(tmp_path / "data")}
    with pytest.raises(InvalidError, match="no token"):
        load(tmp_path, {**flags, "insecure_plaintext": True})
    with pytest.raises(InvalidError, match="--insecure-plaintext"):
        load(tmp_path, flags, {"NOMADFN_TOKEN": TOKEN})
    assert load(tmp_path, {**flags, "insecure_plaintext": True}, {"NOMADFN_TOKEN": TOKEN}).host == "0.0.0.0"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "token").write_text(TOKEN)
    assert load(tmp_path, {**flags, "insecure_plaintext": True}).token == ""


def test_loopback_is_told_from_the_rest() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "example.org", ""]))
