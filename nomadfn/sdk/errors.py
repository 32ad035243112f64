"""From what comes back over the wire to the exception that the caller sees."""

from __future__ import annotations

import pickle
from typing import Any

from nomadfn_agent import wire
from nomadfn_agent.wire import bulk
from nomadfn_agent.wire import payload as payloads
from nomadfn_agent.wire.store import BlobStore

from nomadfn import exception

from .blocking import off_loop


class RemoteTraceback(Exception):
    """The cause of an exception that was raised in a container: where, as Python prints it there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def remote_traceback(error: BaseException) -> str | None:
    """The traceback that `error` had in its container, the user's own frames only; None for an error from here."""
    return error.__cause__.text if isinstance(error.__cause__, RemoteTraceback) else None


def named(error: str, message: str) -> BaseException:
    """The exception of `nomadfn.exception` called `error`."""
    kind = getattr(exception, error, None)
    if isinstance(kind, type) and issubclass(kind, BaseException):
        return kind(message)
    return exception.InternalError(f"{error}: {message}")


def from_rejection(frame: wire.Rejected) -> BaseException:
    if frame.error in ("ResourceExhaustedError", "ResourceExhausted"):
        return exception.ResourceExhaustedError(
            frame.message,
            limit=frame.limit,
            value=frame.value,
            maximum=frame.maximum,
            retry_after_s=frame.retry_after_s,
        )
    return named(frame.error, frame.message)


def from_raised(raised: payloads.Raised) -> BaseException:
    """The user's own exception where it can be rebuilt, else RemoteError; the remote traceback is its cause."""
    error: Any = None
    if raised.pickled:
        try:
            error = pickle.loads(raised.pickled)
        except Exception:
            error = None
    if not isinstance(error, Exception):
        error = exception.RemoteError(f"{raised.type_name}: {raised.text}")
    error.__cause__ = RemoteTraceback(raised.traceback or f"{raised.type_name}: {raised.text}\n")
    return error  # type: ignore[no-any-return]


class Reader:
    """Turns statuses and payloads into values and exceptions."""

    def __init__(self, blobs: BlobStore, function: str, *, owns_blobs: bool) -> None:
        self._blobs = blobs
        self._function = function
        self._owns_blobs = owns_blobs
        """Whether a result's blob is deleted once it is read."""

    async def read_apart(self, status: int, data: bytes, codec: int) -> tuple[bool, Any]:
        """As `read`; what lies in the blob store is fetched beside a running event loop."""
        if status < wire.REF:
            return self.read(status, data, codec)
        return await off_loop(lambda: self.read(status, data, codec))

    def read(self, status: int, data: bytes, codec: int) -> tuple[bool, Any]:
        """`(True, value)`, or `(False, exception)`."""
        if status == wire.OK and codec == wire.PICKLE:
            try:
                return True, pickle.loads(data)
            except Exception as error:
                return False, self._unreadable(error)
        return self._read_slowly(status, data, codec)

    def _read_slowly(self, status: int, data: bytes, codec: int) -> tuple[bool, Any]:
        ref: payloads.BlobRef | None = None
        if status >= wire.REF:
            status -= wire.REF
            ref = payloads.decode_ref(data)
        try:
            if ref is not None and (status, codec) == (wire.OK, wire.PICKLE):
                return True, bulk.load_payload(self._blobs, ref)
            if ref is not None:
                data = self._blobs.read(ref)
        except (OSError, payloads.DamagedBlobError) as error:
            return False, exception.InternalError(f"a result of {self._function} could not be read: {error}")
        except Exception as error:
            return False, self._unreadable(error)
        finally:
            if ref is not None and self._owns_blobs:
                self._blobs.delete(ref)
        if status == wire.EXCEPTION:
            return False, from_raised(payloads.decode_raised(data))
        if status == wire.FAILURE:
            failure = payloads.decode_failure(data)
            return False, named(failure.error, failure.message)
        try:
            if codec == wire.JSON:
                import json

                return True, json.loads(data)
            return True, pickle.loads(data)
        except Exception as error:
            return False, self._unreadable(error)

    def _unreadable(self, error: Exception) -> BaseException:
        return exception.DeserializationError(
            f"a result of {self._function} cannot be unpickled here: {type(error).__name__}: {error}; "
            f"its type must be importable in this program too"
        )
