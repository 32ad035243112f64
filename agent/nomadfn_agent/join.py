"""The agent of a Nomad allocation: a supervisor that finds its control service itself, and outlives it.

It joins the control service that leads, and while it is connected it serves it as the warm parent of one machine
does. When the connection is lost, containers run on, what there is to say waits, and the agent looks for the leader
again, for as long as the allocation lives. Told to end, it says so at once, so that its containers get no more
inputs, and ends with the last of them; told so twice, it ends with all of them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from .channel import WebsocketFraming
from .child import adopt_orphans
from .seek import Place, Seeker, say
from .supervisor import Supervisor, freeze, warm_up
from .wire import Ended, Joined, Leaving, Start, ToSupervisorFrame, decode_from_agent, decode_to_supervisor

PING_S = 2.0
SILENT_S = 6.0
"""A control service that answers no ping for so long is frozen, or cut off: another one may lead by now."""
LOOK_S = 5.0
"""How often the agent looks around while it has no control service."""
PRELOADED = ("nomadfn.sdk.app", "nomadfn.exception")
"""What every program imports: done once here, it is no part of a container's start."""
EXIT_USAGE = 2


class Agent(Supervisor):
    """Serves whichever control service leads, until Nomad ends it."""

    outlives_leaders = True

    def __init__(self, place: Place, preload: Sequence[str]) -> None:
        self._asked = 0
        """How often it was told to end; signals may come from the next line on."""
        super().__init__(preload)
        self._parent = os.getppid()
        self._seeker = Seeker(place, self._wake_write)
        self._framing: WebsocketFraming | None = None
        self._leader = ""
        """The data address of the control service that it has joined last."""
        self._ping_at = 0.0
        self._leaving = False
        self._seek()

    def _seek(self) -> None:
        """Containers whose end is still to be told count as there: else nobody would hear how they ended."""
        waiting = map(decode_from_agent, self._channel.waiting)
        ended = {frame.container for frame in waiting if isinstance(frame, Ended)}
        self._seeker.start(sorted(ended | self._names))

    def _on_joined(self, found: tuple[Any, list[bytes]]) -> None:
        link, messages = found
        sock, protocol, more = link.release()
        self._framing = WebsocketFraming(protocol)
        self._ping_at = time.monotonic() + PING_S
        former, self._leader = self._leader, self._seeker.joined
        if former != self._leader:
            self._summon(self._leader)
        self.connect(sock, self._framing)
        if self._leaving:
            self._tell_leaving()
        for message in (*messages, *more):
            self._take(decode_to_supervisor(message))

    def _take(self, frame: ToSupervisorFrame) -> None:
        if self._channel.socket is None:
            return  # It came just before the end of the connection; the next control service says what it wants.
        if isinstance(frame, Joined):
            self._on_control_urls(frame.control_urls)
        elif isinstance(frame, Start) and self._leaving:
            self._send(Ended(frame.container, -signal.SIGTERM, "nomadfn: the agent was about to end"))
        else:
            super()._take(frame)

    def _on_control_urls(self, urls: list[str]) -> None:
        """For this agent and, in a file, for its containers."""
        self._seeker.look_at(urls)
        path = os.environ.get("NOMADFN_CONTROL_FILE")
        if urls and path:
            try:
                with open(f"{path}.new", "w") as file:
                    file.write("\n".join(urls))
                os.replace(f"{path}.new", path)
            except OSError as error:
                say(f"cannot write where control services are to {path}: {error}")

    def _on_lost(self, error: OSError) -> None:
        self._disconnect()
        self._framing = None
        if not self._ending:
            say(f"lost its control service ({error}); it looks for the one that leads")
            self._seek()

    def _next_due_s(self) -> float | None:
        due_s = super()._next_due_s()
        own_s = LOOK_S if self._framing is None else max(0.0, self._ping_at - time.monotonic())
        return own_s if due_s is None else min(due_s, own_s)

    def _on_due(self) -> None:
        super()._on_due()
        self._end_if_empty()
        if os.getppid() != self._parent and not self._leaving:
            say("ends: the process of Nomad that it ran under is gone, and nobody else could end it")
            self._leave()
        now = time.monotonic()
        if self._framing is None or now < self._ping_at:
            return
        if now - self._channel.heard_at > SILENT_S:
            self._on_lost(TimeoutError(f"it has not answered for {SILENT_S:.0f} s"))
        else:
            self._ping_at = now + PING_S
            self._framing.ping()
            self._write()

    def _on_wake(self, events: int) -> None:
        super()._on_wake(events)
        if (found := self._seeker.take()) is not None:
            self._on_joined(found)
        if self._asked and not self._leaving:
            self._leave()

    def _leave(self) -> None:
        self._leaving = True
        self._tell_leaving()
        self._end_if_empty()

    def _on_end_signal(self, *_: Any) -> None:
        self._asked += 1
        if self._asked > 1:
            self._ending = True

    def _tell_leaving(self) -> None:
        if self._names and self._channel.socket is not None:
            self._send(Leaving("Nomad stops its allocation"))

    def _reap(self) -> None:
        super()._reap()
        self._end_if_empty()

    def _end_if_empty(self) -> None:
        if self._leaving and not self._names:
            self._ending = True


def main(preload: Sequence[str] = PRELOADED) -> int:
    """Be the agent of the allocation that the environment describes. Returns the exit code."""
    try:
        place = Place.from_environ(os.environ)
    except ValueError as error:
        say(f"cannot start: {error}")
        return EXIT_USAGE
    _prepare_environment()
    adopt_orphans()
    agent = Agent(place, preload)
    warm_up(preload)
    freeze()
    agent.serve()
    return 0


def _prepare_environment() -> None:
    """What containers find in theirs: nothing to join with, a place for code, and the GPUs that Nomad has assigned."""
    os.environ.pop("NOMADFN_JOIN_TOKEN", None)
    if folder := os.environ.get("NOMAD_TASK_DIR"):
        os.environ.setdefault("NOMADFN_CODE_CACHE", os.path.join(folder, "code"))
        os.environ.setdefault("NOMADFN_CONTROL_FILE", os.path.join(folder, "control_urls"))
    devices = os.environ.get("NVIDIA_VISIBLE_DEVICES", "")
    if devices not in ("", "all", "none", "void"):
        # With an image its runtime shows only these; on exec and raw_exec nothing else hides the others.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", devices)
