"""A control service of this process's own: started, waited for, and ended.

It is begun before anything else that takes time, so this module imports little.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from nomadfn import exception
from nomadfn.profiles import load_profile

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
LOG_TAIL_LINES = 12

_lifelines: set[int] = set()


def data_folder() -> Path:
    """Where `nomadfn up` keeps its state: NOMADFN_DATA_DIR, else the user's data folder."""
    chosen = os.environ.get("NOMADFN_DATA_DIR")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("nomadfn"))


def in_container() -> bool:
    return bool(os.environ.get("NOMADFN_CONTAINER_ID") and os.environ.get("NOMADFN_DATA_URL"))


class Record(NamedTuple):
    """What a service that runs in a data folder has written about itself."""

    pid: int
    data_url: str
    http_url: str
    data_socket: str = ""


def read_record(data_dir: Path) -> Record | None:
    """Of the service that `nomadfn up` keeps in `data_dir`, if it runs and its port answers."""
    try:
        record = json.loads((data_dir / "service.json").read_text())
        found = Record(
            int(record["pid"]), str(record["data_url"]), str(record["http_url"]), str(record.get("data_socket", ""))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if _is_alive(found.pid) and _answers(found.data_url) else None


def begin() -> None:
    """Where `service.attach_or_start` would start a private service: start it now, so that it comes up beside the rest.

    If nobody asks for it, it ends with this process.
    """
    global _begun
    if _begun is None and not in_container() and load_profile().is_local and read_record(data_folder()) is None:
        _begun = _launch()


def take() -> Launch:
    """The one that was begun, if it is of use, else a new one."""
    global _begun
    launch, _begun = _begun, None
    if launch is not None and launch.surroundings != _surroundings():
        end(launch.process, launch.lifeline, launch.folder, os.getpid())  # The program has changed its settings.
        os.close(launch.ready)
        launch = None
    return launch or _launch()


class Launch(NamedTuple):
    """A private service that starts."""

    process: subprocess.Popen[bytes]
    lifeline: int
    ready: int
    folder: Path
    surroundings: tuple[str, dict[str, str]]


def _surroundings() -> tuple[str, dict[str, str]]:
    """What the service's settings depend on."""
    return os.getcwd(), {name: value for name, value in os.environ.items() if name.startswith("NOMADFN_")}


_begun: Launch | None = None


def _launch() -> Launch:
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
        import shutil

        os.close(lifeline)
        os.close(ready)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lifeline_reader)
        os.close(ready_writer)
    _lifelines.add(lifeline)
    return Launch(process, lifeline, ready, folder, _surroundings())


def await_ready(process: subprocess.Popen[bytes], ready: int, folder: Path) -> dict[str, Any]:
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
        raise exception.ServiceError(obituary(process, folder)) from None
    if "error" in record:
        kind = getattr(exception, str(record.get("kind", "")), exception.ServiceError)
        raise kind(str(record["error"]))
    if not isinstance(record, dict) or "data_url" not in record:
        raise exception.ServiceError(f"the control service said something unexpected as it started: {record!r}")
    return record


def obituary(process: subprocess.Popen[bytes], folder: Path) -> str:
    code = process.poll()
    what = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return f"the private control service ended ({what}); run the program again\n{_log_tail(folder)}".rstrip()


def _log_tail(folder: Path) -> str:
    try:
        lines = (folder / "control.log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(f"  | {line}" for line in lines[-LOG_TAIL_LINES:])


def end(process: subprocess.Popen[bytes], lifeline: int, folder: Path, owner: int) -> None:
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
    import shutil

    from nomadfn_agent.wire.store import MEMORY

    memory = folder / "blobs" / MEMORY
    if memory.is_symlink():  # The service was killed: else it would have removed that itself.
        shutil.rmtree(memory.readlink(), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


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
    from urllib.parse import urlsplit

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
