"""Finding the control service: the container's own, a cluster's leader, the one that `nomadfn up` keeps, or a private
one. Which of them, the profile says.

A private control service belongs to this process. It lives in a temporary folder, ends when this process
does, however that happens (it reads a pipe whose other end only this process holds), and nothing of it stays.
"""

from __future__ import annotations

import os
import subprocess
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomadfn_agent import context

from nomadfn import exception
from nomadfn.profiles import Profile, load_profile

from . import private_service
from .private_service import data_folder as data_folder
from .private_service import in_container as in_container

if TYPE_CHECKING:
    from .leader import Leader


@dataclass
class ServiceHandle:
    """One control service that answers, and how to reach it. `close` ends it if it is private."""

    data_url: str
    http_url: str
    token: str
    private: bool
    data_dir: Path | None
    target: str
    """The service in words, for the first line that a command prints."""
    data_socket: str = ""
    """A Unix socket of the same listener, for processes on its machine."""
    process: subprocess.Popen[bytes] | None = None
    locate: Callable[[str], Leader | None] | None = field(default=None, repr=False)
    """Where the leader of a cluster is now; given the data address of one that was lost, waits a moment for another."""
    _finalizer: Any = field(default=None, repr=False)

    @property
    def moves(self) -> bool:
        """In a container of a cluster: the address that it started with may be that of an earlier leader, and the next
        one learns of the container's token only when the cluster tells it of the container."""
        return self.locate is not None and in_container()

    def close(self) -> None:
        """End a private service and remove its folder; does nothing to one that stays. More than once is no error."""
        if self._finalizer is not None:
            self._finalizer()

    def refresh(self, *, patiently: bool = False) -> bool:
        """Read anew where the service listens, after it may have been restarted. False when none is there now.

        `patiently`: nobody is where it listened before, so on a cluster this waits a moment for another one.
        """
        if self.locate is not None:
            leader = self.locate(self.data_url if patiently else "")
            if leader is not None:
                self.data_url, self.http_url = leader.data_url, leader.http_url
            return leader is not None
        if self.private or self.data_dir is None:
            return self.obituary() is None
        found = find_running(self.data_dir)
        if found is None:
            return False
        self.data_url, self.http_url, self.data_socket = found.data_url, found.http_url, found.data_socket
        self.token, self.target = found.token, found.target
        return True

    def obituary(self) -> str | None:
        """How a private service ended, with the last lines of its log; None while it runs."""
        if self.process is None or self.data_dir is None or self.process.poll() is None:
            return None
        return private_service.obituary(self.process, self.data_dir)


def attach() -> ServiceHandle | None:
    """The container's own service, else the profile's: a cluster's leader, or the one that `up` keeps, else None.

    Raises ServiceError where a cluster has no leader now.
    """
    if in_container():
        is_clustered = bool(context.control_urls())
        return ServiceHandle(
            data_url=os.environ["NOMADFN_DATA_URL"],
            http_url=os.environ.get("NOMADFN_HTTP_URL", ""),
            token=os.environ.get("NOMADFN_TOKEN", ""),
            private=False,
            data_dir=None,
            target="the control service of this container",
            data_socket=os.environ.get("NOMADFN_DATA_SOCKET", ""),
            locate=(lambda lost: _leader().ask(context.control_urls(), lost)) if is_clustered else None,
        )
    return find_staying()


def find_staying() -> ServiceHandle | None:
    """The profile's control service: a cluster's leader, or the one that `up` keeps on this machine, if it runs.

    Raises ServiceError where a cluster has no leader now.
    """
    profile = load_profile()
    return find_running(data_folder()) if profile.is_local else find_in_cluster(profile)


def find_in_cluster(profile: Profile) -> ServiceHandle:
    """The control service that leads a cluster. Raises ServiceError where none does, AuthError without a token."""
    token = os.environ.get("NOMADFN_TOKEN", "")
    if not token:
        raise exception.AuthError(f"{profile} asks for a token; set NOMADFN_TOKEN to the one of its owner")
    leader = _leader().find_leader(profile)
    if leader is None:
        raise exception.ServiceError(
            f"no control service leads {profile} now; `nomadfn up --profile {profile.name}` starts it, and "
            f"`nomadfn doctor --profile {profile.name}` says what is missing"
        )
    target = f"{profile}, led from {leader.http_url}"
    return ServiceHandle(
        leader.data_url,
        leader.http_url,
        token,
        False,
        None,
        target,
        locate=lambda lost: _leader().find_leader(profile, lost=lost),
    )


def _leader() -> Any:
    """Imported when it is needed: most programs run on one machine."""
    from . import leader

    return leader


def attach_or_start() -> ServiceHandle:
    """The service that is there, else a private one. Raises ServiceError when it does not start."""
    return attach() or start_private()


def find_running(data_dir: Path) -> ServiceHandle | None:
    """The service that `nomadfn up` keeps in `data_dir`, if it runs and its port answers."""
    record = private_service.read_record(data_dir)
    if record is None:
        return None
    pid, data_url, http_url, data_socket = record
    token = os.environ.get("NOMADFN_TOKEN") or _read_token(data_dir)
    target = f"this machine, the control service of `nomadfn up` (pid {pid}, {http_url})"
    return ServiceHandle(data_url, http_url, token, False, data_dir, target, data_socket)


def start_private() -> ServiceHandle:
    """Start a control service of this process's own, or take the one that was begun, and wait until it serves."""
    launch = private_service.take()
    try:
        import websockets.client  # noqa: F401  needed next, and there is time while the service starts

        record = private_service.await_ready(launch.process, launch.ready, launch.folder)
    except BaseException:
        private_service.end(launch.process, launch.lifeline, launch.folder, os.getpid())
        raise
    finally:
        os.close(launch.ready)
    handle = ServiceHandle(
        data_url=str(record["data_url"]),
        http_url=str(record["http_url"]),
        token=os.environ.get("NOMADFN_TOKEN") or _read_token(launch.folder),
        private=True,
        data_dir=launch.folder,
        target="this machine, a private control service",
        data_socket=str(record.get("data_socket", "")),
        process=launch.process,
    )
    end = weakref.finalize(handle, private_service.end, launch.process, launch.lifeline, launch.folder, os.getpid())
    handle._finalizer = end
    return handle


def _read_token(folder: Path) -> str:
    try:
        return (folder / "token").read_text().strip()
    except OSError:
        return ""
