"""Finding the control service that leads, and joining it: all that an agent does that may block, on a thread.

The thread is there only while there is no connection. So it never runs while a container is forked, because
containers are started over a connection alone.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import msgspec

from .ask import get
from .wire import VERSION, Join, encode
from .wire.link import Link, LinkClosed, LinkRefused

IDENTITY_FILE = "nomad_nomadfn.jwt"
"""Where Nomad keeps the identity that it has signed, in the folder NOMAD_SECRETS_DIR."""
ASK_S = 3.0
"""How long one address may take to answer."""
JOIN_S = 15.0
"""How long the control service may take to look at the agent's identity and allocation."""
FIRST_DELAY_S = 0.05
DELAY_GROWTH = 1.25
"""Slow: in the first seconds a standby takes over, and waits for its agents."""
MAX_DELAY_S = 5.0
STEADY_S = 5.0
"""A connection that ends sooner counts as one more failure."""
QUIET_S = 2.0
"""How long the search goes on before the agent says so; then twice as long each time, up to MAX_QUIET_S."""
MAX_QUIET_S = 300.0
REASONS = (OSError, LinkRefused, ValueError, KeyError, TypeError)
OK = 200


@dataclass(frozen=True, slots=True)
class Place:
    """Where the agent runs, as Nomad says, and where it looks for control services."""

    job: str
    alloc: str
    lane: int
    position: int
    urls: tuple[str, ...]
    secrets: str = ""
    token: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Place:
        """Raises `ValueError` that names what is missing."""
        names = ("NOMADFN_CONTROL_URLS", "NOMAD_JOB_ID", "NOMAD_ALLOC_ID", "NOMAD_GROUP_NAME", "NOMAD_ALLOC_INDEX")
        if missing := [name for name in names if not environ.get(name, "").strip()]:
            raise ValueError(
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: "
                f"Nomad starts this program, with the job that nomadfn has made of a function"
            )
        lane, position = environ["NOMAD_GROUP_NAME"].removeprefix("lane-"), environ["NOMAD_ALLOC_INDEX"]
        if not (lane.isdigit() and position.isdigit()):
            raise ValueError(f"the group {environ['NOMAD_GROUP_NAME']!r} is none of a function's job (lane-0, …)")
        return cls(
            environ["NOMAD_JOB_ID"],
            environ["NOMAD_ALLOC_ID"],
            int(lane),
            int(position),
            tuple(environ["NOMADFN_CONTROL_URLS"].split()),
            environ.get("NOMAD_SECRETS_DIR", ""),
            environ.get("NOMADFN_JOIN_TOKEN", ""),
        )

    def bearer(self) -> str:
        """What the agent joins with; an identity is read anew each time, because Nomad renews it.

        Raises `LookupError`.
        """
        try:
            with open(os.path.join(self.secrets, IDENTITY_FILE), encoding="ascii") as file:
                return file.read().strip()
        except (OSError, ValueError):
            if not self.token:
                raise LookupError(
                    f"there is neither the file {os.path.join(self.secrets, IDENTITY_FILE)} nor NOMADFN_JOIN_TOKEN; "
                    f"deploy the function again, so that its job has one of them"
                ) from None
            return self.token


class Seeker:
    """Joins one control service at a time. A byte into the pipe `wake` says that there is something to `take`."""

    def __init__(self, place: Place, wake: int) -> None:
        self._place = place
        self._urls = place.urls
        self._wake = wake
        self._last = ""
        """The address that was good last."""
        self._lost = ""
        """The data address of the leader that it was joined to last, and looks for another one than."""
        self._failures = 0
        self._joined_at = 0.0
        self._thread: threading.Thread | None = None
        self._found: tuple[Link, list[bytes]] | None = None

    @property
    def joined(self) -> str:
        """The data address of the control service that it has joined last."""
        return self._lost

    def look_at(self, urls: Sequence[str]) -> None:
        """Where control services are from now on; those that the job names stay good."""
        self._urls = tuple(dict.fromkeys((*urls, *self._place.urls)))

    def start(self, containers: list[str]) -> None:
        """Look for the leader until it has taken the agent in, with these containers."""
        steady = time.monotonic() - self._joined_at >= STEADY_S
        self._failures = 0 if steady else self._failures + 1
        self._thread = threading.Thread(target=self._seek, args=(containers,), name="nomadfn-seek", daemon=True)
        self._thread.start()

    def take(self) -> tuple[Link, list[bytes]] | None:
        """The open link and what has come over it; the thread has ended by then. None if there is none yet."""
        if self._found is None or self._thread is None:
            return None
        self._thread.join()
        found, self._found, self._thread = self._found, None, None
        self._joined_at = time.monotonic()
        return found

    def _seek(self, containers: list[str]) -> None:
        begin, quiet_s = time.monotonic(), QUIET_S
        lost = ""  # At first the same leader may be there still.
        while True:
            if self._failures:
                longest = min(MAX_DELAY_S, FIRST_DELAY_S * DELAY_GROWTH ** min(self._failures, 64))
                time.sleep(longest * random.uniform(0.5, 1.0))
            why: dict[str, str] = {}
            for url in sorted(self._urls, key=lambda one: one != self._last):
                try:
                    self._found = self._join(url, lost, containers)
                except (*REASONS, LookupError) as error:
                    why[url] = str(error) or type(error).__name__
                    continue
                self._last = url
                os.write(self._wake, b"\0")
                return
            self._failures += 1
            lost = self._lost
            if time.monotonic() - begin > quiet_s:
                quiet_s += min(MAX_QUIET_S, quiet_s)
                say("still looks for the control service that leads: " + "; ".join(f"{u}: {w}" for u, w in why.items()))

    def _join(self, url: str, lost: str, containers: list[str]) -> tuple[Link, list[bytes]]:
        """Join the leader that `url` names. Raises one of REASONS."""
        data_url = url if url.startswith("ws:") else ask_leader(url, lost)
        place = self._place
        link = Link.connect(data_url, place.bearer(), ASK_S)
        try:
            link.send(encode(Join(VERSION, place.job, place.alloc, place.lane, place.position, containers)))
            messages = link.receive(JOIN_S)
            if not messages:
                raise LinkClosed(f"it did not take the agent in within {JOIN_S:.0f} s")
        except BaseException:
            link.close()
            raise
        self._lost = data_url
        say(f"joined the control service at {data_url}")
        return link, messages


def ask_leader(url: str, lost: str = "") -> str:
    """The data address of the control service that leads, as the one at `url` knows it. Raises one of REASONS.

    Where that is none, or only the leader that was `lost`, it answers as soon as there is another one, or in a moment.
    """
    status, text = get(f"{url.rstrip('/')}/v1/leader" + (f"?unlike={quote(lost)}" if lost else ""), ASK_S)
    if status != OK:
        raise ConnectionError(f"HTTP status {status}: {text[:200].decode(errors='replace')}")
    try:
        return str(msgspec.json.decode(text)["data_url"])
    except msgspec.DecodeError as error:
        raise ValueError(f"it does not answer as a control service does: {error}") from error


def say(text: str) -> None:
    """A line in the allocation's log."""
    print(f"nomadfn: this agent {text}", file=sys.stderr, flush=True)
