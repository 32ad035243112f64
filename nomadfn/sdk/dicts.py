"""`Dict`: values by key that programs and containers share, kept by the control service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, ClassVar

from nomadfn_agent import wire
from nomadfn_agent.wire import payload as payloads

from nomadfn.exception import ServiceError, UnsupportedError

from . import dict_keys
from .blocking import blocking, run_async, run_sync
from .shared import CHUNK_BYTES, Manager, Shared, new_token

READ_TRIES = 5
_MISSING = object()


class Dict(Shared):
    """Values by key that every program and container of a control service can reach. Made by `Dict.from_name`.

    Keys are compared by value where they are strings, bytes, numbers, booleans, None or tuples of them, each type
    apart; others by their pickles. Values are pickled. What is written is durable once the call returns. An entry that
    was neither read nor written for 7 days is dropped. `d[key]`, `d[key] = value`, `del d[key]` and `key in d` block;
    in a coroutine use the methods, each of which has `.aio`.
    """

    KIND = "Dict"
    PREFIX = "di-"
    objects: ClassVar[Manager]

    @classmethod
    def delete(cls, name: str, **settings: Any) -> None:
        """Delete a Dict with all that is in it; as `Dict.objects.delete`."""
        cls.objects.delete(name, **settings)

    def __getattr__(self, name: str) -> Any:
        if name in ("popitem", "setdefault"):
            raise UnsupportedError(
                f"Dict.{name} is not supported by nomadfn; use get, pop and put(skip_if_exists=True)"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # One entry.

    @blocking
    async def get(self, key: Any, default: Any = None) -> Any:
        """The value of `key`, or `default` where there is none."""
        return await self._get(key, default)

    async def _get(self, key: Any, default: Any) -> Any:
        data = dict_keys.encode(key)
        why: Exception | None = None
        for _ in range(READ_TRIES):
            said = await self._ask("get", {"key": data})
            if not said["found"]:
                return default
            try:
                return await self._read(said["values"][0], said["codecs"][0], f"the value of {key!r}")
            except FileNotFoundError as error:
                why = error  # It was written anew meanwhile.
        raise ServiceError(f"the value of {key!r} in {self!r} could not be read, {READ_TRIES} times: {why}; try again")

    @blocking
    async def contains(self, key: Any) -> bool:
        """Whether there is an entry for `key`."""
        return bool((await self._ask("get", {"key": dict_keys.encode(key), "bare": True}))["found"])

    @blocking
    async def put(self, key: Any, value: Any, *, skip_if_exists: bool = False) -> bool:
        """Write an entry. With `skip_if_exists` one that is there stays; False says so."""
        packed, codec = await self._pack(value, f"the value of {key!r}")
        body = {"keys": [dict_keys.encode(key)], "values": [packed], "codecs": [codec], "absent": skip_if_exists}
        written = bool((await self._ask("put", {**body, "token": new_token()}))["written"])
        if not written and codec & wire.REF:
            (await self._target())[0].blobs.delete(payloads.decode_ref(packed))
        return written

    @blocking
    async def pop(self, key: Any, default: Any = _MISSING) -> Any:
        """Take an entry out and give its value; without one `default`, or KeyError."""
        said = await self._ask("pop", {"key": dict_keys.encode(key), "token": new_token()})
        if said["found"]:
            data, codec = said["values"][0], said["codecs"][0]
            return await self._read(data, codec, f"the value of {key!r}", owns_blob=True)
        if default is _MISSING:
            raise KeyError(f"{key!r} is not in {self!r}")
        return default

    def __getitem__(self, key: Any) -> Any:
        value = run_sync(self._get(key, _MISSING))
        if value is _MISSING:
            raise KeyError(f"{key!r} is not in {self!r}")
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self.put(key, value)

    def __delitem__(self, key: Any) -> None:
        self.pop(key)

    def __contains__(self, key: Any) -> bool:
        return self.contains(key)

    # All entries.

    @blocking
    async def update(self, other: Mapping[Any, Any] | None = None, /, **more: Any) -> None:
        """Write several entries. More than about 190 KiB of them go in parts, each all at once."""
        entries = {**({key: other[key] for key in other} if other else {}), **more}
        keys: list[bytes] = []
        values: list[bytes] = []
        codecs: list[int] = []
        size = 0
        for key, value in entries.items():
            packed, codec = await self._pack(value, f"the value of {key!r}")
            data = dict_keys.encode(key)
            if keys and size + len(packed) + len(data) > CHUNK_BYTES:
                await self._put_all(keys, values, codecs)
                keys, values, codecs, size = [], [], [], 0
            size += len(packed) + len(data)
            keys.append(data)
            values.append(packed)
            codecs.append(codec)
        if keys:
            await self._put_all(keys, values, codecs)

    async def _put_all(self, keys: list[bytes], values: list[bytes], codecs: list[int]) -> None:
        await self._ask("put", {"keys": keys, "values": values, "codecs": codecs, "token": new_token()})

    @blocking
    async def len(self) -> int:
        """How many entries there are."""
        return int((await self._ask("len", {}))["len"])

    @blocking
    async def clear(self) -> None:
        """Remove all entries."""
        await self._ask("clear", {})

    @property
    def keys(self) -> Walk:
        """`d.keys()`: an iterator over the keys, in no order that means anything; `.aio` for `async for`."""
        return Walk(self, lambda key, _: key, values=False)

    @property
    def values(self) -> Walk:
        """`d.values()`: as `keys`, over the values."""
        return Walk(self, lambda _, value: value, values=True)

    @property
    def items(self) -> Walk:
        """`d.items()`: as `keys`, over pairs of key and value."""
        return Walk(self, lambda key, value: (key, value), values=True)

    async def _next(self, after: bytes | None, *, values: bool) -> tuple[bytes | None, list[tuple[Any, Any]]]:
        """The entries behind a key, and the last key; None for that at the end."""
        said = await self._ask("page", {"after": after, "values": values})
        if not said["keys"]:
            return None, []
        pairs: list[tuple[Any, Any]] = []
        for place, data in enumerate(said["keys"]):
            key, value = dict_keys.decode(data, repr(self)), None
            if values:
                try:
                    value = await self._read(said["values"][place], said["codecs"][place], f"the value of {key!r}")
                except FileNotFoundError:
                    value = await self._get(key, _MISSING)  # It was written anew meanwhile, or removed.
            if value is not _MISSING:
                pairs.append((key, value))
        return said["keys"][-1], pairs


Dict.objects = Manager(Dict)


class Walk:
    """`d.keys`, `d.values`, `d.items`: a plain generator when called, an async one by `.aio`."""

    __slots__ = ("_dict", "_pick", "_values")

    def __init__(self, found: Dict, pick: Callable[[Any, Any], Any], *, values: bool) -> None:
        self._dict = found
        self._pick = pick
        self._values = values

    def __call__(self) -> Iterator[Any]:
        after: bytes | None = None
        while True:
            after, pairs = run_sync(self._dict._next(after, values=self._values))
            if after is None:
                return
            for key, value in pairs:
                yield self._pick(key, value)

    async def aio(self) -> AsyncIterator[Any]:
        after: bytes | None = None
        while True:
            after, pairs = await run_async(self._dict._next(after, values=self._values))
            if after is None:
                return
            for key, value in pairs:
                yield self._pick(key, value)
