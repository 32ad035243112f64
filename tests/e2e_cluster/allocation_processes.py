"""The processes of an allocation on this machine: Nomad's executor, nomadfn's agent, and its containers."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def in_allocation(alloc: str) -> list[int]:
    """Agent and containers, the agent first."""
    mark = f"NOMAD_ALLOC_ID={alloc}".encode()
    found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if mark in _environment(pid)]
    return sorted(found, key=lambda pid: _parent(pid) in found)


def all_of(alloc: str) -> list[int]:
    """The same, and Nomad's executor before them."""
    found = in_allocation(alloc)
    return [_parent(found[0]), *found] if found else []


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
