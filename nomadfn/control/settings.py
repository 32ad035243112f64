"""The settings of a control service: defaults, then `nomadfn.toml`, then the environment, then flags.

One name everywhere. `capacity` is `capacity = 4` under `[control]` in the file, `NOMADFN_CAPACITY=4` in the
environment and `--capacity 4` as a flag; `limits.pending_inputs` stands under `[limits]`, and is
`NOMADFN_LIMITS_PENDING_INPUTS` in the environment. A wrong value is refused with its source and what is accepted.
The token is never in the file nor a flag: `NOMADFN_TOKEN`, or the file `token` in the data folder, and
`NOMADFN_METRICS_TOKEN` for who reads `/metrics`, `NOMADFN_WEB_TOKEN` for web functions that ask for one. The data
folder itself is not in the file either, because programs look for the service there without reading the file.

A cluster's profile has the same settings in tables of its own, `[profiles.NAME.control]` and `.limits`, and beside
them `[profiles.NAME.job]`, for the Nomad jobs of its functions.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec

from nomadfn.core.limits import Limits
from nomadfn.exception import InvalidError
from nomadfn.profiles import Profile, read_config

TOKEN_FILE = "token"
WEB_URL = re.compile(r"https?://(\{name\}\.)?[A-Za-z0-9.\[\]:_-]+/?")
TOKEN_PATTERN = re.compile(r"nf_[A-Za-z0-9_-]{16,}")


@dataclass(frozen=True, slots=True)
class Settings:
    """What one control service runs with; every field but `token` is a setting by its name."""

    data_dir: Path
    """Where everything that lasts lies; the user's data folder by default."""
    host: str = "127.0.0.1"
    port: int = 0
    """Of the HTTP API; 0 takes a free one."""
    data_port: int = 0
    """Of the websocket listener; 0 takes a free one."""
    capacity: int | None = None
    """Containers that may run at once on this machine; None is one a core."""
    insecure_plaintext: bool = False
    """Serve on a host that is not loopback without TLS."""
    max_body_bytes: int = 1024 * 1024
    """The largest body of an HTTP request."""
    web_host: str = "127.0.0.1"
    """Where web functions are served, by the gateway. Whoever reaches it may send them requests."""
    web_port: int = 0
    """Of the gateway; 0 takes the one that it had last, or else a free one."""
    web_url: str = ""
    """How others see the gateway, where a proxy or a load balancer is before it: `https://fn.example.com`, or with a
    host a function, `https://{name}.example.com`. Empty: `http://web_host:web_port`."""
    web_proxies: str = "127.0.0.1"
    """With `web_url`: whose X-Forwarded-For and -Proto are believed, addresses and networks between commas."""
    web_max_body_bytes: int = 4 << 30
    """The largest body of a request to a web function."""
    web_header_timeout_s: float = 10.0
    """How long the headers of a request may take to arrive."""
    web_max_header_bytes: int = 64 * 1024
    """How large they may be together, with the request line."""
    limits: Limits = field(default_factory=Limits)
    token: str = field(default="", repr=False)
    """From NOMADFN_TOKEN; empty: the one in the data folder, made when there is none."""
    metrics_token: str = field(default="", repr=False)
    """From NOMADFN_METRICS_TOKEN: good for reading `/metrics` alone. Empty: the owner's token is needed for it."""
    web_token: str = field(default="", repr=False)
    """From NOMADFN_WEB_TOKEN: good for web functions with `requires_proxy_auth` and nothing else, as the owner's is."""
    job: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """What a profile says of its functions' jobs; see `adapters.jobspec.JobSettings`. Empty on one machine."""
    control_job: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """What a profile says of the Nomad job of its control services: variables of `control.nomad.hcl`."""


class _Kind(msgspec.Struct, frozen=True):
    """What a setting accepts: `parse` takes a string or a TOML value and raises ValueError."""

    accepted: str
    parse: Callable[[Any], Any]


class _Given(msgspec.Struct, frozen=True):
    name: str
    value: Any
    source: str


def load_settings(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    folder: Path | None = None,
    profile: Profile = Profile(),
) -> Settings:
    """The settings in force. `flags` maps names to values, None for a flag that was not given.

    `nomadfn.toml` is read from `folder` (the working directory by default), or from where NOMADFN_CONFIG says.
    Raises `InvalidError` for a wrong value, an unknown name in the file, or a file that cannot be read.
    """
    values: dict[str, Any] = {}
    filed = _from_file(environ, folder) if profile.is_local else _from_profile(profile)
    for given in (*filed, *_from_environ(environ), *_from_flags(flags or {})):
        values[given.name] = _parsed(given)
    job, control_job = _taken(values, "job"), _taken(values, "control_job")
    limits = _taken(values, "limits")
    values.setdefault("data_dir", default_data_dir())
    settings = Settings(
        **values,
        limits=Limits(**limits),
        token=_token(environ, "NOMADFN_TOKEN"),
        metrics_token=_token(environ, "NOMADFN_METRICS_TOKEN"),
        web_token=_token(environ, "NOMADFN_WEB_TOKEN"),
        job=job,
        control_job=control_job,
    )
    _check_together(settings)
    return settings


def _taken(values: dict[str, Any], section: str) -> dict[str, Any]:
    """The settings of one table, by their own names; they are no longer among `values`."""
    return {name.rpartition(".")[2]: values.pop(name) for name in list(values) if name.startswith(f"{section}.")}


def default_data_dir() -> Path:
    """The user's own data folder, as the platform has it."""
    import platformdirs

    return Path(platformdirs.user_data_dir("nomadfn"))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name other than `localhost` is taken to be reachable."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _whole(minimum: int, maximum: int) -> _Kind:
    def parse(value: Any) -> int:
        if isinstance(value, bool | float):
            raise ValueError
        return int(value.replace("_", "") if isinstance(value, str) else value)

    return _Kind(f"a whole number from {minimum:,} to {maximum:,}", _bounded(parse, minimum, maximum))


def _number(minimum: float, maximum: float) -> _Kind:
    def parse(value: Any) -> float:
        if isinstance(value, bool):
            raise ValueError
        return float(value)

    return _Kind(f"a number from {minimum:g} to {maximum:g}", _bounded(parse, minimum, maximum))


def _bounded(parse: Callable[[Any], float], minimum: float, maximum: float) -> Callable[[Any], float]:
    def checked(value: Any) -> float:
        number = parse(value)
        if not (math.isfinite(number) and minimum <= number <= maximum):
            raise ValueError
        return number

    return checked


def _parse_flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[str(value).lower()]


def _parse_host(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9.:\[\]_-]+", value):
        raise ValueError
    return value


def _parse_web_url(value: Any) -> str:
    if not isinstance(value, str) or not WEB_URL.fullmatch(value):
        raise ValueError
    return value.rstrip("/")


def _parse_proxies(value: Any) -> str:
    if value != "*":
        for one in value.split(","):
            ipaddress.ip_network(one.strip(), strict=False)
    return str(value)


def _parse_folder(value: Any) -> Path:
    if isinstance(value, Path):
        return value.absolute()
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError
    return Path(value).expanduser().absolute()


def _parse_text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError
    return value


def _parse_texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError
    return tuple(_parse_text(one) for one in value)


def _parse_constraints(value: Any) -> tuple[tuple[str, ...], ...]:
    rules = tuple(_parse_texts(one) for one in value)
    if any(len(one) != 3 for one in rules):
        raise ValueError
    return rules


_TEXT = _Kind("a text", _parse_text)
_TEXTS = _Kind("a list of texts", _parse_texts)
_COUNT = _whole(1, 1_000_000_000)
_PORT = _whole(0, 65_535)
_KINDS: dict[str, _Kind] = {
    "data_dir": _Kind("the path of a folder", _parse_folder),
    "host": _Kind("a host name or an address", _parse_host),
    "port": _PORT,
    "data_port": _PORT,
    "capacity": _whole(1, 4096),
    "insecure_plaintext": _Kind("true or false", _parse_flag),
    "max_body_bytes": _whole(1024, 1 << 30),
    "web_host": _Kind("a host name or an address", _parse_host),
    "web_port": _PORT,
    "web_url": _Kind("an address such as https://fn.example.com or https://{name}.example.com", _parse_web_url),
    "web_proxies": _Kind("addresses and networks with commas between them, or *", _parse_proxies),
    "web_max_body_bytes": _whole(1024, 1 << 50),
    "web_header_timeout_s": _number(0.1, 3600.0),
    "web_max_header_bytes": _whole(1024, 1 << 24),
    "limits.pending_inputs": _COUNT,
    "limits.total_inputs": _COUNT,
    "limits.pending_spawns": _COUNT,
    "limits.spawn_bytes": _whole(1024 * 1024, 1 << 40),
    "limits.dict_bytes": _whole(1024 * 1024, 1 << 34),
    "limits.dict_blob_bytes": _whole(1024 * 1024, 1 << 50),
    "limits.map_in_flight": _COUNT,
    "limits.map_share": _number(0.01, 1.0),
    "limits.payload_bytes": _whole(1024, 1 << 40),
    "limits.function_bytes": _whole(1024, 1 << 30),
    "limits.web_requests_per_s": _number(0.001, 1e9),
    "limits.web_burst_s": _number(0.001, 3600.0),
    "limits.retention_s": _number(1.0, 3650 * 86_400.0),
    "job.region": _TEXT,
    "job.namespace": _TEXT,
    "job.datacenters": _TEXTS,
    "job.node_pool": _TEXT,
    "job.constraints": _Kind("a list of [attribute, operator, value]", _parse_constraints),
    "job.priority": _whole(1, 100),
    "job.ceiling": _whole(1, 1_000_000),
    "job.driver": _TEXT,
    "job.image": _TEXT,
    "job.network_mode": _TEXT,
    "job.python": _TEXT,
    "job.agent_args": _TEXTS,
    "job.environments": _TEXT,
    "job.agent_url": _TEXT,
    "job.cpu_cores": _number(0.001, 4096.0),
    "job.memory_mib": _whole(10, 1 << 30),
    "job.core_mhz": _whole(1, 1_000_000),
    "job.gpu_device": _TEXT,
    "job.kill_timeout_s": _whole(1, 86_400),
    "job.workload_identity": _Kind("true or false", _parse_flag),
}
_KINDS |= {
    f"control_job.{name}": kind
    for name, kind in {
        "instances": _whole(1, 9),
        "driver": _TEXT,
        "image": _TEXT,
        "network_mode": _TEXT,
        "command": _TEXT,
        "args": _TEXTS,
        "constraints": _KINDS["job.constraints"],
        "service": _TEXT,
        "service_provider": _TEXT,
        "priority": _whole(1, 100),
        "cpu_mhz": _whole(1, 1_000_000),
        "memory_mib": _whole(10, 1 << 30),
        "kill_timeout": _TEXT,
        "web_port": _whole(-1, 65_535),
        "web_service": _TEXT,
    }.items()
}
_LIMITS = {name.partition(".")[2] for name in _KINDS if name.startswith("limits.")}
assert {one.name for one in fields(Limits)} == _LIMITS


def _parsed(given: _Given) -> Any:
    kind = _KINDS[given.name]
    try:
        return kind.parse(given.value)
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError):
        raise InvalidError(
            f"{given.name} = {given.value!r} (from {given.source}) is not accepted; give {kind.accepted}"
        ) from None


def _from_file(environ: Mapping[str, str], folder: Path | None) -> Iterator[_Given]:
    path, content = read_config(environ, folder)
    for section in ("control", "limits"):
        table = content.get(section, {})
        if not isinstance(table, dict):
            raise InvalidError(f"{path}: {section} must be a table, [{section}]")
        yield from _from_table(section, table, str(path))


def _from_profile(profile: Profile) -> Iterator[_Given]:
    for section, table in profile.tables.items():
        yield from _from_table(section, table, f"{profile.source}, profile {profile.name}")


def _from_table(section: str, table: Mapping[str, Any], source: str) -> Iterator[_Given]:
    for key, value in table.items():
        name = key if section == "control" else f"{section}.{key}"
        _refuse_unknown(name, source)
        yield _Given(name, value, source)


def _refuse_unknown(name: str, path: str) -> None:
    if name == "token":
        raise InvalidError(f"{path}: a token does not belong in this file; put it into NOMADFN_TOKEN")
    if name == "data_dir":
        raise InvalidError(f"{path}: the data folder is not set in this file; put it into NOMADFN_DATA_DIR")
    if name not in _KINDS:
        import difflib  # Only who has mistyped needs it.

        close = difflib.get_close_matches(name, _KINDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_named_like(name))}"
        raise InvalidError(f"{path}: there is no setting {name}; {hint}")


def _named_like(name: str) -> Iterator[str]:
    """The settings of the same table."""
    section = name.rpartition(".")[0]
    return (one for one in _KINDS if one != "data_dir" and one.rpartition(".")[0] == section)


def _from_environ(environ: Mapping[str, str]) -> Iterator[_Given]:
    for name in _KINDS:
        if name.startswith(("job.", "control_job.")):
            continue
        variable = f"NOMADFN_{name.replace('.', '_').upper()}"
        if environ.get(variable):
            yield _Given(name, environ[variable], f"the environment variable {variable}")


def _from_flags(flags: Mapping[str, Any]) -> Iterator[_Given]:
    for name, value in flags.items():
        if value is not None:
            yield _Given(name, value, f"--{name.replace('_', '-')}")


def _token(environ: Mapping[str, str], variable: str) -> str:
    token = environ.get(variable, "")
    if token and not TOKEN_PATTERN.fullmatch(token):
        without = "one is made in the data folder" if variable == "NOMADFN_TOKEN" else "the owner's token is needed"
        raise InvalidError(
            f"{variable} is not a token: it starts with nf_ and has at least 16 letters, digits, - or _ behind it; "
            f"leave it unset and {without}"
        )
    return token


def _check_together(settings: Settings) -> None:
    ports = {"port": settings.port, "data_port": settings.data_port, "web_port": settings.web_port}
    for one, other in combinations(ports, 2):
        if ports[one] and ports[one] == ports[other]:
            raise InvalidError(f"{one} and {other} are both {ports[one]}; give two ports, or 0 for a free one")
    if is_loopback(settings.host):
        return
    if not settings.token and not (settings.data_dir / TOKEN_FILE).exists():
        raise InvalidError(
            f"host = {settings.host!r} can be reached from other machines, and there is no token; "
            "set NOMADFN_TOKEN, or leave host at 127.0.0.1"
        )
    if not settings.insecure_plaintext:
        raise InvalidError(
            f"host = {settings.host!r} can be reached from other machines, and tokens and data would cross the network "
            "unencrypted; put a TLS proxy before a loopback host, or accept that with --insecure-plaintext"
        )
