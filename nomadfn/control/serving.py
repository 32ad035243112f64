"""What every control service does on its way up, whatever its adapters are."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nomadfn import ports
from nomadfn.exception import ConflictError, ServiceError

if TYPE_CHECKING:
    from nomadfn.control.service import Service


class StorageError(ServiceError):
    """The journal or the registry cannot be used."""


class SteppedDownError(ServiceError):
    """Another control service leads now, or may; this one ends, and stands by once it is started again."""


def bring_back(service: Service, replay: Iterable[tuple[int, bytes]]) -> None:
    """Everything that was accepted before: the apps of the registry, then the calls of the journal's segments."""
    from nomadfn.core import records

    started = time.monotonic()
    service.operations.restore()
    segments = 0
    try:
        for _, body in replay:
            service.core.replay(records.decode_segment(body))
            segments += 1
    except ports.JournalError as error:
        raise StorageError(str(error)) from None
    service.core.end_replay(service.now())
    if segments:
        count = len(service.core.state.calls)
        service.log(f"{count:,} calls brought back from {segments:,} segments in {time.monotonic() - started:.1f} s")


def end(ended: asyncio.Future[Exception | None], error: Exception | None) -> None:
    if not ended.done():
        ended.set_result(error)


def bind(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConflictError(taken(setting, host, port, error)) from None
    listener.setblocking(False)
    return listener


def taken(setting: str, host: str, port: int, error: OSError) -> str:
    return (
        f"{host}:{port} cannot be listened on: {error.strerror or error}; another program may hold it: "
        f"choose another one with the setting {setting}, or 0 for a free one"
    )


def url(scheme: str, host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{scheme}://{shown}:{port}"
