"""Variants: a function with some settings changed or, of a class, with its own parameters; each has its own pool.

A variant is a `Function` of its app like any other, named after its base and a digest of what differs, as in
`Model@3fa29c1d07`, so that whoever asks for the same one gets the same one. Its spec is always its base's with the
changes, so that it follows each deploy of its base.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from nomadfn_agent import wire

from ..exception import InvalidError, ResourceExhaustedError

if TYPE_CHECKING:  # A program imports this, and nothing else of the core.
    from .model import App, Function
    from .state import State

KEEP_S = 24 * 3600.0
"""A variant that nobody has used for this long, and that has no containers, is forgotten."""
MAX_VARIANTS = 1_000
"""Of one app. The one that was not used for the longest time makes room."""
MAX_ARGUMENTS_BYTES = 16 * 1024
INT_RANGE = range(-(2**63), 2**63)
SETTINGS = (
    "gpu",
    "cpu",
    "memory_mib",
    "env",
    "secrets",
    "retries",
    "timeout_s",
    "max_inputs",
    "target_inputs",
    "max_batch_size",
    "batch_wait_ms",
)
"""Fields of a spec that a variant may change."""
AUTOSCALER = ("min_containers", "max_containers", "buffer_containers", "scaledown_window_s")
_TYPES: dict[str, type] = {"str": str, "int": int, "bool": bool, "bytes": bytes}
_encode = msgspec.json.Encoder(order="deterministic").encode


def refusal(function: Function, method: str) -> str:
    """Why a call of this method cannot be taken; empty where it can."""
    spec = function.spec
    name = spec.program_name
    if not spec.methods:
        return f"{name} is a function and has no methods, so no {method}; call {name} itself"
    if spec.method(method) is None:
        listed = ", ".join(one.name for one in spec.methods)
        return f"class {name} has no method {method!r}; it has {listed}" if method else f"say which method: {listed}"
    return _missing(spec) if is_open(spec) else ""


def is_open(spec: wire.FunctionSpec) -> bool:
    """Whether it is a class without the values of parameters that need one: nothing of it can run."""
    return any(one.default is None and one.name not in spec.arguments for one in spec.parameters)


def _missing(spec: wire.FunctionSpec) -> str:
    missing = [one.name for one in spec.parameters if one.default is None and one.name not in spec.arguments]
    name = spec.program_name
    return f"class {name} needs {', '.join(missing)}: write {name}({', '.join(f'{one}=...' for one in missing)})"


def without_open_minimum(spec: wire.FunctionSpec) -> wire.FunctionSpec:
    """A class that cannot run without parameters keeps no containers of its own; its variants may."""
    if not spec.autoscaler.min_containers or not is_open(spec):
        return spec
    return msgspec.structs.replace(spec, autoscaler=msgspec.structs.replace(spec.autoscaler, min_containers=0))


def arguments(spec: wire.FunctionSpec, given: Mapping[str, Any]) -> dict[str, str]:
    """The values of a class's parameters as text, those with a default too. Raises InvalidError."""
    name, known = spec.program_name, {one.name: one for one in spec.parameters}
    for key in given:
        if key not in known:
            has = ", ".join(known) or "none"
            raise InvalidError(f"{name} has no parameter {key!r}; its parameters: {has}")
    texts = {}
    for parameter in spec.parameters:
        if parameter.name in given:
            texts[parameter.name] = as_text(f"{name}({parameter.name}=...)", parameter.type, given[parameter.name])
        elif parameter.default is not None:
            texts[parameter.name] = parameter.default
    closed = msgspec.structs.replace(spec, arguments=texts)
    if is_open(closed):
        raise InvalidError(_missing(closed))
    if sum(map(len, texts.values())) > MAX_ARGUMENTS_BYTES:
        raise InvalidError(
            f"the parameters of {name} have more than {MAX_ARGUMENTS_BYTES:,} bytes; pass large values to its methods"
        )
    return texts


def as_text(what: str, type_name: str, value: Any) -> str:
    """One value of a parameter of that type. Raises InvalidError that begins with `what`."""
    wanted = _TYPES[type_name]
    if type(value) is not wanted:
        raise InvalidError(f"{what} takes {_article(type_name)}, not {value!r} of type {type(value).__name__}")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value not in INT_RANGE:
        raise InvalidError(f"{what} takes an int of 64 bits, and {value} is out of its range")
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise InvalidError(f"{what} must be text that UTF-8 can hold") from None
    return str(value)


def _article(type_name: str) -> str:
    return f"an {type_name}" if type_name == "int" else f"a {type_name}"


def name_of(variation: wire.Variation) -> str:
    """The variant's name in its app: the same for the same differences, whoever asks."""
    return f"{variation.base}@{hashlib.sha256(_encode(variation)).hexdigest()[:10]}"


def make_spec(base: wire.FunctionSpec, variation: wire.Variation) -> wire.FunctionSpec:
    """The spec of a variant of `base`. Raises InvalidError where `base` cannot have it."""
    changes: dict[str, Any] = {field: getattr(variation.values, field) for field in variation.fields}
    if "env" in changes:
        changes["env"] = base.env | changes["env"]
    if "secrets" in changes:
        changes["secrets"] = [one for one in base.secrets if one.of_image] + changes["secrets"]
    if "max_batch_size" in changes and not base.max_batch_size:
        raise InvalidError(
            f"with_batching: {base.name} is not @batched, and gets no lists; put @nomadfn.batched(...) above its `def`"
        )
    if "max_inputs" in changes and "target_inputs" not in changes:
        changes["target_inputs"] = None
    known = {one.name for one in base.parameters}
    if gone := [name for name in variation.arguments if name not in known]:
        raise InvalidError(f"{base.name} has no parameter {', '.join(gone)} any more")
    # What a variant is asked for once must not keep containers for ever: a minimum has to be said for it.
    scaling = {"min_containers": 0, **variation.autoscaler}
    scaler = msgspec.structs.replace(base.autoscaler, **scaling)
    if scaler.max_containers is not None and scaler.min_containers > scaler.max_containers:
        raise InvalidError(
            f"with_options: min_containers={scaler.min_containers} is more than "
            f"max_containers={scaler.max_containers} of {base.name}"
        )
    closed = {one.name: one.default for one in base.parameters if one.default is not None} | variation.arguments
    spec = msgspec.structs.replace(
        base,
        **changes,
        name=name_of(variation),
        variant_of=base.name,
        arguments=closed,
        autoscaler=scaler,
        schedule=None,  # what runs by itself does so once
    )
    if is_open(spec):
        raise InvalidError(_missing(spec))
    return spec


def is_idle(function: Function) -> bool:
    return not (function.containers or function.waiting_inputs or function.running_inputs)


def note_use(state: State, now: float) -> None:
    """Variants that have containers or inputs are in use now."""
    for function in state.active.values():
        if function.variation is not None:
            function.used_at = now


def unused(state: State, now: float) -> list[Function]:
    """The variants that are to be forgotten."""
    return [
        function
        for function in state.functions.values()
        if function.variation is not None and function.app and is_idle(function) and now - function.used_at > KEEP_S
    ]


def to_make_room(app: App) -> Function | None:
    """The variant that has to go before the app may have another one. Raises ResourceExhaustedError."""
    there = [one for one in app.functions.values() if one.variation is not None]
    if len(there) < MAX_VARIANTS:
        return None
    idle = [one for one in there if is_idle(one)]
    if not idle:
        raise ResourceExhaustedError(
            f"app {app.name} has {len(there):,} variants that are all in use, and may have {MAX_VARIANTS:,}; "
            f"use fewer sets of parameters and options at once",
            limit="variants of one app",
            value=len(there),
            maximum=MAX_VARIANTS,
            retry_after_s=10.0,
        )
    return min(idle, key=lambda one: one.used_at)
