"""Large bytes by name, as programs and containers reach them: in the control service's folder, else by HTTP.

The folder counts as seen only where a file is in it that the control service has made for this, owned by this very
user: a folder of the same name on another machine is another one. Everybody else asks the control service, which alone
needs to reach the store. Bytes are checked against their digest, but for those that need not survive and never leave
the machine: they lie in memory where it has room for them, and sha256 would cost more than to write and read them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, NamedTuple
from urllib.parse import urlsplit

from .outcome import BlobRef
from .payload import DamagedBlobError, blob_path, digest_of, write_whole
from .wide import WIDE_BYTES, open_wide, unlink_wide, write_wide

PATIENCE_S = 60.0
"""How long a control service or a store that does not answer is asked again: a takeover is over long before."""
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
SILENT_S = 60.0
"""How long the other side may take to take or to give the next bytes."""
PART_BYTES = 1 << 20
PASSING = frozenset((408, 429, 500, 502, 503, 504))
"""Statuses after which the same may be asked again: a standby, a leader that is about to go, a store that is down."""
ERROR_BYTES = 64 * 1024
SHARED_APP = "ap-shared"
"""In the name of a payload that belongs to no app, such as a large value of a Dict: who knows the name may have it."""
MEMORY = "mm"
"""The folder within the blob folder that a control service of one machine links into memory, and the beginning of the
names of what lies there; other names begin with hex digits."""
MEMORY_SHARE = 0.75
"""So much of the memory file system stays free: it is the whole machine's."""


class Place(NamedTuple):
    """Where the blobs of a control service are, as it says itself."""

    folder: str = ""
    mark: str = ""
    """Name of the file in `folder` by which it is known."""
    http_url: str = ""
    token: str = ""


class Refused(OSError):
    """The control service will not do it, now or later; the text is its reason."""


class BlobStore:
    """The blobs of one control service; `place` says where they are now, and may raise for a service that is gone.

    Every method may block, for PATIENCE_S beyond the transfer itself, and raises OSError with the reason as its text.
    In a container (`joins`) a token that the next leader does not know yet is no refusal.
    """

    def __init__(self, place: Callable[[], Place], *, joins: bool = False) -> None:
        self._place = place
        self._passing = PASSING | {401} if joins else PASSING

    def is_here(self) -> bool:
        """Whether this process sees the control service's own folder."""
        return _is_here(self._place())

    def write(self, data: bytes | memoryview, app: str, *, durable: bool = False) -> BlobRef:
        """As `write_pieces`, of one."""
        return self.write_pieces([data], len(data), app, durable=durable)

    def write_pieces(
        self, pieces: Sequence[bytes | memoryview], size: int, app: str, *, durable: bool = False
    ) -> BlobRef:
        """Store a payload of `app`, `size` bytes. A durable one survives a power cut before this returns.

        Others are kept in memory, where this is the control service's machine and has room, and have no digest there.
        """
        name, place = payload_name(app), self._place()
        if not durable and _is_here(place):
            ref = _in_memory(place.folder, name, pieces, size)
            if ref is None:
                self._put(name, pieces, "", False)
            return ref or BlobRef(name, "", size)
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        self._put(name, pieces, digest.hexdigest(), durable)
        return BlobRef(name, digest.hexdigest(), size)

    def write_code(self, data: bytes) -> str:
        """Store what is named by its digest, and give that. What is there already counts as new again."""
        digest = digest_of(data)
        self._put(digest, [data], digest, False)
        return digest

    def read(self, ref: BlobRef) -> bytes:
        """The bytes behind a reference. Raises DamagedBlobError when they are not what was stored."""
        place = self._place()
        if not ref.digest and _is_here(place):
            with _opened(place, ref) as file:
                return file.read()
        data = self._get(ref.name)
        if len(data) != ref.size:
            raise _damaged(ref, f"it has {len(data):,} bytes, not {ref.size:,}")
        if ref.digest and digest_of(data) != ref.digest:
            raise _damaged(ref, "its content has another digest")
        return data

    def open(self, ref: BlobRef) -> IO[bytes]:
        """To read what `read` gives. What has no digest and is here is not read as a whole for that."""
        place = self._place()
        if ref.digest or not _is_here(place):
            return io.BytesIO(self.read(ref))
        return _opened(place, ref)

    def read_code(self, digest: str) -> bytes:
        """A code archive or a pickled function. Raises ValueError when it is not what was stored."""
        data = self._get(digest)
        if digest_of(data) != digest:
            raise ValueError("it is damaged: deploy or run the program again")
        return data

    def delete(self, ref: BlobRef) -> None:
        """Remove a payload that nobody needs. What fails is left to the control service's sweep."""
        place = self._place()
        try:
            if _is_here(place):
                path = blob_path(place.folder, ref.name)
                if ref.size < WIDE_BYTES:
                    os.unlink(path)
                else:  # Giving much memory back takes milliseconds, for which nobody has to wait.
                    threading.Thread(target=unlink_wide, args=(path,), name="nomadfn-unlink", daemon=True).start()
            else:
                _ask(place, "DELETE", ref.name)
        except (OSError, ValueError):
            pass

    def _put(self, name: str, pieces: Sequence[bytes | memoryview], digest: str, sync: bool) -> None:
        place = self._place()
        if _is_here(place):
            try:
                write_whole(blob_path(place.folder, name), pieces, sync=sync)
            except OSError as error:
                why = error.strerror or error
                raise OSError(f"{why} in {place.folder}; make room there, then try again") from error
        else:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._insist("PUT", name, f"?sha256={digest or digest_of(data)}", data)

    def _get(self, name: str) -> bytes:
        place = self._place()
        if _is_here(place):
            with open(blob_path(place.folder, name), "rb") as file:
                return file.read()
        return self._insist("GET", name)

    def _insist(self, method: str, name: str, query: str = "", data: bytes | memoryview | None = None) -> bytes:
        """Ask until there is an answer; each time the control service that is known to lead then."""
        started, pause_s = time.monotonic(), FIRST_PAUSE_S
        while True:
            place = self._place()
            try:
                return _ask(place, method, name, query, data, self._passing)
            except Refused:
                raise
            except OSError as error:
                if time.monotonic() - started + pause_s > PATIENCE_S:
                    where = f"from {place.http_url or 'the control service'} within {PATIENCE_S:.0f} s"
                    raise OSError(f"it could not be had or brought {where}: {error}") from None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def payload_name(app: str) -> str:
    """A new name for a payload of `app`: nobody guesses it, and it says whose containers may read it."""
    return f"{secrets.token_hex(16)}-{app}"


def _in_memory(folder: str, name: str, pieces: Sequence[bytes | memoryview], size: int) -> BlobRef | None:
    """Keep a payload in memory; None where there is no such folder, or not enough room. Only whole files are named."""
    name = MEMORY + name
    path = os.path.join(folder, MEMORY, name)
    try:
        space = os.statvfs(os.path.dirname(path))
        if space.f_bavail * space.f_frsize < MEMORY_SHARE * space.f_blocks * space.f_frsize + size:
            return None
        write_wide(path, pieces, size)
    except OSError:
        return None
    return BlobRef(name, "", size)


def _opened(place: Place, ref: BlobRef) -> IO[bytes]:
    try:
        return open_wide(blob_path(place.folder, ref.name), ref.size)
    except ValueError as error:
        raise _damaged(ref, str(error)) from None


def _damaged(ref: BlobRef, why: str) -> DamagedBlobError:
    return DamagedBlobError(f"blob {ref.name[:12]} is damaged: {why}")


def _is_here(place: Place) -> bool:
    try:
        return bool(place.mark) and os.stat(os.path.join(place.folder, place.mark)).st_uid == os.geteuid()
    except OSError:
        return False


def _ask(
    place: Place,
    method: str,
    name: str,
    query: str = "",
    data: bytes | memoryview | None = None,
    passing: frozenset[int] = PASSING,
) -> bytes:
    """One request. Raises Refused, or OSError where it may go better later."""
    import http.client  # Most programs and containers never need it.

    url = urlsplit(place.http_url)
    if not url.hostname:
        raise Refused("the blob folder of the control service is not here, and it has no HTTP address")
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname, url.port, timeout=SILENT_S)
    headers = {"Authorization": f"Bearer {place.token}"}
    body = None if data is None else _parts(memoryview(data))
    if data is not None:
        headers["Content-Length"] = str(len(data))
    try:
        try:
            connection.request(method, f"{url.path.rstrip('/')}/v1/blobs/{name}{query}", body, headers)
        except (BrokenPipeError, ConnectionResetError):
            pass  # It has refused before it had all; the answer says why.
        response = connection.getresponse()
        if response.status in (200, 201, 204):
            return response.read()
        why = _reason(response.status, response.read(ERROR_BYTES))
    except http.client.HTTPException as error:
        raise OSError(f"the control service at {place.http_url} broke off: {error!r}") from error
    finally:
        connection.close()
    if response.status in passing:
        raise OSError(why)
    raise Refused(why)


def _parts(data: memoryview) -> Iterator[memoryview]:
    """So that the socket's timeout is one for each part, not for all of it."""
    for first in range(0, len(data), PART_BYTES):
        yield data[first : first + PART_BYTES]


def _reason(status: int, body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the control service says {status}: {body[:300].decode(errors='replace')}"
