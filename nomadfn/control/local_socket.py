"""Websockets over a Unix socket, for processes on the machine of their control service.

A message by TCP takes the system about twice as long, which is a tenth of a short call's time. picows sets options of
TCP on every connection that it accepts, whatever it is; here such options are nobody's business and say nothing.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

PATH_BYTES = 100
"""The path of a Unix socket may be little longer."""
SEND_BYTES = 2 * 1024 * 1024
"""What a connection takes before its writer waits, if the system allows so much; TCP's buffers grow by themselves."""


class LocalConnection(socket.socket):
    def setsockopt(self, level: int, option: int, *value: Any) -> None:
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, option, *value)

    def getsockopt(self, level: int, option: int, *size: Any) -> Any:
        return 0 if level == socket.IPPROTO_TCP else super().getsockopt(level, option, *size)


class LocalListener(socket.socket):
    def accept(self) -> tuple[LocalConnection, Any]:
        fd, address = self._accept()  # type: ignore[attr-defined]
        connection = LocalConnection(self.family, self.type, self.proto, fileno=fd)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        return connection, address


def listen_at(path: Path) -> LocalListener | None:
    """A listener there for this user alone, in the place of one that an earlier process has left; None if it cannot be.

    The folder must be the caller's own, so that nobody else can have put a socket there.
    """
    if len(os.fsencode(path)) > PATH_BYTES:
        return None
    listener = LocalListener(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
    except OSError:
        listener.close()
        return None
    return listener
