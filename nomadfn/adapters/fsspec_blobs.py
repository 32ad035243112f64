"""Blobs in whatever fsspec speaks: `s3://bucket/prefix`, `gs://…`, `memory://…`. Laid out as in a folder.

Credentials and endpoints are those of the fsspec package that is behind the address, as it reads them itself
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `FSSPEC_S3_…`). A folder of this machine is `directory_blobs`.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from nomadfn_agent.wire.payload import blob_path, is_blob_name

from nomadfn import ports
from nomadfn.exception import InvalidError, ServiceError

PART_BYTES = 8 << 20
"""What one request to the store carries at most, and what a blob may take in memory while it is written or read."""
TIMES = ("LastModified", "mtime", "updated", "last_modified", "modified", "created")
"""What file systems call the time at which a file was written."""
Result = TypeVar("Result")


class FsspecBlobs:
    """`Blobs` below `url`. Raises `InvalidError` where nothing can speak it, `ServiceError` where the store fails."""

    folder = ""
    mark = ""

    def __init__(self, url: str) -> None:
        self._shown = shown(url)
        try:
            from fsspec.core import url_to_fs
        except ModuleNotFoundError as error:
            raise InvalidError(
                f"blobs = {self._shown} needs the package {error.name}; install it: pip install 'nomadfn[blobs]'"
            ) from None
        try:
            # What others have written must be seen, so no listing is kept.
            self._fs, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            raise InvalidError(
                f"blobs = {self._shown} needs another package where the control service runs: {error}"
            ) from None
        except Exception as error:
            raise InvalidError(f"blobs = {self._shown} is not accepted: {error}") from None
        self._root = str(root).rstrip("/")

    def check(self) -> None:
        """Write, read and delete something. Raises `ServiceError` where that does not work."""
        name, data = f"probe-{secrets.token_hex(8)}", secrets.token_bytes(16)
        self.put(name, data)
        try:
            found = self.get(name)
        except KeyError:
            found = b""
        self.delete(name)
        if found != data:
            raise ServiceError(f"the blob store {self._shown} does not give what was put into it a moment ago")

    def put(self, name: str, data: bytes) -> None:
        with self.writing(name) as sink:
            sink.write(data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[ports.Sink]:
        sink = _Sink(self._fs, blob_path(self._root, name), lambda: self._asking(f"take blob {name}", missing=False))
        try:
            yield sink
            sink.commit()
        except BaseException:
            sink.discard()
            raise

    def get(self, name: str) -> bytes:
        if not is_blob_name(name):
            raise KeyError(name)
        try:
            with self._asking(f"give blob {name}"):
                return bytes(self._fs.cat_file(blob_path(self._root, name)))
        except FileNotFoundError:
            raise KeyError(name) from None

    def parts(self, name: str) -> Iterator[bytes]:
        if not is_blob_name(name):
            raise KeyError(name)
        path = blob_path(self._root, name)
        try:
            with self._asking(f"give blob {name}"):
                size = int(self._fs.info(path)["size"])
            for first in range(0, size, PART_BYTES):
                with self._asking(f"give blob {name}"):
                    part = self._fs.cat_file(path, start=first, end=min(first + PART_BYTES, size))
                yield part
        except FileNotFoundError:
            raise KeyError(name) from None

    def has(self, name: str) -> bool:
        if not is_blob_name(name):
            return False
        try:
            with self._asking(f"look for blob {name}"):
                self._fs.info(blob_path(self._root, name))
        except FileNotFoundError:
            return False
        return True

    def delete(self, name: str) -> None:
        if is_blob_name(name):
            with contextlib.suppress(FileNotFoundError), self._asking(f"drop blob {name}"):
                self._fs.rm_file(blob_path(self._root, name))

    def names(self) -> Iterator[tuple[str, float]]:
        """One sub-folder's at a time, so that a large store is never in memory whole."""
        now = time.time()
        try:
            with self._asking("be listed"):
                folders = sorted(str(path).rstrip("/") for path in self._fs.ls(self._root, detail=False))
        except FileNotFoundError:
            return
        for folder in folders:
            with self._asking("be listed"):
                entries = self._fs.find(folder, detail=True)
            for path, entry in entries.items():
                name = path.rpartition("/")[2]
                if is_blob_name(name):
                    yield name, max(0.0, now - _written_at(entry, now))

    @contextlib.contextmanager
    def _asking(self, what: str, *, missing: bool = True) -> Iterator[None]:
        """The errors of the store as ours; but for FileNotFoundError, where something may be `missing`."""
        try:
            yield
        except Exception as error:
            if missing and isinstance(error, FileNotFoundError):
                raise
            raise ServiceError(
                f"the blob store {self._shown} cannot {what}: {type(error).__name__}: {error}. Make sure that it can "
                "be reached from the control service, and that its credentials are good"
            ) from error


class _Sink:
    """Small blobs are written at once, at the end; larger ones in parts, which count for nothing until then."""

    def __init__(self, fs: Any, path: str, asking: Callable[[], AbstractContextManager[None]]) -> None:
        self._fs = fs
        self._path = path
        self._asking = asking
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._file: Any = None

    def write(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > PART_BYTES:
            with self._asking():
                if self._file is None:
                    self._file = self._in_folder(self._open)
                self._flush()

    def commit(self) -> None:
        with self._asking():
            if self._file is None:
                self._in_folder(self._write_at_once)
                return
            self._flush()
            self._file.close()
            self._in_folder(self._file.commit)

    def discard(self) -> None:
        if self._file is not None:
            with contextlib.suppress(Exception):  # what is left of it is no blob, and there is an error to tell already
                self._file.discard()
                self._file.closed = True  # else some upload what they still hold when they are collected

    def _open(self) -> Any:
        return self._fs.open(self._path, "wb", block_size=PART_BYTES, autocommit=False)

    def _write_at_once(self) -> None:
        self._fs.pipe_file(self._path, b"".join(self._waiting))

    def _flush(self) -> None:
        self._file.write(b"".join(self._waiting))
        self._waiting.clear()
        self._waiting_bytes = 0

    def _in_folder(self, work: Callable[[], Result]) -> Result:
        """Where a file needs a folder, and that is missing, it is made first; a bucket is not."""
        try:
            return work()
        except FileNotFoundError:
            above = self._path.split("/")[:-1]
            for depth in range(2, len(above) + 1):
                with contextlib.suppress(FileExistsError):
                    self._fs.mkdir("/".join(above[:depth]), create_parents=False)
            return work()


def _written_at(entry: dict[str, Any], now: float) -> float:
    """Unix time at which a file was written; now where the file system does not say."""
    found = next((entry[key] for key in TIMES if entry.get(key) is not None), now)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    if isinstance(found, datetime):
        found = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return float(found)


def shown(url: str) -> str:
    """The address of a blob store for messages: without a user and a password."""
    parts = urlsplit(url)
    if not parts.scheme:
        return url
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
