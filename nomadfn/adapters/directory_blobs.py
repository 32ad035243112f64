"""Blobs as files of one folder, laid out as the SDK and the containers write theirs beside them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Set

from nomadfn_agent.wire.payload import blob_path, is_blob_name, write_whole

from nomadfn.exception import ServiceError

TEMPORARY_PREFIX = ".tmp-"
TEMPORARY_AGE_S = 3600.0
"""A temporary file that was not written to for so long belongs to a process that is gone."""


class DirectoryBlobs:
    """`Blobs` in `folder`, made when it is not there. Raises `ServiceError` where the file system refuses.

    Names come from clients: one that could lead out of the folder is a `ValueError` in `put` and unknown elsewhere.
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

    def put(self, name: str, data: bytes) -> None:
        """Store `data` under `name` in place of what was there; it survives a power cut."""
        path = blob_path(self._folder, name)
        try:
            write_whole(path, data, sync=True)
        except OSError as error:
            raise self._refused(f"take blob {name}", error) from error

    def get(self, name: str) -> bytes:
        if not is_blob_name(name):
            raise KeyError(name)
        try:
            with open(blob_path(self._folder, name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            raise KeyError(name) from None
        except OSError as error:
            raise self._refused(f"give blob {name}", error) from error

    def has(self, name: str) -> bool:
        return is_blob_name(name) and os.path.exists(blob_path(self._folder, name))

    def delete(self, name: str) -> None:
        if is_blob_name(name):
            self._unlink(blob_path(self._folder, name))

    def names(self) -> Iterator[tuple[str, float]]:
        for name, _path, age_s in self._files():
            if not name.startswith(TEMPORARY_PREFIX):
                yield name, age_s

    def sweep(self, live: Set[str], min_age_s: float) -> int:
        """Delete the blobs that are not in `live` and older than `min_age_s`, and temporary files left behind.

        Returns how many went. The age keeps those that were written but are not spoken of yet.
        """
        count = 0
        for name, path, age_s in self._files():
            temporary = name.startswith(TEMPORARY_PREFIX)
            if age_s > (TEMPORARY_AGE_S if temporary else min_age_s) and (temporary or name not in live):
                self._unlink(path)
                count += 1
        return count

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
