"""Blobs for programs and containers that do not see the store: by HTTP, part by part, on threads of its own.

A blob's name says who may have it. Code is named by its digest; a payload by 32 random digits and the app that it
belongs to. The owner may do everything; a container reads the code of its app, and reads, writes and deletes the
payloads of its app.
A transfer holds a few MiB at the most, whatever it carries, and there are MAX_TRANSFERS of them at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import queue
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from nomadfn_agent.wire import INLINE_PAYLOAD_BYTES
from nomadfn_agent.wire.outcome import BlobRef, encode
from nomadfn_agent.wire.payload import digest_of, is_blob_name, over_limit
from nomadfn_agent.wire.store import SHARED_APP, payload_name

from nomadfn import ports
from nomadfn.control.tokens import Identity
from nomadfn.core.state import State
from nomadfn.exception import InvalidError, NotFoundError, PermissionDeniedError, RequestSizeError, ServiceError

MAX_TRANSFERS = 8
TURN_S = 30.0
"""How long a transfer waits for its turn."""
ANSWER_S = 60.0
"""How long the store may take for one step."""
NO_ANSWER = f"the blob store has not answered within {ANSWER_S:.0f} s; try again later"
PART_BYTES = 1 << 20
PARTS_AHEAD = 2
"""Parts of an upload that have arrived and are not in the store."""
CODE = re.compile(r"[0-9a-f]{64}")
PAYLOAD = re.compile(r"[0-9a-f]{32}-(ap-[A-Za-z0-9]+)")
FOREIGN = "a container may write and delete payloads of its own app, and nothing else"
Result = TypeVar("Result")


class BlobDesk:
    """The one way of the control service to its blobs. Every method raises `nomadfn.exception` errors."""

    def __init__(self, blobs: ports.Blobs, state: State) -> None:
        self._blobs = blobs
        self._state = state
        self._threads = ThreadPoolExecutor(MAX_TRANSFERS, "blobs")
        self._turns = asyncio.Semaphore(MAX_TRANSFERS)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def max_bytes(self) -> int:
        return self._state.limits.payload_bytes

    def read(self, name: str, identity: Identity) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """As `reading`, for somebody who says which one."""
        if not self._may_read(name, identity):
            raise NotFoundError(f"there is no blob {name[:64]!r} for this container's app")
        return self.reading(name)

    @contextlib.asynccontextmanager
    async def reading(self, name: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The parts of a blob, the first of which has been read on entering. Raises `NotFoundError`."""
        async with self._turn():
            parts = self._blobs.parts(name)
            try:
                first = await self._ask(lambda: next(parts, b""))
            except KeyError:
                raise NotFoundError(
                    f"there is no blob {name[:64]!r}; code comes back with another deploy, a payload with another call"
                ) from None
            yield self._rest(parts, first)

    async def _rest(self, parts: Iterator[bytes], part: bytes) -> AsyncIterator[bytes]:
        while part:
            yield part
            part = await self._ask(lambda: next(parts, b""))

    async def write(self, name: str, digest: str, size: int, body: AsyncIterator[bytes], identity: Identity) -> None:
        """Store what `body` gives, if it is `size` bytes of this digest."""
        self._check_write(name, digest, size, identity)
        async with self._turn():
            await self._copy(name, digest, size, body)

    async def delete(self, name: str, identity: Identity) -> None:
        if identity.container and not self._is_own(name, identity):
            raise PermissionDeniedError(FOREIGN)
        await self.drop(name)

    async def drop(self, name: str) -> None:
        """Delete what nobody needs any more."""
        await self._ask(lambda: self._blobs.delete(name))

    async def keep(self, data: bytes, app: str) -> bytes:
        """A large payload as a blob of its own: the reference that takes its place."""
        if len(data) > self.max_bytes:
            raise RequestSizeError(f"the arguments have {len(data):,} bytes, {over_limit(self.max_bytes)}")
        name = payload_name(app)
        await self._ask(lambda: self._blobs.put(name, data))
        return encode(BlobRef(name, digest_of(data), len(data)))

    # Who may

    def _may_read(self, name: str, identity: Identity) -> bool:
        if not identity.container or self._is_own(name, identity):
            return is_blob_name(name)
        app = self._state.apps.get(identity.app)
        code = () if app is None else (app.code.digest, *(one.spec.serialized_ref for one in app.functions.values()))
        return bool(name) and name in code

    def _is_own(self, name: str, identity: Identity) -> bool:
        found = PAYLOAD.fullmatch(name)
        return found is not None and found[1] in (identity.app, SHARED_APP)

    def _check_write(self, name: str, digest: str, size: int, identity: Identity) -> None:
        if not CODE.fullmatch(digest):
            raise InvalidError("?sha256= must be the digest of the body, 64 hexadecimal digits")
        if identity.container and not self._is_own(name, identity):
            raise PermissionDeniedError(FOREIGN)
        if not PAYLOAD.fullmatch(name) and name != digest:
            raise InvalidError(
                f"{name[:64]!r} is no name for a blob: its own sha256, or 32 hexadecimal digits, - and an app's id"
            )
        is_code = name == digest
        limit = max(self.max_bytes, self._state.limits.function_bytes) if is_code else self.max_bytes
        if size > limit or (not is_code and self.max_bytes <= INLINE_PAYLOAD_BYTES):
            raise RequestSizeError(f"the blob has {size:,} bytes, {over_limit(limit)}")

    # Turns, threads and waiting

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(TURN_S):
                await self._turns.acquire()
        except TimeoutError:
            raise ServiceError(f"{MAX_TRANSFERS} transfers of blobs are under way; try again in a moment") from None
        try:
            yield
        finally:
            self._turns.release()

    async def _ask(self, work: Callable[[], Result]) -> Result:
        """One step on a thread. The store may hang; whoever waits for it does not."""
        try:
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.get_running_loop().run_in_executor(self._threads, _guarded, work)
        except TimeoutError:
            raise ServiceError(NO_ANSWER) from None

    async def _copy(self, name: str, digest: str, size: int, body: AsyncIterator[bytes]) -> None:
        """From the body into the store. One thread does all of the writing, so nothing of it overlaps."""
        loop = asyncio.get_running_loop()
        parts: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        room = asyncio.Semaphore(PARTS_AHEAD)

        def taken() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(room.release)

        work = loop.run_in_executor(self._threads, _guarded, lambda: self._store(name, digest, parts, taken))
        try:
            async with contextlib.aclosing(_joined(body)) as joined:
                async for part in joined:
                    size -= len(part)
                    await _within(work, room)
                    parts.put(part)
            if size:
                raise InvalidError("the body has another length than it says")
            parts.put(b"")
            await _within(work)
        except BaseException:
            parts.put(None)
            work.add_done_callback(lambda done: done.cancelled() or done.exception())  # it was told, or nobody asks
            raise

    def _store(self, name: str, digest: str, parts: queue.SimpleQueue[bytes | None], taken: Callable[[], None]) -> None:
        found = hashlib.sha256()
        with self._blobs.writing(name) as sink:
            while part := parts.get():
                sink.write(part)
                found.update(part)
                taken()
            if part is None:
                raise ServiceError("the upload was broken off")
            if found.hexdigest() != digest:
                raise InvalidError("the body has another digest than it says: it was damaged on its way, send it again")


def _guarded(work: Callable[[], Result]) -> Result:
    """An error of the operating system becomes one of ours; an unknown name stays a KeyError."""
    try:
        return work()
    except OSError as error:
        raise ServiceError(f"the blob store failed: {error.strerror or error}") from error


async def _joined(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The same bytes in larger parts."""
    waiting = bytearray()
    async for chunk in body:
        waiting += chunk
        if len(waiting) >= PART_BYTES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


async def _within(work: asyncio.Future[None], room: asyncio.Semaphore | None = None) -> None:
    """Wait until there is room, or the work has ended, which alone may fail; without `room` for its end."""
    waited: set[asyncio.Future[Any]] = {work}
    if room is not None:
        waited.add(asyncio.ensure_future(room.acquire()))
    try:
        done, _ = await asyncio.wait(waited, timeout=ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waited - {work}:
            one.cancel()
    if work in done:
        work.result()
    elif not done:
        raise ServiceError(NO_ANSWER)
