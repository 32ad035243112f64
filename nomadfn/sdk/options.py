"""What `@app.function(...)` accepts: every setting checked here, with an error that holds its own remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from nomadfn_agent import wire

from nomadfn.core import environment
from nomadfn.exception import DeprecationError, InvalidError, UnsupportedError

from . import gpu as gpus
from .owners import said

if TYPE_CHECKING:
    from .image import Image
    from .schedule import Schedule
    from .secret import Secret

TIMEOUT_RANGE_S = (1, 86_400)
SCALEDOWN_RANGE_S = (2, 3_600)
DEFAULT_TIMEOUT_S = 300
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,63}")

SETTINGS = (
    "gpu",
    "cpu",
    "memory",
    "timeout",
    "startup_timeout",
    "retries",
    "env",
    "secrets",
    "min_containers",
    "max_containers",
    "buffer_containers",
    "scaledown_window",
    "schedule",
    "serialized",
    "name",
    "image",
)
RENAMED = {
    "keep_warm": "min_containers",
    "concurrency_limit": "max_containers",
    "container_idle_timeout": "scaledown_window",
    "allow_concurrent_inputs": "@nomadfn.concurrent(max_inputs=...) under the decorator",
}
UNSUPPORTED = {
    "volumes": "use a folder of the machine's own file system",
    "network_file_systems": "use a folder of the machine's own file system",
    "ephemeral_disk": "use the machine's own temporary folder",
    "proxy": "set HTTPS_PROXY with env={...}",
    "cloud": "containers run on your own machines; leave it out",
    "region": "containers run on your own machines; leave it out",
    "routing_region": "containers run on your own machines; leave it out",
    "nonpreemptible": "containers are not preempted; leave it out",
    "enable_memory_snapshot": "containers are forked from a warm parent already; leave it out",
    "block_network": "containers have the network of their machine; leave it out",
    "restrict_modal_access": "leave it out",
    "single_use_containers": "leave it out, or end the process yourself after an input",
    "max_inputs": "leave it out, or use @nomadfn.concurrent for several inputs at once",
    "i6pn": "leave it out",
    "is_generator": "leave it out; nomadfn sees by itself what the function is",
    "experimental_options": "leave it out",
    "include_source": "the program's source always travels; leave it out",
}


class Retries:
    """How a failed input is run again: the n-th retry waits `initial_delay * backoff_coefficient ** (n - 1)`.

    Delays are seconds from 0 to 60, `max_delay` caps them, and the coefficient is from 1 to 10. `max_retries` has to be
    given. Raises InvalidError.
    """

    def __init__(
        self,
        *misplaced: Any,
        max_retries: int | None = None,
        backoff_coefficient: float = 2.0,
        initial_delay: float = 1.0,
        max_delay: float = 60.0,
    ) -> None:
        if misplaced:
            raise InvalidError("Retries takes its settings by name: write Retries(max_retries=3)")
        if max_retries is None:
            raise InvalidError("Retries needs max_retries=, how often a failed input is run again")
        if not _is_int(max_retries) or max_retries < 0:
            raise InvalidError(f"Retries: max_retries={max_retries!r} must be a whole number, 0 or more")
        for name, value, low, high in (
            ("backoff_coefficient", backoff_coefficient, 1, 10),
            ("initial_delay", initial_delay, 0, 60),
            ("max_delay", max_delay, 0, 60),
        ):
            if not _is_number(value) or not low <= value <= high:
                unit = "" if name == "backoff_coefficient" else " seconds"
                raise InvalidError(f"Retries: {name}={value!r} must be a number from {low} to {high}{unit}")
        self.max_retries = max_retries
        self.backoff_coefficient = float(backoff_coefficient)
        self.initial_delay = float(initial_delay)
        self.max_delay = float(max_delay)

    def __repr__(self) -> str:
        return (
            f"Retries(max_retries={self.max_retries}, backoff_coefficient={self.backoff_coefficient}, "
            f"initial_delay={self.initial_delay}, max_delay={self.max_delay})"
        )


class FunctionSettings(TypedDict, total=False):
    """What `@app.function(...)` takes. Times are seconds, memory is MiB."""

    gpu: str | list[str] | None
    """`"L40S"`, `"H100:4"`, `"any"`, or a list in order of preference."""
    cpu: float | None
    memory: int | None
    timeout: float | None
    """Of one attempt, 1 to 86,400; 300 unless given."""
    startup_timeout: float | None
    """Of a container until it takes inputs; `timeout` unless given."""
    retries: int | Retries | None
    env: Mapping[str, str | None] | None
    """What is None is left out."""
    secrets: Collection[Secret] | None
    """In their order, and before `env`: what comes later wins."""
    min_containers: int | None
    max_containers: int | None
    buffer_containers: int | None
    scaledown_window: float | None
    """How long an idle container stays, 2 to 3,600; 60 unless given."""
    serialized: bool | None
    """Send the function by value, not by its module."""
    name: str | None
    image: Image | None
    """The Python environment of the containers; the app's `image=` unless given."""
    schedule: Schedule | None
    """When it runs by itself, once it is deployed: `Cron("0 9 * * 1-5")`, `Period(hours=4)`."""
    volumes: Any


def check_name(name: object, what: str) -> str:
    """An app's or a function's name. Raises InvalidError."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidError(
            f"{what} {name!r} is not a name: use 1 to 64 letters, digits, '-', '_' and '.', with no '-' or '.' in front"
        )
    return name


def check_known(settings: Mapping[str, Any], owner: str, accepted: Collection[str] = SETTINGS) -> None:
    """Refuse what `@app.function` does not take, with the way out."""
    decorator = "@app.cls" if owner.startswith("class ") else "@app.function"
    if accepted is not SETTINGS:
        decorator = "with_options"
    for name, value in settings.items():
        if name in RENAMED:
            raise DeprecationError(f"{said(owner)}: {name} is an old name; use {RENAMED[name]} instead")
        if name in UNSUPPORTED:
            if value is None or value is False or (isinstance(value, (list, tuple, dict, set)) and not value):
                continue
            if name == "include_source" and value is True:
                continue
            raise UnsupportedError(
                f"{said(owner)}: {name}= of {decorator} is not supported by nomadfn; {UNSUPPORTED[name]}"
            )
        if name not in accepted:
            raise InvalidError(f"{said(owner)}: {decorator} has no setting {name!r}; it takes {', '.join(accepted)}")


def make_spec(settings: Mapping[str, Any], owner: str) -> wire.FunctionSpec:
    """The checked settings as a spec; name, module and code are filled in by others.

    `owner` is the function's name, for the errors. Raises InvalidError, DeprecationError or UnsupportedError.
    """
    check_known(settings, owner)
    return _checked_spec(settings, owner)


VARIANT_FIELDS = {
    "cpu": "cpu",
    "memory": "memory_mib",
    "gpu": "gpu",
    "env": "env",
    "retries": "retries",
    "timeout": "timeout_s",
}
"""What `with_options` may change of a spec, and the field that it is."""
VARIANT_SCALING = ("min_containers", "max_containers", "buffer_containers", "scaledown_window")


def check_variant(settings: Mapping[str, Any], owner: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `with_options` is given, checked: fields of a spec, and of its autoscaler. None stands for not given.

    Raises InvalidError, DeprecationError or UnsupportedError.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    check_known(given, owner, (*VARIANT_FIELDS, "secrets", *VARIANT_SCALING))
    spec = _checked_spec(given, owner)
    scaling = check_autoscaler(owner, *(given.get(name) for name in VARIANT_SCALING))
    return {field: getattr(spec, field) for name, field in VARIANT_FIELDS.items() if name in given}, scaling


def _checked_spec(settings: Mapping[str, Any], owner: str) -> wire.FunctionSpec:
    get = settings.get
    timeout_s = _seconds(get("timeout"), "timeout", TIMEOUT_RANGE_S, DEFAULT_TIMEOUT_S, owner)
    return wire.FunctionSpec(
        name=owner,
        autoscaler=_autoscaler(get, owner),
        timeout_s=timeout_s,
        startup_timeout_s=_seconds(get("startup_timeout"), "startup_timeout", TIMEOUT_RANGE_S, timeout_s, owner),
        retries=_retries(get("retries"), owner),
        gpu=gpus.parse(get("gpu"), owner),
        cpu=_cpu(get("cpu"), owner),
        memory_mib=_memory(get("memory"), owner),
        env=_env(get("env"), owner),
    )


def check_generator(spec: wire.FunctionSpec) -> None:
    """Raises InvalidError where a generator function has settings that are for functions that return once."""
    if spec.is_generator and spec.retries.max_retries:
        raise InvalidError(
            f"function {spec.name}: retries= is not for generator functions, whose values cannot be taken back once "
            f"they were given; leave it out and call {spec.name}.remote_gen(...) again where that is right"
        )


def check_autoscaler(
    owner: str, min_containers: Any, max_containers: Any, buffer_containers: Any, scaledown_window: Any
) -> dict[str, Any]:
    """The settings that are given, checked one by one; None stands for one that is not given."""
    given: dict[str, Any] = {}
    for name, value, low in (
        ("min_containers", min_containers, 0),
        ("max_containers", max_containers, 1),
        ("buffer_containers", buffer_containers, 0),
    ):
        if value is None:
            continue
        if not _is_int(value) or value < low:
            raise InvalidError(f"{said(owner)}: {name}={value!r} must be a whole number, {low} or more")
        given[name] = value
    if scaledown_window is not None:
        given["scaledown_window_s"] = _seconds(scaledown_window, "scaledown_window", SCALEDOWN_RANGE_S, 60, owner)
    if "min_containers" in given and "max_containers" in given and given["min_containers"] > given["max_containers"]:
        raise InvalidError(
            f"{said(owner)}: min_containers={given['min_containers']} is more than "
            f"max_containers={given['max_containers']}; raise max_containers or lower min_containers"
        )
    return given


def _autoscaler(get: Callable[[str], Any], owner: str) -> wire.AutoscalerSettings:
    given = check_autoscaler(
        owner, get("min_containers"), get("max_containers"), get("buffer_containers"), get("scaledown_window")
    )
    return wire.AutoscalerSettings(**given)


def _seconds(value: Any, name: str, bounds: tuple[int, int], default: float, owner: str) -> float:
    if value is None:
        return float(default)
    low, high = bounds
    if not _is_number(value) or not low <= value <= high:
        raise InvalidError(f"{said(owner)}: {name}={value!r} must be from {low} to {high:,} seconds")
    return float(value)


def _retries(value: Any, owner: str) -> wire.RetryPolicy:
    if value is None:
        return wire.RetryPolicy()
    if isinstance(value, Retries):
        return wire.RetryPolicy(value.max_retries, value.backoff_coefficient, value.initial_delay, value.max_delay)
    if not _is_int(value) or value < 0:
        raise InvalidError(
            f"{said(owner)}: retries={value!r} must be a whole number, 0 or more, or Retries(max_retries=...)"
        )
    return wire.RetryPolicy(max_retries=value, backoff_coefficient=1.0, initial_delay_s=1.0)


def _cpu(value: Any, owner: str) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or not 0 < value <= 1024:
        raise InvalidError(f"{said(owner)}: cpu={value!r} must be a number of cores, such as cpu=2 or cpu=0.5")
    return float(value)


def _memory(value: Any, owner: str) -> int | None:
    if value is None:
        return None
    if not _is_int(value) or value < 1:
        raise InvalidError(f"{said(owner)}: memory={value!r} must be a whole number of MiB, such as memory=1024")
    return int(value)


def _env(value: Any, owner: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidError(f"{said(owner)}: env= must be a dictionary of strings, such as env={{'A': '1'}}")
    given = {name: text for name, text in value.items() if text is not None}
    return environment.check(given, f"{said(owner)}: env=")


def secrets(value: Any, owner: str) -> tuple[Secret, ...]:
    """The secrets of a function. Raises InvalidError."""
    if value is None:
        return ()
    from .secret import Secret

    if isinstance(value, Secret) or not isinstance(value, Collection) or isinstance(value, str):
        raise InvalidError(f"{said(owner)}: secrets= must be a list, such as secrets=[Secret.from_name('database')]")
    for one in value:
        if not isinstance(one, Secret):
            raise InvalidError(f"{said(owner)}: secrets= has a {type(one).__name__}; it takes what Secret.from_… made")
    return tuple(value)


def image(value: Any, owner: str) -> Image | None:
    """The image of a function. Raises InvalidError."""
    if value is None:
        return None
    from .image import check

    return check(value, f"function {owner}")


def flag(value: Any, name: str, owner: str) -> bool:
    """A setting that is on or off; None is off. Raises InvalidError."""
    if value is None or isinstance(value, bool):
        return bool(value)
    raise InvalidError(f"{said(owner)}: {name}={value!r} must be True or False")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
