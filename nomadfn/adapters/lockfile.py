"""The lease as a lock file: `flock` says who leads, the file's one line says since when and under which epoch.

The operating system drops the lock with the process that holds it, however that ends; the file and the epoch
in it stay.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from typing import Any

from nomadfn.exception import ServiceError
from nomadfn.ports import LeaseHeldError

MAX_RECORD_BYTES = 4096
MAX_NOTE_CHARACTERS = 500


class FileLease:
    """A `Lease` in the file `path`, made when it is not there. Raises `ServiceError` when that cannot be used."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._handle = -1
        self._record: dict[str, Any] = {}

    def acquire(self) -> int:
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            epoch: int = self._read(handle).get("epoch", 0) + 1
            record = {"epoch": epoch, "pid": os.getpid(), "since": time.time(), "note": ""}
            _write(handle, record, durable=True)
        except BlockingIOError:
            text = self._held_text(handle)
            os.close(handle)
            raise LeaseHeldError(text) from None
        except OSError as error:
            os.close(handle)
            raise self._unusable(error) from error
        except BaseException:
            os.close(handle)
            raise
        self._handle, self._record = handle, record
        return epoch

    def describe(self, note: str) -> None:
        if self._handle >= 0:
            self._record["note"] = note[:MAX_NOTE_CHARACTERS]
            self._rewrite()

    def release(self) -> None:
        """Let go of the lease; the file and the epoch in it stay. Releasing twice is no error."""
        if self._handle >= 0:
            self._record = {"epoch": self._record["epoch"]}
            try:
                self._rewrite()
            finally:
                # Not left to `close`: a child that is just being started still has the handle, for a moment.
                fcntl.flock(self._handle, fcntl.LOCK_UN)
                os.close(self._handle)
                self._handle = -1

    def _rewrite(self) -> None:
        try:
            _write(self._handle, self._record, durable=False)
        except OSError as error:
            raise self._unusable(error) from error

    def _read(self, handle: int) -> dict[str, Any]:
        """The file's record; a file that has just been made has none. Raises `ServiceError` for a damaged one."""
        # What stands behind the first line is left of a longer record whose process was killed at this place.
        line = os.pread(handle, MAX_RECORD_BYTES, 0).split(b"\n", 1)[0]
        if not line:
            return {}
        try:
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("epoch"), int):
                return record
        except ValueError:
            pass
        raise ServiceError(
            f"the lock file {self._path} is damaged: it does not say which epoch was the last. "
            "Make sure that no control service uses its folder, then delete it."
        )

    def _held_text(self, handle: int) -> str:
        advice = "End it first (`nomadfn down`), or choose another data folder."
        try:
            record = self._read(handle)
            # The lock is taken before the record is written: a dead process in it was the holder before.
            os.kill(record["pid"], 0)
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["since"]))
        except (ServiceError, OSError, KeyError, TypeError):
            return f"{self._path} is held by another process. {advice}"
        note = f" ({record['note']})" if record.get("note") else ""
        return f"{self._path} is held by process {record['pid']} since {since}{note}. {advice}"

    def _unusable(self, error: OSError) -> ServiceError:
        return ServiceError(
            f"the lock file {self._path} cannot be used: {error.strerror}. Make sure that its folder is there, has "
            "space and lets this user write to it, or choose another data folder on a local disk."
        )


def _write(handle: int, record: dict[str, Any], *, durable: bool) -> None:
    line = json.dumps(record).encode() + b"\n"
    os.pwrite(handle, line, 0)
    os.ftruncate(handle, len(line))
    if durable:
        os.fsync(handle)
