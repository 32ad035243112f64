"""The environment variables that a function has from its secrets and its `env=`.

Secrets come first, in their order, and `env=` last: what comes later wins. Nothing here puts a value into an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from nomadfn_agent import wire

from nomadfn.exception import InvalidError, NotFoundError

OWN_PREFIX = "NOMADFN_"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
KINDS = ("nomad:", "consul:")
"""What may stand before the place of a secret on a cluster."""


def check(entries: Mapping[Any, Any], owner: str) -> dict[str, str]:
    """The entries, if they can be environment variables. Raises InvalidError that begins with `owner`."""
    for name, value in entries.items():
        if not isinstance(name, str) or not name or "=" in name or not _is_text(name):
            raise InvalidError(f"{owner} has the name {name!r}; a name must be text, not empty, and without '='")
        if not isinstance(value, str) or not _is_text(value):
            what = "text that is no UTF-8 or holds a null character" if isinstance(value, str) else type(value).__name__
            raise InvalidError(f"{owner}: the value of {name} must be a string, not {what}")
        if name.startswith(OWN_PREFIX):
            raise InvalidError(f"{owner} sets {name}; names that begin with {OWN_PREFIX} are nomadfn's own")
    return dict(entries)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def check_name(name: object) -> str:
    """A secret's name, for one that nomadfn keeps. Raises InvalidError."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidError(f"{name!r} is not the name of a secret: use 1 to 64 letters, digits, '-' and '_'")
    return name


def named(spec: wire.FunctionSpec) -> list[wire.SecretSpec]:
    """The secrets whose values are kept elsewhere."""
    return [one for one in spec.secrets if one.name]


def has_keys(secret: wire.SecretSpec, values: Mapping[str, str]) -> Mapping[str, str]:
    """`values`, which are the secret's. Raises NotFoundError where a required key is not among them."""
    missing = [key for key in secret.required_keys if key not in values]
    if missing:
        there = ", ".join(sorted(values)) or "no keys"
        raise NotFoundError(f"the secret {secret.name} lacks {', '.join(missing)}, which are required; it has {there}")
    return values


def merge(spec: wire.FunctionSpec, values: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The function's environment; `values` are those of its named secrets, by name."""
    merged: dict[str, str] = {}
    for secret in spec.secrets:
        merged.update(values[secret.name] if secret.name else secret.values)
    return merged | spec.env


def without_values(spec: wire.FunctionSpec) -> wire.FunctionSpec:
    """The spec as everybody may see it: names of variables and secrets, and no value."""
    return msgspec.structs.replace(
        spec,
        env=dict.fromkeys(spec.env, ""),
        secrets=[msgspec.structs.replace(one, values=dict.fromkeys(one.values, "")) for one in spec.secrets],
        sealed="",
        image=None if spec.image is None else _image_without_values(spec.image),
    )


def has_values(spec: wire.FunctionSpec) -> bool:
    """Whether something of the spec is not for everybody."""
    image = spec.image
    return bool(spec.env or spec.secrets) or (image is not None and image != _image_without_values(image))


def _image_without_values(image: wire.ImageSpec) -> wire.ImageSpec:
    """The recipe without its variables, and without the credentials in the addresses of its indexes."""
    steps = [
        msgspec.structs.replace(
            one,
            env=dict.fromkeys(one.env, ""),
            arguments=[CREDENTIALS.sub("***", text) for text in one.arguments],
            files={name: CREDENTIALS.sub("***", text) for name, text in one.files.items()},
        )
        for one in image.steps
    ]
    return msgspec.structs.replace(image, steps=steps)
