"""Whom a call goes to, and how its arguments become what travels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nomadfn_agent.wire import bulk
from nomadfn_agent.wire import payload as payloads

from nomadfn.exception import InvalidError, SerializationError

from .call_options import NO_OPTIONS, CallOptions
from .calls import store
from .client import Client
from .packing import Packer


@dataclass(frozen=True)
class Target:
    """A function as one control service knows it."""

    client: Client
    function_id: str
    knows_main: bool
    """Whether its containers know this program's `__main__`."""
    options: CallOptions = NO_OPTIONS
    web_url: str = ""
    """Of a web function, which takes its inputs there and nowhere else."""
    method: str = ""
    """Of a class: which of its methods."""


def packer(target: Target, function: str, kwargs: Mapping[str, Any], *, durable: bool, once: bool = False) -> Packer:
    """Makes an input's payload out of its arguments: the bytes that travel, and whether they are a reference.

    `once` says that it is for one input only.
    Raises InvalidError for a web function.
    """
    if target.web_url:
        raise InvalidError(
            f"{function} is a web function and takes HTTP requests only; send them to {target.web_url}, or call what "
            f"it builds in this process with {function}.local()"
        )
    dump, by_name, named = bulk.dump_once if once else bulk.Dumper().dump, target.knows_main, dict(kwargs)

    def pack(args: tuple[Any, ...]) -> list[bytes]:
        try:
            pieces = dump((args, named) if named else (args,))
            if not by_name and bulk.names_main(pieces):
                pieces = [payloads.cloud_dumps((args, named))]
        except payloads.Unpicklable as error:
            raise SerializationError(unpicklable_text(function, args, kwargs, error)) from None
        return pieces

    def keep(pieces: list[bytes], size: int) -> bytes:
        client = target.client
        maximum = client.connect().max_payload_bytes
        return store(pieces, size, client.blobs, maximum, target.function_id, function, durable=durable)

    return Packer(pack, keep, bare=not named)


def unpicklable_text(
    function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], error: payloads.Unpicklable
) -> str:
    """Which argument cannot be pickled."""
    named = [(f"argument {place}", value) for place, value in enumerate(args, 1)]
    named += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for name, value in named:
        try:
            payloads.dumps(value)
        except payloads.Unpicklable as why:
            return (
                f"{name} of {function}, of type {type(value).__name__}, cannot be sent to a container: {why}; "
                f"pass plain data instead, and make such things inside the function"
            )
    return f"the arguments of {function} cannot be sent to a container: {error}"
