"""`Dict`: values by key that programs and containers share, kept by the control service."""

from __future__ import annotations

import builtins
import re
import secrets
import string
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, NamedTuple

from nomadfn_agent import wire
from nomadfn_agent.wire import bulk
from nomadfn_agent.wire import payload as payloads
from nomadfn_agent.wire.store import SHARED_APP

from nomadfn.exception import (
    DeserializationError,
    InvalidError,
    NotFoundError,
    RequestSizeError,
    SerializationError,
    ServiceError,
    UnsupportedError,
)

from . import dict_keys
from .blocking import Scope, blocking, off_loop, run_async, run_sync
from .calls import storing
from .client import Client, default_client

NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
CHUNK_BYTES = wire.MAX_FRAME_BYTES * 3 // 4
"""What goes in one request of `update`."""
READ_TRIES = 5
_ID_ALPHABET = string.ascii_letters + string.digits
_MISSING = object()


class DictInfo(NamedTuple):
    """What `info()` says of a Dict."""

    name: str | None
    created_at: datetime
    created_by: str | None = None


class DictManager:
    """`Dict.objects`: making, listing and deleting Dicts by their names."""

    @blocking
    async def create(self, name: str, *, allow_existing: bool = False) -> None:
        """Make a Dict. Raises AlreadyExistsError for one that is there, unless that is allowed."""
        body = {"name": _check_name(name), "create": True, "id": _new_id(), "allow_existing": bool(allow_existing)}
        await default_client().request("dict.open", body)

    @blocking
    async def list(self, *, max_objects: int | None = None) -> builtins.list[Dict]:
        """The Dicts that have a name, the newest first."""
        if max_objects is not None and max_objects < 0:
            raise InvalidError("max_objects cannot be negative")
        found = (await default_client().request("dict.list", {}))["dicts"]
        return [Dict.from_name(one["name"]) for one in found[:max_objects]]

    @blocking
    async def delete(self, name: str, *, allow_missing: bool = False) -> None:
        """Delete a Dict with all that is in it. Raises NotFoundError."""
        client = default_client()
        try:
            found = await client.request("dict.open", {"name": _check_name(name)})
        except NotFoundError:
            if allow_missing:
                return
            raise
        await client.request("dict.drop", {"dict": found["dict"]})


class Dict:
    """Values by key that every program and container of a control service can reach. Made by `Dict.from_name`.

    Keys are compared by value where they are strings, bytes, numbers, booleans, None or tuples of them, each type
    apart; others by their pickles. Values are pickled. What is written is durable once the call returns. An entry that
    was neither read nor written for 7 days is dropped. `d[key]`, `d[key] = value`, `del d[key]` and `key in d` block;
    in a coroutine use the methods, each of which has `.aio`.
    """

    objects: ClassVar[DictManager] = DictManager()
    name: str | None
    _create: bool
    _id: str
    _found: tuple[Client, str] | None

    def __init__(self) -> None:
        raise InvalidError("a Dict is made by Dict.from_name(name, create_if_missing=True) or Dict.ephemeral()")

    @classmethod
    def _make(cls, name: str | None, id: str = "", *, create: bool = False) -> Dict:
        self = cls.__new__(cls)
        self.name = name
        self._create = create
        self._id = id
        self._found = None
        return self

    @classmethod
    def from_name(cls, name: str, *, create_if_missing: bool = False, **settings: Any) -> Dict:
        """The Dict of that name, looked up at the first use. Unless it is made then, NotFoundError is raised."""
        _refuse_settings("from_name", settings)
        return cls._make(_check_name(name), create=create_if_missing)

    @classmethod
    def from_id(cls, dict_id: str, **settings: Any) -> Dict:
        """The Dict with that `object_id`."""
        _refuse_settings("from_id", settings)
        if not isinstance(dict_id, str) or not dict_id.startswith("di-"):
            raise InvalidError(f"{dict_id!r} is not the id of a Dict; such ids begin with 'di-'")
        return cls._make(None, dict_id)

    @classmethod
    def ephemeral(cls, **settings: Any) -> Scope[Dict]:
        """`with Dict.ephemeral() as d:` or `async with`: one without a name that is gone after the block."""
        _refuse_settings("ephemeral", settings)
        made = cls._make(None, _new_id())

        async def enter() -> Dict:
            client = default_client()
            await client.request("dict.open", {"id": made._id, "create": True})
            made._found = client, made._id
            return made

        async def leave(error: BaseException | None) -> None:
            try:
                await made._ask("dict.drop", {})
            except NotFoundError:
                pass

        return Scope(enter, leave)

    @classmethod
    def delete(cls, name: str, **settings: Any) -> None:
        """Delete a Dict with all that is in it; as `Dict.objects.delete`."""
        cls.objects.delete(name, **settings)

    def __repr__(self) -> str:
        return f"Dict.from_name({self.name!r})" if self.name else f"Dict.from_id({self._id!r})"

    def __reduce__(self) -> tuple[Callable[..., Dict], tuple[Any, ...]]:
        return _unpickled, (self.name, self._id, self._create)

    def __getattr__(self, name: str) -> Any:
        if name in ("popitem", "setdefault"):
            raise UnsupportedError(
                f"Dict.{name} is not supported by nomadfn; use put(skip_if_exists=True), get and pop"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def object_id(self) -> str:
        """Its id, for `Dict.from_id`; looks the Dict up if that has not been done."""
        return run_sync(self._target())[1]

    @blocking
    async def hydrate(self) -> Dict:
        """Look it up now instead of at the first use. Raises NotFoundError."""
        await self._target()
        return self

    @blocking
    async def info(self) -> DictInfo:
        """Its name, and when it was made."""
        client, id = await self._target()
        found = await client.request("dict.open", {"dict": id})
        return DictInfo(found["name"] or None, datetime.fromtimestamp(found["created"], UTC).astimezone())

    # One entry.

    @blocking
    async def get(self, key: Any, default: Any = None) -> Any:
        """The value of `key`, or `default` where there is none."""
        return await self._get(key, default)

    async def _get(self, key: Any, default: Any) -> Any:
        data = dict_keys.encode(key)
        why: Exception | None = None
        for _ in range(READ_TRIES):
            said = await self._ask("dict.get", {"key": data})
            if not said["found"]:
                return default
            try:
                return await self._read(said["values"][0], said["codecs"][0], key)
            except FileNotFoundError as error:
                why = error  # It was written anew meanwhile.
        raise ServiceError(f"the value of {key!r} in {self!r} could not be read, {READ_TRIES} times: {why}; try again")

    @blocking
    async def contains(self, key: Any) -> bool:
        """Whether there is an entry for `key`."""
        return bool((await self._ask("dict.get", {"key": dict_keys.encode(key), "bare": True}))["found"])

    @blocking
    async def put(self, key: Any, value: Any, *, skip_if_exists: bool = False) -> bool:
        """Write an entry. With `skip_if_exists` one that is there stays; False says so."""
        packed, codec = await self._pack(key, value)
        body = {"keys": [dict_keys.encode(key)], "values": [packed], "codecs": [codec], "absent": skip_if_exists}
        written = bool((await self._ask("dict.put", {**body, "token": _token()}))["written"])
        if not written and codec & wire.REF:
            (await self._target())[0].blobs.delete(payloads.decode_ref(packed))
        return written

    @blocking
    async def pop(self, key: Any, default: Any = _MISSING) -> Any:
        """Take an entry out and give its value; without one `default`, or KeyError."""
        said = await self._ask("dict.pop", {"key": dict_keys.encode(key), "token": _token()})
        if said["found"]:
            data, codec = said["values"][0], said["codecs"][0]
            try:
                return await self._read(data, codec, key)
            finally:
                if codec & wire.REF:
                    (await self._target())[0].blobs.delete(payloads.decode_ref(data))
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
            packed, codec = await self._pack(key, value)
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
        await self._ask("dict.put", {"keys": keys, "values": values, "codecs": codecs, "token": _token()})

    @blocking
    async def len(self) -> int:
        """How many entries there are."""
        return int((await self._ask("dict.len", {}))["len"])

    @blocking
    async def clear(self) -> None:
        """Remove all entries."""
        await self._ask("dict.clear", {})

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
        said = await self._ask("dict.page", {"after": after, "values": values})
        if not said["keys"]:
            return None, []
        pairs: list[tuple[Any, Any]] = []
        for place, data in enumerate(said["keys"]):
            key, value = dict_keys.decode(data, repr(self)), None
            if values:
                try:
                    value = await self._read(said["values"][place], said["codecs"][place], key)
                except FileNotFoundError:
                    value = await self._get(key, _MISSING)  # It was written anew meanwhile, or removed.
            if value is not _MISSING:
                pairs.append((key, value))
        return said["keys"][-1], pairs

    # How it is asked.

    async def _target(self) -> tuple[Client, str]:
        client = default_client()
        if self._found is None or self._found[0] is not client:
            body: dict[str, Any] = {"dict": self._id}
            if self.name is not None:
                body = {"name": self.name, "create": self._create, "id": _new_id()}
            self._found = client, (await client.request("dict.open", body))["dict"]
        return self._found

    async def _ask(self, operation: str, body: dict[str, Any]) -> Any:
        client, id = await self._target()
        return await client.request(operation, {"dict": id, **body})

    async def _pack(self, key: Any, value: Any) -> tuple[bytes, int]:
        """A value as it travels: its pickle, or where in the blob store that lies."""
        try:
            pieces = bulk.Dumper().dump(value)
            if bulk.names_main(pieces):
                pieces = [payloads.cloud_dumps(value)]  # Who reads it has another __main__.
        except payloads.Unpicklable as error:
            text = f"the value of {key!r}, of type {type(value).__name__}, cannot be put into a Dict: {error}"
            raise SerializationError(text) from None
        if (size := bulk.size_of(pieces)) <= wire.INLINE_PAYLOAD_BYTES:
            return b"".join(pieces), wire.PICKLE
        client = (await self._target())[0]
        maximum = client.connect().max_payload_bytes
        if size > maximum:
            raise RequestSizeError(
                f"the value of {key!r} has {size:,} bytes pickled, {payloads.over_limit(maximum)}, or put it in a file "
                "and keep its path in the Dict"
            )

        def keep() -> bytes:
            with storing(f"the value of {key!r}", size):
                return payloads.encode(client.blobs.write_pieces(pieces, size, SHARED_APP, durable=True))

        return await off_loop(keep), wire.PICKLE | wire.REF

    async def _read(self, data: bytes, codec: int, key: Any) -> Any:
        """Raises FileNotFoundError for one that is not in the blob store any more."""
        if not codec & wire.REF:
            return self._unpickle(lambda: payloads.loads(data), key)
        blobs, ref = (await self._target())[0].blobs, payloads.decode_ref(data)
        return await off_loop(lambda: self._unpickle(lambda: bulk.load_payload(blobs, ref), key))

    def _unpickle(self, load: Callable[[], Any], key: Any) -> Any:
        try:
            return load()
        except OSError as error:
            raise FileNotFoundError(str(error)) from error
        except Exception as error:
            raise DeserializationError(
                f"the value of {key!r} in {self!r} cannot be unpickled here: {type(error).__name__}: {error}; its type "
                "must be importable in this program too"
            ) from None


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


def _unpickled(name: str | None, id: str, create: bool) -> Dict:
    return Dict._make(name, id, create=create)


def _check_name(name: str) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidError(f"Dict name {name!r} is not a name: use 1 to 64 letters, digits, '-', '_' and '.'")
    return name


def _new_id() -> str:
    return "di-" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(22))


def _token() -> str:
    return secrets.token_hex(12)


def _refuse_settings(of: str, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if value is not None:
            raise UnsupportedError(f"Dict.{of}({key}=...) is not supported by nomadfn; leave it out")
