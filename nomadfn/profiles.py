"""Which world a command speaks to: this machine, or a cluster that a profile in `nomadfn.toml` describes.

    profile = "prod"                  # optional; else NOMADFN_PROFILE or --profile says it, else it is this machine

    [profiles.prod]
    nomad = "http://nomad:4646"       # else NOMAD_ADDR; tokens and TLS as the HashiCorp tools read them
    consul = "http://consul:8500"     # else CONSUL_HTTP_ADDR
    cluster = "prod"
    blobs = "s3://bucket/prefix"      # whatever fsspec speaks, or a folder that every control service sees
    [profiles.prod.job]               # of the functions' Nomad jobs
    [profiles.prod.control]           # of the control service
    [profiles.prod.control_job]       # of the Nomad job that runs it
    [profiles.prod.limits]

That NOMAD_ADDR is set chooses nothing. `local` is the name of this machine. Where there is no file, as in the Nomad
job of the control service, NOMADFN_PROFILE_JSON holds the profile's table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nomadfn.exception import InvalidError

CONFIG_NAME = "nomadfn.toml"
LOCAL = "local"
TABLES = ("job", "control", "control_job", "limits")


@dataclass(frozen=True, slots=True)
class Profile:
    """One world. The addresses are empty where the environment gives them; `tables` are checked by who uses them."""

    name: str = LOCAL
    source: str = ""
    """The file, or the variable, that it stands in."""
    nomad: str = ""
    consul: str = ""
    cluster: str = "nomadfn"
    shard: int = 0
    blobs: str = ""
    control_urls: tuple[str, ...] = ()
    """Fixed addresses of control services; the leader is asked for there instead of in Consul."""
    job_id: str = ""
    """Of the control service; empty is `<cluster>-control`."""
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        return self.name == LOCAL

    @property
    def control_job(self) -> str:
        return self.job_id or f"{self.cluster}-control"

    def __str__(self) -> str:
        return "this machine" if self.is_local else f"the cluster {self.cluster} (profile {self.name})"


def load_profile(
    name: str | None = None, environ: Mapping[str, str] = os.environ, folder: Path | None = None
) -> Profile:
    """The profile `name`, else the one that NOMADFN_PROFILE or the file names, else this machine.

    Raises `InvalidError` for a profile that is nowhere, and for wrong values in it.
    """
    wanted = name or environ.get("NOMADFN_PROFILE", "")
    if wanted == LOCAL:
        return Profile()
    if wanted and (text := environ.get("NOMADFN_PROFILE_JSON")):
        return _read(wanted, "NOMADFN_PROFILE_JSON", _json_table(text))
    path, content = read_config(environ, folder)
    wanted = wanted or content.get("profile", LOCAL)
    if wanted == LOCAL:
        return Profile()
    profiles = content.get("profiles", {})
    if not isinstance(wanted, str) or not isinstance(profiles, dict):
        raise InvalidError(f'{path}: profile must be a name, and profiles stand under [profiles.NAME]: profile = "…"')
    if wanted not in profiles:
        known = ", ".join([LOCAL, *profiles])
        raise InvalidError(f"there is no profile {wanted!r} in {path}; there are {known}; add [profiles.{wanted}]")
    return _read(wanted, str(path), profiles[wanted])


def read_config(environ: Mapping[str, str], folder: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """`nomadfn.toml` of the working directory, or where NOMADFN_CONFIG says; empty where there is none.

    Raises `InvalidError` where NOMADFN_CONFIG names no file, or it cannot be read.
    """
    named = environ.get("NOMADFN_CONFIG")
    path = Path(named).expanduser() if named else (folder or Path.cwd()) / CONFIG_NAME
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        if named:
            raise InvalidError(f"there is no file {path}, which NOMADFN_CONFIG names") from None
        return path, {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path} cannot be read: {error}") from None
    import tomllib

    try:
        return path, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidError(f"{path} is not valid TOML: {error}") from None


def as_table(profile: Profile) -> dict[str, Any]:
    """The profile as it would stand in a file, for NOMADFN_PROFILE_JSON."""
    kept = {key: getattr(profile, key) for key in _CHECKS}
    return {**kept, **profile.tables, "control_urls": list(profile.control_urls)}


def _json_table(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidError(f"NOMADFN_PROFILE_JSON is not JSON: {error}") from None


def _read(name: str, source: str, table: Any) -> Profile:
    if not isinstance(table, dict):
        raise InvalidError(f"{source}: profiles.{name} must be a table, [profiles.{name}]")
    values: dict[str, Any] = {}
    tables: dict[str, Mapping[str, Any]] = {}
    for key, value in table.items():
        if key in TABLES:
            if not isinstance(value, dict):
                raise InvalidError(f"{source}: {key} must be a table, [profiles.{name}.{key}]")
            tables[key] = value
            continue
        if key not in _CHECKS:
            import difflib  # Only who has mistyped needs it.

            close = difflib.get_close_matches(key, [*_CHECKS, *TABLES], n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join([*_CHECKS, *TABLES])}"
            raise InvalidError(f"{source}: a profile has no setting {key}; {hint}")
        accepted, is_good = _CHECKS[key]
        if not is_good(value):
            raise InvalidError(f"{key} = {value!r} (from {source}, profile {name}) is not accepted; give {accepted}")
        values[key] = tuple(value) if isinstance(value, list) else value
    return Profile(name, source, **values, tables=tables)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_url(value: Any) -> bool:
    return value == "" or (isinstance(value, str) and value.startswith(("http://", "https://")))


_CHECKS = {
    "nomad": ("an address such as http://127.0.0.1:4646", _is_url),
    "consul": ("an address such as http://127.0.0.1:8500", _is_url),
    "cluster": ("a name of lower-case letters, digits and hyphens", _is_text),
    "shard": ("a whole number of 0 or more", lambda value: type(value) is int and value >= 0),
    "blobs": ("a folder, or an address such as s3://bucket/prefix", _is_text),
    "control_urls": (
        'a list of addresses such as ["http://10.0.0.1:8700"]',
        lambda value: isinstance(value, list) and all(_is_url(one) and one for one in value),
    ),
    "job_id": ("the name of a Nomad job", _is_text),
}
