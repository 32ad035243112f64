"""Blobs as files of one folder, laid out as the SDK and the containers write theirs beside them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import cached_property

from nomadfn_agent.wire.payload import TEMPORARY_PREFIX, blob_path, is_blob_name, whole_file
from nomadfn_agent.wire.store import MEMORY
from nomadfn_agent.wire.wide import SECOND

from nomadfn import ports
from nomadfn.exception import ServiceError

TEMPORARY_AGE_S = 3600.0
"""A temporary file that was not written to for so long belongs to a process that is gone."""
MARK_PREFIX = ".control-"
PART_BYTES = 1 << 20


def link_memory(folder: str, memory: str = "/dev/shm") -> None:
    """Have a part of a blob folder in memory (`wire.store`), where there is such a file system.

    What an earlier service has left there stays: its clients may come back for it.
    """
    link = os.path.join(folder, MEMORY)
    with contextlib.suppress(OSError):  # It lies on the disk instead, as everything else.
        if os.path.isdir(link) and os.stat(link).st_uid == os.getuid():
            return
        if os.path.islink(link):  # The machine was started anew.
            os.unlink(link)
        os.symlink(tempfile.mkdtemp(prefix="nomadfn-", dir=memory), link)


def unlink_memory(folder: str, *, with_content: bool) -> None:
    """Remove it at the end of a service, if it is empty or else `with_content`."""
    link = os.path.join(folder, MEMORY)
    with contextlib.suppress(OSError):
        target = os.readlink(link)
        if with_content:
            shutil.rmtree(target)
        else:
            os.rmdir(target)
        os.unlink(link)


class DirectoryBlobs:
    """`Blobs` in `folder`, made when it is not there. Raises `ServiceError` where the file system refuses.

    Names come from clients: one that could lead out of the folder is a `ValueError` in `put` and `writing`, and
    unknown elsewhere.
    """

    def __init__(self, folder: str) -> None:
        self._folder = os.path.abspath(folder)
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise self._refused("be made", error) from error

    @property
    def folder(self) -> str:
        return self._folder

    @cached_property
    def mark(self) -> str:
        """Made when it is first asked for, in place of those of earlier control services."""
        name = f"{MARK_PREFIX}{secrets.token_hex(16)}"
        try:
            for entry in os.scandir(self._folder):
                if entry.name.startswith(MARK_PREFIX):
                    self._unlink(entry.path)
            os.close(os.open(os.path.join(self._folder, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError as error:
            raise self._refused("be written to", error) from error
        return name

    def put(self, name: str, data: bytes) -> None:
        """Store `data` under `name` in place of what was there; it survives a power cut."""
        with self.writing(name) as file:
            file.write(data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[ports.Sink]:
        path = blob_path(self._folder, name)
        try:
            with whole_file(path, sync=True) as file:
                yield file
        except OSError as error:
            raise self._refused(f"take blob {name}", error) from error

    def get(self, name: str) -> bytes:
        return b"".join(self.parts(name))

    def parts(self, name: str) -> Iterator[bytes]:
        if not is_blob_name(name):
            raise KeyError(name)
        path = blob_path(self._folder, name)
        try:
            yield from _parts(path)
            if name.startswith(MEMORY) and os.path.exists(path + SECOND):
                yield from _parts(path + SECOND)
        except FileNotFoundError:
            raise KeyError(name) from None
        except OSError as error:
            raise self._refused(f"give blob {name}", error) from error

    def has(self, name: str) -> bool:
        return is_blob_name(name) and os.path.exists(blob_path(self._folder, name))

    def delete(self, name: str) -> None:
        if is_blob_name(name):
            path = blob_path(self._folder, name)
            self._unlink(path)
            if name.startswith(MEMORY):
                self._unlink(path + SECOND)

    def names(self) -> Iterator[tuple[str, float]]:
        """Files that a writer which was killed has left half-written go away on the way."""
        for name, path, age_s in self._files():
            if not name.startswith(TEMPORARY_PREFIX):
                yield name.removesuffix(SECOND), age_s
            elif age_s > TEMPORARY_AGE_S:
                self._unlink(path)

    def _files(self) -> Iterator[tuple[str, str, float]]:
        """Name, path and age in seconds of every file; what goes away meanwhile is left out."""
        now = time.time()
        try:
            for parent in sorted(entry.path for entry in os.scandir(self._folder) if entry.is_dir()):
                for file in list(os.scandir(parent)):
                    try:
                        yield file.name, file.path, max(0.0, now - file.stat().st_mtime)
                    except FileNotFoundError:
                        continue
        except OSError as error:
            raise self._refused("be listed", error) from error

    def _unlink(self, path: str) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._refused(f"drop blob {os.path.basename(path)}", error) from error

    def _refused(self, what: str, error: OSError) -> ServiceError:
        return ServiceError(
            f"the blob folder {self._folder} cannot {what}: {error.strerror}. Make sure that it is there, has space "
            "and lets this user write to it, or choose another data folder."
        )


def _parts(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while part := file.read(PART_BYTES):
            yield part
