"""What `Dict` and `Queue` have in common: a name or an id, finding it, and how values travel."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, NamedTuple, Self

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
    UnsupportedError,
)

from .blocking import Scope, blocking, off_loop, run_sync
from .calls import storing
from .client import Client, default_client

NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
CHUNK_BYTES = wire.MAX_FRAME_BYTES * 3 // 4
"""What goes in one request of several values."""
_ID_ALPHABET = string.ascii_letters + string.digits


class Info(NamedTuple):
    """What `info()` says."""

    name: str | None
    created_at: datetime
    created_by: str | None = None


class Shared:
    """One that is found by its name or id at the first use."""

    KIND: ClassVar[str]
    """`Dict`; its operations are `dict.…`."""
    PREFIX: ClassVar[str]
    """Of its ids."""
    name: str | None
    _create: bool
    _id: str
    _found: tuple[Client, str] | None

    def __init__(self) -> None:
        kind = self.KIND
        raise InvalidError(f"a {kind} is made by {kind}.from_name(name, create_if_missing=True) or {kind}.ephemeral()")

    @classmethod
    def _make(cls, name: str | None, id: str = "", create: bool = False) -> Self:
        self = cls.__new__(cls)
        self.name = name
        self._create = create
        self._id = id
        self._found = None
        return self

    @classmethod
    def from_name(cls, name: str, *, create_if_missing: bool = False, **settings: Any) -> Self:
        """The one of that name, looked up at the first use. Unless it is made then, NotFoundError is raised."""
        cls._refuse_settings("from_name", settings)
        return cls._make(cls._check_name(name), create=create_if_missing)

    @classmethod
    def from_id(cls, id: str, **settings: Any) -> Self:
        """The one with that `object_id`."""
        cls._refuse_settings("from_id", settings)
        if not isinstance(id, str) or not id.startswith(cls.PREFIX):
            raise InvalidError(f"{id!r} is not the id of a {cls.KIND}; such ids begin with {cls.PREFIX!r}")
        return cls._make(None, id)

    @classmethod
    def ephemeral(cls, **settings: Any) -> Scope[Self]:
        """`with ….ephemeral() as one:` or `async with`: one without a name that is gone after the block."""
        cls._refuse_settings("ephemeral", settings)
        made = cls._make(None, cls._new_id())

        async def enter() -> Self:
            client = default_client()
            await client.request(f"{cls._operation('open')}", {"id": made._id, "create": True})
            made._found = client, made._id
            return made

        async def leave(error: BaseException | None) -> None:
            try:
                await made._ask("drop", {})
            except NotFoundError:
                pass

        return Scope(enter, leave)

    def __repr__(self) -> str:
        return f"{self.KIND}.from_name({self.name!r})" if self.name else f"{self.KIND}.from_id({self._id!r})"

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[Any, ...]]:
        return type(self)._make, (self.name, self._id, self._create)

    @property
    def object_id(self) -> str:
        """Its id, for `from_id`; looks it up if that has not been done."""
        return run_sync(self._target())[1]

    @blocking
    async def hydrate(self) -> Self:
        """Look it up now instead of at the first use. Raises NotFoundError."""
        await self._target()
        return self

    @blocking
    async def info(self) -> Info:
        """Its name, and when it was made."""
        found = await self._ask("open", {})
        return Info(found["name"] or None, datetime.fromtimestamp(found["created"], UTC).astimezone())

    # How it is asked.

    @classmethod
    def _operation(cls, name: str) -> str:
        return f"{cls.KIND.lower()}.{name}"

    async def _target(self) -> tuple[Client, str]:
        client = default_client()
        if self._found is None or self._found[0] is not client:
            body: dict[str, Any] = {self.KIND.lower(): self._id}
            if self.name is not None:
                body = {"name": self.name, "create": self._create, "id": self._new_id()}
            self._found = client, (await client.request(self._operation("open"), body))["id"]
        return self._found

    async def _ask(self, name: str, body: dict[str, Any]) -> Any:
        client, id = await self._target()
        return await client.request(self._operation(name), {self.KIND.lower(): id, **body})

    # How values travel.

    async def _pack(self, value: Any, what: str) -> tuple[bytes, int]:
        """A value as it travels: its pickle, or where in the blob store that lies."""
        try:
            pieces = bulk.Dumper().dump(value)
            if bulk.names_main(pieces):
                pieces = [payloads.cloud_dumps(value)]  # Who reads it has another __main__.
        except payloads.Unpicklable as error:
            text = f"{what}, of type {type(value).__name__}, cannot be put into a {self.KIND}: {error}"
            raise SerializationError(text) from None
        if (size := bulk.size_of(pieces)) <= wire.INLINE_PAYLOAD_BYTES:
            return b"".join(pieces), wire.PICKLE
        client = (await self._target())[0]
        maximum = client.connect().max_payload_bytes
        if size > maximum:
            raise RequestSizeError(
                f"{what} has {size:,} bytes pickled, {payloads.over_limit(maximum)}, or put it in a file"
            )

        def keep() -> bytes:
            with storing(what, size):
                return payloads.encode(client.blobs.write_pieces(pieces, size, SHARED_APP, durable=True))

        return await off_loop(keep), wire.PICKLE | wire.REF

    async def _read(self, data: bytes, codec: int, what: str, *, owns_blob: bool = False) -> Any:
        """Raises FileNotFoundError for one that is not in the blob store any more."""
        if not codec & wire.REF:
            return self._unpickle(lambda: payloads.loads(data), what)
        blobs, ref = (await self._target())[0].blobs, payloads.decode_ref(data)

        def read() -> Any:
            try:
                return self._unpickle(lambda: bulk.load_payload(blobs, ref), what)
            finally:
                if owns_blob:
                    blobs.delete(ref)

        return await off_loop(read)

    def _unpickle(self, load: Callable[[], Any], what: str) -> Any:
        try:
            return load()
        except OSError as error:
            raise FileNotFoundError(str(error)) from error
        except Exception as error:
            raise DeserializationError(
                f"{what} in {self!r} cannot be unpickled here: {type(error).__name__}: {error}; its type must be "
                "importable in this program too"
            ) from None

    @classmethod
    def _check_name(cls, name: str) -> str:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InvalidError(f"{cls.KIND} name {name!r} is not a name: use 1 to 64 letters, digits, '-', '_' and '.'")
        return name

    @classmethod
    def _new_id(cls) -> str:
        return cls.PREFIX + "".join(secrets.choice(_ID_ALPHABET) for _ in range(22))

    @classmethod
    def _refuse_settings(cls, of: str, settings: Mapping[str, Any]) -> None:
        for key, value in settings.items():
            if value is not None:
                raise UnsupportedError(f"{cls.KIND}.{of}({key}=...) is not supported by nomadfn; leave it out")


class Manager:
    """`Dict.objects`, `Queue.objects`: making, listing and deleting them by their names."""

    def __init__(self, kind: type[Shared]) -> None:
        self._kind = kind

    @blocking
    async def create(self, name: str, *, allow_existing: bool = False) -> None:
        """Make one. Raises AlreadyExistsError for one that is there, unless that is allowed."""
        kind = self._kind
        body = {"name": kind._check_name(name), "create": True, "id": kind._new_id()}
        await default_client().request(kind._operation("open"), {**body, "allow_existing": bool(allow_existing)})

    @blocking
    async def list(self, *, max_objects: int | None = None) -> Any:
        """Those that have a name, the newest first."""
        if max_objects is not None and max_objects < 0:
            raise InvalidError("max_objects cannot be negative")
        found = (await default_client().request(self._kind._operation("list"), {}))["found"]
        return [self._kind.from_name(one["name"]) for one in found[:max_objects]]

    @blocking
    async def delete(self, name: str, *, allow_missing: bool = False) -> None:
        """Delete one with all that is in it. Raises NotFoundError."""
        client, kind = default_client(), self._kind
        try:
            found = await client.request(kind._operation("open"), {"name": kind._check_name(name)})
        except NotFoundError:
            if allow_missing:
                return
            raise
        await client.request(kind._operation("drop"), {kind.KIND.lower(): found["id"]})


def new_token() -> str:
    return secrets.token_hex(12)
