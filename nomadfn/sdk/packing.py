"""From the arguments of one input to what travels: its payload, or the reference of one that is large."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pickle import dumps
from typing import Any

from nomadfn_agent.wire import INLINE_PAYLOAD_BYTES
from nomadfn_agent.wire.bulk import is_short, size_of
from nomadfn_agent.wire.payload import PICKLE_PROTOCOL

from .blocking import off_loop


class Packer:
    """Makes the payload of one input, and says whether it is a blob reference."""

    __slots__ = ("_bare", "_dump", "_keep")

    def __init__(
        self, dump: Callable[[tuple[Any, ...]], list[bytes]], keep: Callable[[list[bytes], int], bytes], *, bare: bool
    ) -> None:
        """`dump` gives a pickle in pieces. `keep` puts one that is large into the blob store and may take its time.

        `bare` says that there are no arguments by name.
        """
        self._dump = dump
        self._keep = keep
        self._bare = bare

    def __call__(self, args: tuple[Any, ...]) -> tuple[bytes, bool]:
        if self._bare and len(args) == 1 and is_short(args[0]):
            return dumps((args,), PICKLE_PROTOCOL), False
        pieces = self._dump(args)
        if len(pieces) == 1 and len(pieces[0]) <= INLINE_PAYLOAD_BYTES:
            return pieces[0], False
        if (size := size_of(pieces)) <= INLINE_PAYLOAD_BYTES:
            return b"".join(pieces), False
        return self._keep(pieces, size), True

    async def apart(self, args: tuple[Any, ...]) -> tuple[bytes, bool]:
        """As a call; what is large is stored beside a running event loop."""
        if self._bare and len(args) == 1 and is_short(args[0]):
            return dumps((args,), PICKLE_PROTOCOL), False
        pieces = self._dump(args)
        if len(pieces) == 1 and len(pieces[0]) <= INLINE_PAYLOAD_BYTES:
            return pieces[0], False
        if (size := size_of(pieces)) <= INLINE_PAYLOAD_BYTES:
            return b"".join(pieces), False
        return await off_loop(partial(self._keep, pieces, size)), True
