"""Finding the control service: the container's own, a cluster's leader, the one that `nomadfn up` keeps, or a private
one. Which of them, the profile says.

A private control service belongs to this process. It lives in a temporary folder, ends when this process
does, however that happens (it reads a pipe whose other end only this process holds), and nothing of it stays.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from nomadfn_agent import context
from nomadfn_agent.wire.store import MEMORY

from nomadfn import exception
from nomadfn.profiles import Profile, load_profile

if TYPE_CHECKING:
    from .leader import Leader

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
LOG_TAIL_LINES = 12

_lifelines: set[int] = set()


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
    process: subprocess.Popen[bytes] | None = None
    locate: Callable[[str], Leader | None] | None = field(default=None, repr=False)
    """Where the leader of a cluster is now; given the data address of one that was lost, waits a moment for another."""
    _finalizer: Any = field(default=None, repr=False)

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
        self.data_url, self.http_url, self.token, self.target = (
            found.data_url,
            found.http_url,
            found.token,
            found.target,
        )
        return True

    def obituary(self) -> str | None:
        """How a private service ended, with the last lines of its log; None while it runs."""
        if self.process is None or self.data_dir is None or self.process.poll() is None:
            return None
        return _obituary(self.process, self.data_dir)


def data_folder() -> Path:
    """Where `nomadfn up` keeps its state: NOMADFN_DATA_DIR, else the user's data folder."""
    chosen = os.environ.get("NOMADFN_DATA_DIR")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("nomadfn"))


def in_container() -> bool:
    return bool(os.environ.get("NOMADFN_CONTAINER_ID") and os.environ.get("NOMADFN_DATA_URL"))


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
    try:
        record = json.loads((data_dir / "service.json").read_text())
        pid, data_url, http_url = int(record["pid"]), str(record["data_url"]), str(record["http_url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not _is_alive(pid) or not _answers(data_url):
        return None
    token = os.environ.get("NOMADFN_TOKEN") or _read_token(data_dir)
    target = f"this machine, the control service of `nomadfn up` (pid {pid}, {http_url})"
    return ServiceHandle(data_url, http_url, token, False, data_dir, target)


def begin_private() -> None:
    """Where `attach_or_start` would start a private service: start it now, so that it comes up beside other work.

    If nobody asks for it, it ends with this process.
    """
    global _begun
    if _begun is None and not in_container() and load_profile().is_local and find_running(data_folder()) is None:
        _begun = _launch()


def start_private() -> ServiceHandle:
    """Start a control service of this process's own and wait until it serves."""
    global _begun
    launch, _begun = _begun, None
    if launch is not None and launch.surroundings != _surroundings():
        _end(launch.process, launch.lifeline, launch.folder, os.getpid())  # The program has changed its settings.
        os.close(launch.ready)
        launch = None
    launch = launch or _launch()
    try:
        import websockets.client  # noqa: F401  needed next, and there is time while the service starts

        record = _await_ready(launch.process, launch.ready, launch.folder)
    except BaseException:
        _end(launch.process, launch.lifeline, launch.folder, os.getpid())
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
        process=launch.process,
    )
    end = weakref.finalize(handle, _end, launch.process, launch.lifeline, launch.folder, os.getpid())
    handle._finalizer = end
    return handle


class _Launch(NamedTuple):
    """A private service that starts."""

    process: subprocess.Popen[bytes]
    lifeline: int
    ready: int
    folder: Path
    surroundings: tuple[str, dict[str, str]]


def _surroundings() -> tuple[str, dict[str, str]]:
    """What the service's settings depend on."""
    return os.getcwd(), {name: value for name, value in os.environ.items() if name.startswith("NOMADFN_")}


_begun: _Launch | None = None


def _launch() -> _Launch:
    folder = Path(tempfile.mkdtemp(prefix=f"nomadfn-{os.getpid()}-"))
    lifeline_reader, lifeline = os.pipe()
    ready, ready_writer = os.pipe()
    try:
        with open(folder / "control.log", "ab") as log:
            command = [sys.executable, "-P", "-m", "nomadfn.control", "--private", "--data-dir", str(folder)]
            # Where the user's settings have the service that stays, this one would stand in its way.
            command += ["--host", "127.0.0.1", "--port", "0", "--data-port", "0"]
            command += ["--web-host", "127.0.0.1", "--web-port", "0"]
            command += ["--lifeline-fd", str(lifeline_reader), "--ready-fd", str(ready_writer)]
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lifeline_reader, ready_writer),
                start_new_session=True,
            )
    except BaseException:
        os.close(lifeline)
        os.close(ready)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lifeline_reader)
        os.close(ready_writer)
    _lifelines.add(lifeline)
    return _Launch(process, lifeline, ready, folder, _surroundings())


def _await_ready(process: subprocess.Popen[bytes], ready: int, folder: Path) -> dict[str, Any]:
    """The line that the service writes once it serves."""
    deadline = time.monotonic() + START_TIMEOUT_S
    line = b""
    while not line.endswith(b"\n"):
        rest_s = deadline - time.monotonic()
        if rest_s <= 0 or not select.select([ready], [], [], rest_s)[0]:
            raise exception.ServiceError(
                f"the control service did not start within {START_TIMEOUT_S:.0f} s; the machine may be overloaded: "
                f"try again\n{_log_tail(folder)}".rstrip()
            )
        chunk = os.read(ready, 65536)
        if not chunk:
            break
        line += chunk
    try:
        record = json.loads(line)
    except ValueError:
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        raise exception.ServiceError(_obituary(process, folder)) from None
    if "error" in record:
        kind = getattr(exception, str(record.get("kind", "")), exception.ServiceError)
        raise kind(str(record["error"]))
    if not isinstance(record, dict) or "data_url" not in record:
        raise exception.ServiceError(f"the control service said something unexpected as it started: {record!r}")
    return record


def _obituary(process: subprocess.Popen[bytes], folder: Path) -> str:
    code = process.poll()
    what = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return f"the private control service ended ({what}); run the program again\n{_log_tail(folder)}".rstrip()


def _log_tail(folder: Path) -> str:
    try:
        lines = (folder / "control.log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(f"  | {line}" for line in lines[-LOG_TAIL_LINES:])


def _end(process: subprocess.Popen[bytes], lifeline: int, folder: Path, owner: int) -> None:
    """Let go of the lifeline, wait until the service is gone, and remove its folder."""
    if os.getpid() != owner:
        return
    _lifelines.discard(lifeline)
    os.close(lifeline)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    memory = folder / "blobs" / MEMORY
    if memory.is_symlink():  # The service was killed: else it would have removed that itself.
        shutil.rmtree(memory.readlink(), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _read_token(folder: Path) -> str:
    try:
        return (folder / "token").read_text().strip()
    except OSError:
        return ""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _answers(url: str) -> bool:
    import socket

    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), 2.0).close()
    except OSError:
        return False
    return True


def _let_go_in_child() -> None:
    """A forked child must not hold the lifelines: the services would outlive this process."""
    for lifeline in _lifelines:
        os.close(lifeline)
    _lifelines.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
