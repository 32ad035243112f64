"""The Python environments of images, as folders of this machine: each is made once, by whoever needs it first.

    <root>/im-1a2b…        a virtual environment; whole once the file READY is in it
    <root>/im-1a2b….lock   held alone by who makes or removes it, shared by who uses it

A lock ends with the process that holds it, however that went, so nothing is left behind but a folder without READY,
which the next one makes anew. `build` runs in a process of its own and writes its log to stdout.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator

from .wire import ImageSpec, image_id
from .wire.places import environments_folder

READY = "nomadfn-ready.json"
BUILD_S = 3600.0
"""The longest that a build may take, the wait for another one of the same image included."""
POLL_S = 0.1
KEPT = 20
"""Environments that stay when others were used later; NOMADFN_ENVIRONMENTS_KEPT changes it."""
HIDDEN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""They would put other packages before the image's own."""


class BuildError(Exception):
    """The environment cannot be made; the text says why, and its log stands before it."""


def root() -> str:
    """The folder of all environments, made where it is not there yet."""
    places = [environments_folder()]
    task = os.environ.get("NOMAD_TASK_DIR")
    if task and not os.environ.get("NOMADFN_ENVIRONMENTS"):
        places.append(os.path.join(task, "environments"))
    for place in places:
        try:
            os.makedirs(place, exist_ok=True)
            if os.access(place, os.W_OK):
                return place
        except OSError:
            pass
    raise BuildError(
        f"the folder for environments, {places[0]}, cannot be written to; name another one in NOMADFN_ENVIRONMENTS"
    )


def python_of(path: str) -> str:
    return os.path.join(path, "bin", "python")


def use(id: str) -> tuple[str, int] | None:
    """The environment's folder and a lock that keeps it there, for as long as that is open; None if it is to be made.

    Raises `BuildError`.
    """
    path = os.path.join(root(), id)
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if _is_ready(path) and _is_same(lock, f"{path}.lock"):
            os.utime(lock)
            return path, lock
    except BlockingIOError:
        pass
    os.close(lock)
    return None


def build(image: ImageSpec) -> int:
    """Make the environment unless it is there; returns the exit code of this process."""
    from .environment_build import make

    until = time.monotonic() + BUILD_S
    id = image_id(image)
    try:
        path = os.path.join(root(), id)
        with _alone(path, id, until) as lock:
            if not _is_ready(path):
                make(image, path, lock, until)
        clean(os.path.dirname(path), id)
    except (BuildError, OSError) as error:
        say(str(error))
        return 1
    return 0


def say(text: str) -> None:
    print(text, flush=True)


def _is_ready(path: str) -> bool:
    """Whole, and its interpreter is still on this machine."""
    return os.path.exists(os.path.join(path, READY)) and os.access(python_of(path), os.X_OK)


def _is_same(handle: int, path: str) -> bool:
    """Whether the open lock is still the one that stands there."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _alone(path: str, id: str, until: float) -> Iterator[int]:
    """Nobody else makes or removes the environment inside this; gives the lock. Raises `BuildError`."""
    name, told = f"{path}.lock", False
    while True:
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(lock, name):
                break
        except BlockingIOError:
            if _is_ready(path):  # Others use it already.
                try:
                    yield lock
                finally:
                    os.close(lock)
                return
            if not told:
                told = True
                say(f"Waiting for image {id}, which another process builds")
        os.close(lock)
        if time.monotonic() > until:
            raise BuildError(f"another process has built image {id} for {BUILD_S / 60:.0f} minutes")
        time.sleep(POLL_S)
    try:
        yield lock
    finally:
        os.close(lock)


def clean(folder: str, spared: str = "") -> None:
    """Remove environments that nobody uses beyond those that were used last, and what killed builds have left."""
    _sweep(folder)
    with contextlib.suppress(ValueError):
        kept = int(os.environ.get("NOMADFN_ENVIRONMENTS_KEPT", KEPT))
        found = []
        for entry in os.scandir(folder):
            if entry.name.startswith("im-") and entry.name.endswith(".lock"):
                with contextlib.suppress(FileNotFoundError):
                    found.append((entry.stat().st_mtime, entry.name.removesuffix(".lock")))
        for _, id in sorted(found, reverse=True)[max(1, kept) :]:
            if id != spared:
                _remove(folder, id)


def _sweep(folder: str) -> None:
    """Links to what is gone, and the working folders of builds that were killed long ago."""
    old = time.time() - 2 * BUILD_S
    for entry in list(os.scandir(folder)):
        with contextlib.suppress(OSError):
            stale = entry.name.startswith((".build-", ".links-")) and entry.stat().st_mtime < old
            if entry.name.startswith(("own-", "libraries-")):
                inside = [os.path.join(entry.path, name) for name in os.listdir(entry.path)]
                stale = any(os.path.islink(one) and not os.path.exists(one) for one in inside)
            if stale:
                shutil.rmtree(entry.path, ignore_errors=True)


def _remove(folder: str, id: str) -> None:
    path = os.path.join(folder, id)
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_same(lock, f"{path}.lock"):
            shutil.rmtree(path, ignore_errors=True)
            os.unlink(f"{path}.lock")
    except OSError:
        pass  # Somebody uses it.
    finally:
        os.close(lock)
