"""Start one control service: read the settings, pick the world, serve, end.

On one machine the warm parent is started first of all, so that it imports while this process does. The websocket
listener comes next; the HTTP API, which takes longer to import, is there a moment later behind a port that is open
from the start. On a cluster the service stands by until it leads; see `clustered`.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomadfn.exception import ConflictError, Error, InvalidError

if TYPE_CHECKING:
    from nomadfn.profiles import Profile

EXIT_USAGE, EXIT_CONFLICT, EXIT_STORAGE, EXIT_STEPPED_DOWN, EXIT_OTHER = 2, 3, 4, 5, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a control service until it is told to end; returns the exit code of the process."""
    flags = _parse(arguments)
    ready = _Ready(flags.pop("ready_fd"))
    lifeline = flags.pop("lifeline_fd")
    private = flags.pop("private")
    chosen = flags.pop("profile")
    try:
        if private:
            return _run_embedded(flags, ready, lifeline, private)
        from nomadfn.profiles import load_profile

        profile = load_profile(chosen)
        if profile.is_local:
            return _run_embedded(flags, ready, lifeline, private)
        return _run_clustered(profile, flags, ready)
    except BaseException as error:
        return ready.fail(error)


def _run_embedded(flags: dict[str, Any], ready: _Ready, lifeline: int | None, private: bool) -> int:
    from nomadfn.adapters.warm_parent import WarmParent

    parent = WarmParent.launch()  # Before any import that takes time.
    from nomadfn.control import embedded
    from nomadfn.control.settings import load_settings

    settings = load_settings(flags)
    # After the warm parent: what user functions write is theirs to decide.
    os.umask(0o077)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    if lifeline is not None:
        _end_with(lifeline, settings.data_dir if private else None)
    return _run(embedded.serve(settings, parent, ready.tell, private))


def _run_clustered(profile: Profile, flags: dict[str, Any], ready: _Ready) -> int:
    from nomadfn.control.settings import load_settings

    settings = load_settings(flags, profile=profile)
    try:
        from nomadfn.control import clustered
    except ModuleNotFoundError as error:
        raise InvalidError(
            f"a control service of a cluster needs {error.name}; install it: pip install 'nomadfn[nomad,consul]'"
        ) from None
    os.umask(0o077)
    return _run(clustered.serve(profile, settings, ready.tell))


def _parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m nomadfn.control", description="Run a control service.")
    parser.add_argument("--profile", help="the world to serve, from nomadfn.toml; this machine by default")
    parser.add_argument("--data-dir", help="folder of everything that lasts")
    parser.add_argument("--private", action="store_true", help="serve one program and end with it")
    parser.add_argument("--host")
    parser.add_argument("--port", help="of the HTTP API; 0 takes a free one")
    parser.add_argument("--data-port", help="of the websocket listener; 0 takes a free one")
    parser.add_argument("--web-host", help="where web functions are served; 127.0.0.1 by default")
    parser.add_argument("--web-port", help="of the gateway; by default the one that it had before, or a free one")
    parser.add_argument("--capacity", help="containers that may run at once")
    parser.add_argument("--insecure-plaintext", action="store_true", default=None)
    parser.add_argument("--lifeline-fd", type=int, help="end when this file reaches its end")
    parser.add_argument("--ready-fd", type=int, help="write one line of JSON here once serving")
    return vars(parser.parse_args(arguments))


class _Ready:
    """Where the parent waits to hear that the service serves, or why it does not."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def tell(self, record: dict[str, Any]) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            try:
                os.write(fd, json.dumps(record).encode() + b"\n")
            except OSError:
                pass
            os.close(fd)

    def fail(self, error: BaseException) -> int:
        """Say what went wrong in one line; the traceback only for a fault of nomadfn itself."""
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return 0 if isinstance(error, KeyboardInterrupt) else int(error.code or 0)
        from nomadfn.control.serving import SteppedDownError, StorageError

        kind = type(error).__name__ if isinstance(error, Error) else "ServiceError"
        if isinstance(error, StorageError | SteppedDownError):
            kind = "ServiceError"
        self.tell({"error": str(error) or repr(error), "kind": kind})
        with contextlib.suppress(OSError):  # the log may lie on a disk that is full
            print(f"Error: {error}", file=sys.stderr, flush=True)
        if isinstance(error, InvalidError):
            return EXIT_USAGE
        if isinstance(error, ConflictError):
            return EXIT_CONFLICT
        if isinstance(error, StorageError):
            return EXIT_STORAGE
        if isinstance(error, SteppedDownError):
            return EXIT_STEPPED_DOWN
        if not isinstance(error, Error | OSError):
            raise error
        return EXIT_OTHER


def _run(service: Coroutine[Any, Any, int]) -> int:
    import asyncio

    import uvloop
    from nomadfn_agent.wire.heap import keep_freed

    keep_freed()
    gc.freeze()
    gc.enable()
    # A million waiting inputs are no garbage: looking at all of them often would cost more than it gives back.
    gc.set_threshold(50_000, 20, 100)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(service)


def _end_with(lifeline: int, folder: Path | None) -> None:
    """Whoever holds the other end is gone when this reads the end: then this process goes, too, and its `folder`.

    SIGTERM lets the loop end in order; should the loop be stuck, the process ends all the same, and its warm
    parent, which reads a socket of its own, ends every container.
    """
    orphaned = threading.Event()

    def remove_folder() -> None:
        if folder is not None and orphaned.is_set():
            import shutil

            shutil.rmtree(folder, ignore_errors=True)

    def wait() -> None:
        try:
            while os.read(lifeline, 1):
                pass
        except OSError:
            pass
        orphaned.set()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(15)
        os._exit(EXIT_OTHER)

    atexit.register(remove_folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the loop takes it over
    threading.Thread(target=wait, name="lifeline", daemon=True).start()
