"""GPU names: what `gpu=` accepts."""

from __future__ import annotations

from nomadfn.core import gpus
from nomadfn.exception import InvalidError

from .owners import said

KNOWN = (gpus.ANY, *gpus.MODELS)
MAX_COUNT = 64
_BY_UPPER = {name.upper(): name for name in KNOWN}


def parse(value: object, owner: str) -> list[str]:
    """`"H100:4"`, `"any"` or a list in order of preference, as a list of `MODEL` or `MODEL:count`.

    Raises InvalidError that names `owner`, the function. A list whose counts differ is refused.
    """
    if value is None:
        return []
    wanted = list(value) if isinstance(value, (list, tuple)) else [value]
    if not wanted:
        raise InvalidError(f"{said(owner)}: gpu=[] names no GPU; leave gpu out for a function that needs none")
    models = [_parse_one(one, owner) for one in wanted]
    counts = sorted({count for _, count in models})
    if len(counts) > 1:
        raise InvalidError(
            f"{said(owner)}: gpu={wanted!r} asks for {counts[0]} GPUs in one place and {counts[-1]} in another; "
            f"one container has one count: write the same count behind each name"
        )
    return [name if count == 1 else f"{name}:{count}" for name, count in models]


def _parse_one(value: object, owner: str) -> tuple[str, int]:
    if not isinstance(value, str):
        raise InvalidError(
            f"{said(owner)}: gpu={value!r} is not a name; write a string such as gpu='L40S' or gpu='H100:4'"
        )
    text, _, count_text = value.strip().partition(":")
    name = _BY_UPPER.get(text.strip().upper())
    if name is None:
        raise InvalidError(f"{said(owner)}: gpu={value!r} is not known; the known GPUs are {', '.join(KNOWN)}")
    if ":" not in value:
        return name, 1
    if not count_text.isdecimal() or not 1 <= int(count_text) <= MAX_COUNT:
        raise InvalidError(f"{said(owner)}: gpu={value!r} needs a count from 1 to {MAX_COUNT} behind its colon")
    return name, int(count_text)
