"""Right after a fork: from a copy of the supervisor to a process that belongs to one container alone."""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import gc
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
OOM_SCORE = b"500"
"""Containers go before the control service when memory runs out."""

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
"""Loaded before any fork: a child has nothing to look for."""


def adopt_orphans() -> None:
    """Make this process the parent of descendants that lost theirs, so that it can end them (Linux)."""
    if _libc is not None:
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run_container(
    main: Callable[[], int], env: Mapping[str, str], streams: tuple[int, int], parent: int, kept: frozenset[int]
) -> NoReturn:
    """Never returns: `main` runs as a container of its own, and the process ends with its exit code.

    `streams` are the write ends for stdout and stderr; `parent` is the supervisor's process id; of its files only
    `kept` stay open.
    """
    status = 1
    try:
        _detach(streams, parent, kept)
        os.environ.update(env)
        random.seed()
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()
        gc.enable()
        status = main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _detach(streams: tuple[int, int], parent: int, kept: frozenset[int]) -> None:
    os.setpgid(0, 0)
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (streams[0], 1), (streams[1], 2)):
        os.dup2(source, target)
    for name in os.listdir("/dev/fd"):
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                pass  # The one that the listing itself had open.
    for name, handle in (("stdout", 1), ("stderr", 2)):
        stream = open(handle, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    faulthandler.enable(all_threads=False)
    try:
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(OOM_SCORE)
    except OSError:
        pass
