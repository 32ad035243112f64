"""The parameters of a class in the address of one of its methods: `?size=large` is for `Model(size="large")`."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from nomadfn_agent import wire

from nomadfn.exception import InvalidError

FLAGS = {"true": True, "1": True, "false": False, "0": False}


def given(spec: wire.FunctionSpec, query: bytes) -> dict[str, Any]:
    """Those of the class's parameters that a query names, by name. Raises InvalidError."""
    types = {one.name: one.type for one in spec.parameters}
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return {name: _value(name, types[name], text) for name, text in pairs if name in types}


def _value(name: str, type_name: str, text: str) -> Any:
    try:
        match type_name:
            case "int":
                return int(text)
            case "bool":
                return FLAGS[text.lower()]
            case "str":
                return text
    except (ValueError, KeyError):
        pass
    raise InvalidError(f"?{name}={text[:80]} is no {type_name}, which the parameter {name} takes")
