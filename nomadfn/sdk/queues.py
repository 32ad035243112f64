"""`Queue`: values in line that programs and containers share, kept by the control service."""

from __future__ import annotations

import queue
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, ClassVar

from nomadfn.exception import InvalidError, ResourceExhaustedError

from .blocking import blocking, pause, run_async, run_sync
from .shared import CHUNK_BYTES, Manager, Shared, new_token

POLL_S = 25.0
"""How long one question waits for a value at the service."""
DAY_S = 24 * 3600
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
"""Between two tries to put into a queue that is full."""


class Queue(Shared):
    """Values in line, first in, first out, for every program and container of a control service.

    Made by `Queue.from_name(name, create_if_missing=True)` or `Queue.ephemeral()`. Each `partition`, a name of 1 to 64
    bytes, is a line of its own of at most 5,000 values, and is cleared 24 hours (or `partition_ttl` seconds) after the
    last `put`. Values are pickled; what was put is durable. A value goes to one who gets it. Each method has `.aio`.
    """

    KIND = "Queue"
    PREFIX = "qu-"
    objects: ClassVar[Manager]

    @classmethod
    def delete(cls, name: str, **settings: Any) -> None:
        """Delete a Queue with all that is in it; as `Queue.objects.delete`."""
        cls.objects.delete(name, **settings)

    @staticmethod
    def validate_partition_key(partition: str | None) -> bytes:
        """The bytes of a partition's name. Raises InvalidError."""
        if partition is None:
            return b""
        key = partition.encode() if isinstance(partition, str) else b""
        if not 1 <= len(key) <= 64:
            raise InvalidError(f"Queue partition key must be between 1 and 64 bytes of text, not {partition!r}")
        return key

    @blocking
    async def put(
        self,
        v: Any,
        block: bool = True,
        timeout: float | None = None,
        *,
        partition: str | None = None,
        partition_ttl: int = DAY_S,
    ) -> None:
        """Add a value at the end. Where the queue is full, wait, `timeout` seconds at the most; then `queue.Full`."""
        await self._put([v], block, timeout, partition, partition_ttl)

    @blocking
    async def put_many(
        self,
        vs: Sequence[Any],
        block: bool = True,
        timeout: float | None = None,
        *,
        partition: str | None = None,
        partition_ttl: int = DAY_S,
    ) -> None:
        """As `put`, for several. More than about 190 KiB of them go in parts, each all at once."""
        await self._put(list(vs), block, timeout, partition, partition_ttl)

    async def _put(
        self, items: list[Any], block: bool, timeout: float | None, partition: str | None, ttl_s: float
    ) -> None:
        key = self.validate_partition_key(partition)
        if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not 1 <= ttl_s <= DAY_S:
            raise InvalidError(f"partition_ttl={ttl_s!r} must be from 1 to {DAY_S:,} seconds")
        end = None if timeout is None else time.monotonic() + timeout
        values: list[bytes] = []
        codecs: list[int] = []
        size = 0
        for item in items:
            packed, codec = await self._pack(item, "a value")
            if values and size + len(packed) > CHUNK_BYTES:
                await self._put_packed(key, values, codecs, ttl_s, block, end)
                values, codecs, size = [], [], 0
            values.append(packed)
            codecs.append(codec)
            size += len(packed)
        if values:
            await self._put_packed(key, values, codecs, ttl_s, block, end)

    async def _put_packed(
        self, key: bytes, values: list[bytes], codecs: list[int], ttl_s: float, block: bool, end: float | None
    ) -> None:
        body = {"partition": key, "values": values, "codecs": codecs, "ttl_s": float(ttl_s), "token": new_token()}
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._ask("put", body)
                return
            except ResourceExhaustedError as error:
                if not block or (end is not None and time.monotonic() + pause_s > end):
                    raise queue.Full(str(error)) from None
            await pause(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    @blocking
    async def get(self, block: bool = True, timeout: float | None = None, *, partition: str | None = None) -> Any:
        """Take the first value out, waiting for one, `timeout` seconds at the most; then `queue.Empty`.

        With `block=False` there is no waiting, and None says that there is none.
        """
        values = await self._get(1, block, timeout, partition)
        return values[0] if values else None

    @blocking
    async def get_many(
        self, n_values: int, block: bool = True, timeout: float | None = None, *, partition: str | None = None
    ) -> list[Any]:
        """Take up to `n_values` out; as `get` where there are none, and an empty list with `block=False`."""
        if not isinstance(n_values, int) or isinstance(n_values, bool) or n_values < 1:
            raise InvalidError(f"get_many({n_values!r}): give a whole number of 1 or more")
        return await self._get(n_values, block, timeout, partition)

    async def _get(self, count: int, block: bool, timeout: float | None, partition: str | None) -> list[Any]:
        key = self.validate_partition_key(partition)
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            rest_s = POLL_S if end is None else end - time.monotonic()
            wait_s = max(0.0, min(rest_s, POLL_S)) if block else 0.0
            body = {"partition": key, "count": count, "wait_s": wait_s, "token": new_token()}
            try:
                said = await self._ask("get", body)
            except BaseException:
                await self._leave(body)
                raise
            if said["values"]:
                return [await self._take(*one) for one in zip(said["values"], said["codecs"], strict=True)]
            if not block:
                return []
            if end is not None and time.monotonic() >= end:
                raise queue.Empty

    async def _leave(self, body: dict[str, Any]) -> None:
        """Whoever waited has given up (Ctrl-C, a timeout of asyncio): what comes later is for others."""
        if self._found is not None:
            client, id = self._found
            if client.connected:
                client.start_request(
                    "queue.leave", {"queue": id, "partition": body["partition"], "token": body["token"]}
                )

    async def _take(self, data: bytes, codec: int) -> Any:
        return await self._read(data, codec, "a value", owns_blob=True)

    @blocking
    async def len(self, *, partition: str | None = None, total: bool = False) -> int:
        """How many values wait in a partition, or with `total` in all of them."""
        if partition and total:
            raise InvalidError("Partition must be null when requesting total length.")
        body = {"partition": self.validate_partition_key(partition), "total": bool(total)}
        return int((await self._ask("len", body))["len"])

    @blocking
    async def clear(self, *, partition: str | None = None, all: bool = False) -> None:
        """Empty a partition, or all of them."""
        if partition and all:
            raise InvalidError("Partition must be null when requesting to clear all.")
        await self._ask("clear", {"partition": self.validate_partition_key(partition), "all": bool(all)})

    @property
    def iterate(self) -> Walk:
        """`q.iterate(partition=None, item_poll_timeout=0.0)`: the values in line, which stay; `.aio` for `async for`.

        It ends when no further value has come for so many seconds.
        """
        return Walk(self)


Queue.objects = Manager(Queue)


class Walk:
    """`q.iterate`: a plain generator when called, an async one by `.aio`."""

    __slots__ = ("_queue",)

    def __init__(self, found: Queue) -> None:
        self._queue = found

    def __call__(self, *, partition: str | None = None, item_poll_timeout: float = 0.0) -> Iterator[Any]:
        key, after = Queue.validate_partition_key(partition), -1
        while True:
            after, values = run_sync(self._next(key, after, item_poll_timeout))
            if not values:
                return
            yield from values

    async def aio(self, *, partition: str | None = None, item_poll_timeout: float = 0.0) -> AsyncIterator[Any]:
        key, after = Queue.validate_partition_key(partition), -1
        while True:
            after, values = await run_async(self._next(key, after, item_poll_timeout))
            if not values:
                return
            for value in values:
                yield value

    async def _next(self, key: bytes, after: int, patience_s: float) -> tuple[int, list[Any]]:
        end = time.monotonic() + patience_s
        while True:
            wait_s = max(0.0, min(end - time.monotonic(), POLL_S))
            said = await self._queue._ask("peek", {"partition": key, "after": after, "wait_s": wait_s})
            values = []
            for data, codec in zip(said["values"], said["codecs"], strict=True):
                try:
                    values.append(await self._queue._read(data, codec, "a value"))
                except FileNotFoundError:
                    continue  # Somebody has taken it meanwhile.
            after = said["last"]
            if values or (not said["values"] and time.monotonic() >= end):
                return after, values
