"""What the operating system says of the processes beneath this one."""

from __future__ import annotations

import os
import signal


def children() -> list[int]:
    """This process's children, adopted ones included. Empty where the system does not tell."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def container_of(pid: int) -> str:
    """The container whose environment a process was started with; empty if it tells none."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            for item in file.read().split(b"\0"):
                if item.startswith(b"NOMADFN_CONTAINER_ID="):
                    return item.partition(b"=")[2].decode(errors="replace")
    except OSError:
        pass
    return ""


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
