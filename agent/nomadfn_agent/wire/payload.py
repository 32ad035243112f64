"""What is inside a payload: arguments, results, exceptions. Only the SDK and the runner look.

Pickle is the codec between Python and Python, with cloudpickle for what plain pickle cannot do; JSON is
the codec of everyone else: `{"args": [...], "kwargs": {...}}` in, any JSON value out.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from . import INLINE_PAYLOAD_BYTES, JSON
from .outcome import BlobRef as BlobRef
from .outcome import Failure as Failure
from .outcome import Raised as Raised
from .outcome import decode_failure as decode_failure
from .outcome import decode_raised as decode_raised
from .outcome import decode_ref as decode_ref
from .outcome import encode as encode

PICKLE_PROTOCOL = 5
NO_KWARGS: dict[str, Any] = {}
TEMPORARY_PREFIX = ".tmp-"
"""Of files that are not whole yet."""


class DamagedBlobError(ValueError):
    """A blob is not what was stored."""


class Unpicklable(Exception):
    """A value that pickle and cloudpickle both refuse; the text says which and why."""


def dumps(value: Any) -> bytes:
    """Pickle `value`, by cloudpickle where plain pickle cannot. Raises `Unpicklable`."""
    try:
        return pickle.dumps(value, PICKLE_PROTOCOL)
    except Exception:
        return cloud_dumps(value)


def cloud_dumps(value: Any) -> bytes:
    """Pickle `value` with cloudpickle, functions and classes of `__main__` by value. Raises `Unpicklable`."""
    import cloudpickle

    try:
        buffer = io.BytesIO()
        cloudpickle.CloudPickler(buffer, PICKLE_PROTOCOL).dump(value)
        return buffer.getvalue()
    except Exception as error:
        raise Unpicklable(f"a value of type {type(value).__name__} cannot be pickled: {error}") from error


loads = pickle.loads


def dump_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """One input as a pickle of `(args, kwargs)`."""
    return dumps((tuple(args), dict(kwargs)) if kwargs else (tuple(args),))


def load_arguments(payload: bytes, codec: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if codec == JSON:
        body = json.loads(payload)
        return tuple(body.get("args", ())), dict(body.get("kwargs", {}))
    return split_arguments(pickle.loads(payload))


def split_arguments(value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `dump_arguments` has packed, once it is unpickled."""
    return value if len(value) > 1 else (value[0], NO_KWARGS)


def dump_json(value: Any) -> bytes:
    """A result for an input that came as JSON. Raises `Unpicklable`."""
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise Unpicklable(f"a value of type {type(value).__name__} is not JSON: {error}") from error


def describe_exception(error: BaseException, hidden_prefixes: Sequence[str] = ()) -> Raised:
    """Pack an exception of user code; frames of files under `hidden_prefixes` are left out of its traceback."""
    pickled = b""
    try:
        pickled = dumps(error)
        pickle.loads(pickled)
    except Exception:
        pickled = b""
    return Raised(
        pickled=pickled,
        type_name=type(error).__qualname__,
        text=safe_str(error),
        traceback=format_user_traceback(error, hidden_prefixes),
    )


def safe_str(value: object) -> str:
    """`str(value)`, also where the value's own `__str__` raises."""
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__}; its __str__ raised {type(error).__name__}>"


def format_user_traceback(error: BaseException, hidden_prefixes: Sequence[str] = ()) -> str:
    """The traceback as Python prints it, causes included, without frames under `hidden_prefixes`."""
    report = traceback.TracebackException.from_exception(error, capture_locals=False)
    prefixes = tuple(hidden_prefixes)
    pending: list[traceback.TracebackException | None] = [report]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        kept = [frame for frame in one.stack if not frame.filename.startswith(prefixes)] if prefixes else one.stack
        one.stack = traceback.StackSummary.from_list(kept)
        pending += [one.__cause__, one.__context__]
        pending += one.exceptions or []
    return "".join(report.format())


def digest_of(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def is_blob_name(name: str) -> bool:
    return len(name) >= 3 and name.isascii() and name.replace("-", "").replace("_", "").isalnum()


def blob_path(folder: str, name: str) -> str:
    """Where a blob lies in a blob folder: one level of sub-folders, so that none grows without bound.

    Names come from the other side: one that could lead out of the folder raises `ValueError`.
    """
    if not is_blob_name(name):
        raise ValueError(f"{name!r} is not the name of a blob: three or more letters, digits, - and _")
    return os.path.join(folder, name[:2], name)


def write_whole(path: str, pieces: Sequence[bytes | memoryview], *, sync: bool) -> None:
    """Put the pieces at `path`, one after the other, in place of what was there; whole or not at all.

    With `sync` it survives a power cut.
    """
    with whole_file(path, sync=sync) as file:
        for piece in pieces:
            file.write(piece)


@contextmanager
def whole_file(path: str, *, sync: bool) -> Iterator[IO[bytes]]:
    """A file to write that is at `path` once the block has ended in good order, and leaves nothing otherwise.

    The folder of `path` is made if need be, but not the blob folder around it: where that is missing, this is
    not the machine that it belongs to. Raises `FileNotFoundError` then.
    """
    parent = os.path.dirname(path)
    try:
        os.mkdir(parent, mode=0o700)
    except FileExistsError:
        pass
    handle, temporary = tempfile.mkstemp(dir=parent, prefix=TEMPORARY_PREFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if sync:
        for folder in (parent, os.path.dirname(parent)):
            _sync_folder(folder)


def _sync_folder(path: str) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_large(payload: bytes) -> bool:
    return len(payload) > INLINE_PAYLOAD_BYTES


def over_limit(limit_bytes: int) -> str:
    """What stands behind "the result of f has n bytes, ": which setting would have to be another one."""
    if limit_bytes <= INLINE_PAYLOAD_BYTES:
        return (
            f"over the {limit_bytes:,} that travel without a blob store: set blobs in the profile of the cluster to a "
            f"folder or an address such as s3://bucket/prefix"
        )
    return f"over the limit of {limit_bytes:,} a payload: raise the setting limits.payload_bytes"
