"""Where a control service is reached, and what it is."""

from __future__ import annotations

import msgspec


class Address(msgspec.Struct):
    """Where the service is reached, and what it is."""

    data_url: str = ""
    data_socket: str = ""
    """A Unix socket with the same listener behind it, for processes on this machine; empty where there is none."""
    http_url: str = ""
    data_dir: str = ""
    code_cache: str = ""
    target: str = ""
    started_at: float = 0.0
    private: bool = False
