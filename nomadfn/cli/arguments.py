"""Command-line arguments of an entrypoint, from its signature; Typer does the parsing.

`def main(size: int, name="x", verbose: bool = False)` is `--size` (required), `--name` and
`--verbose / --no-verbose`. What is not given on the command line is not passed, so that defaults stay Python's own.
"""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from nomadfn.exception import InvalidError

DATETIME_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"]
ACCEPTED = "str, int, float, bool, datetime, Literal[…], an Enum, or Optional of these"


def parse_arguments(
    function: Callable[..., Any], program: str, words: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The args and kwargs for `function` that `words` say; `program` is what usage lines call it.

    Ends the process with code 2 for words that do not fit, and with 0 after `--help`. Raises `InvalidError` for a
    signature that the command line cannot give.
    """
    signature = _readable_signature(function, program)
    if signature is None:
        return tuple(words), {}
    if not words and all(one.default is not inspect.Parameter.empty for one in signature.parameters.values()):
        return (), {}
    received: list[dict[str, Any]] = []

    def receive(**values: Any) -> None:
        received.append({name: value for name, value in values.items() if value is not None})

    receive.__signature__ = signature  # type: ignore[attr-defined]
    receive.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
    receive.__doc__ = inspect.getdoc(function)
    parser = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    parser.command()(receive)
    try:
        parser(list(words), prog_name=program)
    except SystemExit:
        if not received:
            raise
    return (), received[0]


def _readable_signature(function: Callable[..., Any], program: str) -> inspect.Signature | None:
    """The signature with Typer's annotations; None for `*args` alone, which takes the words as they are."""
    try:
        hints = typing.get_type_hints(function)
    except Exception as error:
        raise InvalidError(f"the annotations of {program} cannot be read: {error}") from None
    parameters = list(inspect.signature(function).parameters.values())
    if [one.kind for one in parameters] == [inspect.Parameter.VAR_POSITIONAL]:
        return None
    return inspect.Signature([_option(one, hints, program) for one in parameters])


def _option(parameter: inspect.Parameter, hints: dict[str, Any], program: str) -> inspect.Parameter:
    if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
        raise InvalidError(
            f"{program} cannot be run from the command line: its parameter {parameter} cannot be given there; "
            "use named parameters, or *args alone"
        )
    kind = _plain_type(hints.get(parameter.name, str), parameter.name, program)
    flag = f"--{parameter.name.replace('_', '-')}"
    required = parameter.default is inspect.Parameter.empty
    # A default that is of the option's type is shown as it is; any other stays Python's, and is only described.
    shown = kind in (str, int, float, bool) and type(parameter.default) is kind
    described = False if required or parameter.default is None else f"{parameter.default}"
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        show_default=True if shown else described,
        formats=DATETIME_FORMATS if kind is datetime else None,
        metavar="<datetime>" if kind is datetime else None,
    )
    return inspect.Parameter(
        parameter.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=parameter.default if required or shown else None,
        annotation=Annotated[kind if required else kind | None, option],
    )


def _plain_type(hint: Any, name: str, program: str) -> Any:
    """The type that an option converts to: `Optional[int]` is an int."""
    if get_origin(hint) in (Union, types.UnionType):
        members = [one for one in get_args(hint) if one is not type(None)]
        if len(members) == 1:
            return _plain_type(members[0], name, program)
    if hint in (str, int, float, bool, datetime) or get_origin(hint) is Literal:
        return hint
    if hint in (Any, object):
        return str
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint
    shown = getattr(hint, "__name__", None) if isinstance(hint, type) else None
    raise InvalidError(
        f"parameter {name} of {program} is annotated with {shown or hint}, which the command line cannot give; "
        f"annotate it with {ACCEPTED}"
    )
