"""Starting the process that a machine's containers are forked from (`nomadfn_agent.supervisor`).

A module of its own, so that it is started before its control service imports anything that takes time.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

PRIVATE_VARIABLES = (
    "NOMADFN_TOKEN",
    "NOMADFN_METRICS_TOKEN",
    "NOMADFN_WEB_TOKEN",
    "NOMADFN_CONTAINER_ID",
    "NOMADFN_DATA_URL",
    "NOMADFN_DATA_SOCKET",
    "NOMADFN_HTTP_URL",
)
"""What the control service's own environment may hold and no container may inherit."""

PRELOADED = ("nomadfn.sdk.app", "nomadfn.exception")
"""What every program imports: done once here, it is no part of a container's start."""


class WarmParent:
    """The process that containers are forked from, and this side's end of the socket to it."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.process = process
        self.control = control

    @classmethod
    def launch(cls) -> WarmParent:
        """Start it; returns at once, while it imports. Call this before there is an event loop or a thread."""
        ours, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if name not in PRIVATE_VARIABLES}
        with theirs:
            command = [sys.executable, "-P", "-m", "nomadfn_agent", "--supervisor-fd", str(theirs.fileno())]
            process = subprocess.Popen(
                [*command, *(f"--preload={name}" for name in PRELOADED)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,
            )
        return cls(process, ours)
