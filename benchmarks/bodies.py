"""The functions that both sides run: plain ones for the pool of processes, and the same ones in an app."""

import os
import time

import nomadfn

COLD_STARTS = 20
"""How many functions there are that have never had a container."""


def noop(value: object = None) -> None:
    """No work at all: what is measured is the way there and back."""


def echo(value: bytes) -> bytes:
    return value


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def wait_for(path: str) -> None:
    """Return at once for an empty path, else when the file is there (10 minutes at most)."""
    deadline = time.monotonic() + 600
    while path and not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.005)


app = nomadfn.App("benchmarks")
remote_noop = app.function()(noop)
remote_echo = app.function()(echo)
remote_sleep = app.function(min_containers=2, max_containers=2)(sleep)
remote_wait_for = app.function(max_containers=1, timeout=900)(wait_for)
remote_cold = [app.function(name=f"cold_{number}", scaledown_window=2)(noop) for number in range(COLD_STARTS)]
