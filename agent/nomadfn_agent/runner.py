"""One container's process: join the control service, become one function, run its inputs."""

from __future__ import annotations

import os
import sys
import time

from .code import Code
from .execute import flush_streams, make_executor
from .loop import LINK_LOST, Loop
from .wire import VERSION, Bind, Hello, Ready, StartFailed, decode_to_runner, encode
from .wire.link import Link, LinkClosed, LinkRefused
from .wire.payload import encode as encode_payload

CONNECT_TIMEOUT_S = 10.0
BIND_TIMEOUT_S = 30.0
NOT_LOADED = 2
"""Exit code of a runner whose function could not be loaded; LINK_LOST is the other one of ours."""


def main() -> int:
    """Run the container that the environment describes, until it has drained. Returns its exit code.

    NOMADFN_DATA_URL and NOMADFN_TOKEN say where to join, NOMADFN_CONTAINER_ID who this is.
    """
    try:
        link = Link.connect(os.environ["NOMADFN_DATA_URL"], os.environ["NOMADFN_TOKEN"], CONNECT_TIMEOUT_S)
        bind, rest = _join(link)
    except (LinkClosed, LinkRefused, OSError) as error:
        print(f"nomadfn: this container could not join its control service: {error}", file=sys.stderr, flush=True)
        return LINK_LOST
    _set_environment(bind)
    code = Code(bind)
    try:
        executor = make_executor(code.load(), code)
    except BaseException as error:
        flush_streams()
        link.send(encode(StartFailed(encode_payload(code.describe(error)))))
        link.close()
        return NOT_LOADED
    loop = Loop(link, executor.run, executor.interrupt, flush_streams)
    link.send(encode(Ready(slots=1)))
    loop.serve(rest)
    link.close()
    return 0


def _join(link: Link) -> tuple[Bind, list[bytes]]:
    """Say who this is and get the function to become, and what came right behind it. Raises LinkClosed."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    link.send(encode(Hello(VERSION, "runner", os.environ["NOMADFN_CONTAINER_ID"], python)))
    messages = link.receive(BIND_TIMEOUT_S)
    if not messages:
        raise LinkClosed(f"it did not say within {BIND_TIMEOUT_S:.0f} s which function to run")
    bind = decode_to_runner(messages[0])
    if not isinstance(bind, Bind):
        raise LinkClosed(f"it sent {type(bind).__name__} before it said which function to run")
    return bind, messages[1:]


def _set_environment(bind: Bind) -> None:
    """The function's `env` stands before anything of the user is imported."""
    os.environ.update(bind.spec.env)
    os.environ["NOMADFN_APP_ID"] = bind.app
    os.environ["NOMADFN_APP_NAME"] = bind.app_name
    os.environ["NOMADFN_FUNCTION"] = bind.spec.name
    if "TZ" in bind.spec.env:
        time.tzset()
