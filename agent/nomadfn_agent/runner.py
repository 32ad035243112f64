"""One container's process: join the control service, become one function, run its inputs."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from .claims import Claims
from .code import Code, LoadError
from .context import Terminated, control_urls
from .execute import flush_streams, make_executor
from .instances import Instance
from .loop import LINK_LOST, Loop
from .summons import listen
from .wire import INLINE_PAYLOAD_BYTES, VERSION, Bind, Hello, Ready, StartFailed, decode_to_runner, encode
from .wire.link import Link, LinkClosed, LinkRefused
from .wire.payload import Raised
from .wire.payload import encode as encode_payload

if TYPE_CHECKING:
    from .units import Units

CONNECT_TIMEOUT_S = 10.0
BIND_TIMEOUT_S = 30.0
REJOIN_S = 60.0
"""How long a container goes on whose control service is gone and has no successor."""
REJOIN_TRY_S = 3.0
REJOIN_PAUSE_S = 0.25
NOT_LOADED = 2
"""Exit code of a runner whose function could not be loaded; LINK_LOST is the other one of ours."""
TERMINATED = 143
"""Exit code of a runner that was ended by SIGTERM, after its `@exit` methods."""
TEXT_MAX = 16 * 1024


def main(claims: Claims, inbox: int | None = None) -> int:
    """Run the container that the environment describes, until it has drained. Returns its exit code.

    NOMADFN_DATA_URL, NOMADFN_DATA_SOCKET and NOMADFN_TOKEN say where to join, NOMADFN_CONTAINER_ID who this is. From
    `inbox` comes what `Summons` has sent.
    """
    try:
        link = Link.connect(
            os.environ["NOMADFN_DATA_URL"],
            os.environ["NOMADFN_TOKEN"],
            CONNECT_TIMEOUT_S,
            os.environ.get("NOMADFN_DATA_SOCKET", ""),
        )
        bind, rest = _join(link)
    except (LinkClosed, LinkRefused, OSError) as error:
        print(f"nomadfn: this container could not join its control service: {error}", file=sys.stderr, flush=True)
        return LINK_LOST
    _set_environment(bind)
    code = Code(bind)
    rejoin = _Rejoin(code, os.environ["NOMADFN_DATA_URL"]) if control_urls() else None
    entering = False
    try:
        function: Callable[..., Any] | Instance = code.load()
        if bind.spec.methods:
            function = _make_instance(function, bind)
            entering = True
            function.enter()
            entering = False
        loop = _make_loop(link, claims, function, code, rejoin)
    except BaseException as error:
        flush_streams()
        link.send(encode(StartFailed(_described(code, error), entering)))
        link.close()
        return NOT_LOADED
    if rejoin is not None and inbox is not None:
        listen(inbox, partial(_follow, loop, rejoin))
    link.send(encode(Ready(bind.spec.max_inputs)))
    if isinstance(function, Instance) and function.has_exit:
        return _serve_and_exit(loop, rest, function)
    loop.serve(rest)
    loop.close()
    return 0


def _make_instance(user_cls: Any, bind: Bind) -> Instance:
    if not isinstance(user_cls, type):
        raise LoadError(
            f"{bind.spec.program_name} is a class in the program and a {type(user_cls).__name__} in its container: "
            f"define it once at the module's top level"
        )
    return Instance(user_cls, bind.spec)


def _described(code: Code, error: BaseException) -> bytes:
    """What was raised, small enough for a frame."""
    raised = code.describe(error)
    data = encode_payload(raised)
    if len(data) <= INLINE_PAYLOAD_BYTES:
        return data
    return encode_payload(Raised(b"", raised.type_name, raised.text[:TEXT_MAX], raised.traceback[-TEXT_MAX:]))


def _serve_and_exit(loop: Loop | Units, rest: list[bytes], instance: Instance) -> int:
    """Run inputs, and the class's `@exit` methods last, whether the container has drained or was told by a signal."""
    told = False
    ending = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if not ending and not told:
            told = True
            raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        if not isinstance(loop, Loop):
            loop.catches_term = True
        loop.serve(rest)
        ending = True
    except Terminated:
        told = True
    signal.signal(signal.SIGTERM, lambda *_: None)  # SIGKILL follows when it takes too long
    instance.exit()
    flush_streams()
    loop.close()
    return TERMINATED if told else 0


def _make_loop(
    link: Link, claims: Claims, function: Callable[..., Any] | Instance, code: Code, rejoin: Callable[[], Link] | None
) -> Loop | Units:
    spec = code.bind.spec
    if spec.is_web:
        from .web.loop import WebTasks

        web = WebTasks(link, function, code, flush_streams, rejoin)
        web.prepare()
        return web
    if spec.max_inputs > 1 or spec.max_batch_size or spec.streams:
        from .units import make_loop

        return make_loop(link, function, code, flush_streams, rejoin)
    executor = make_executor(function, code)
    return Loop(link, claims, executor.run, executor.interrupt, flush_streams, rejoin, code.bind.code.digest)


def _join(link: Link, *, again: bool = False) -> tuple[Bind, list[bytes]]:
    """Say who this is and get the function to become, and what came right behind it. Raises LinkClosed."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    link.send(encode(Hello(VERSION, "runner", os.environ["NOMADFN_CONTAINER_ID"], python, again=again)))
    messages = link.receive(BIND_TIMEOUT_S)
    if not messages:
        raise LinkClosed(f"it did not say within {BIND_TIMEOUT_S:.0f} s which function to run")
    bind = decode_to_runner(messages[0])
    if not isinstance(bind, Bind):
        raise LinkClosed(f"it sent {type(bind).__name__} before it said which function to run")
    return bind, messages[1:]


def _follow(loop: Loop | Units, rejoin: _Rejoin, data_url: str) -> None:
    """The agent has joined the control service there: a link to any other one has had its time, ended or not."""
    link = loop.link  # Before the look at where it leads to: one that is newer stays.
    if rejoin.data_url != data_url:
        rejoin.hint = data_url
        link.hang_up()


class _Rejoin:
    """Has the control service that leads now take this container on. Raises LinkClosed when none does in time."""

    def __init__(self, code: Code, data_url: str) -> None:
        self._code = code
        self.data_url = data_url
        """Of the one that has it, or had it last."""
        self.hint = ""
        """Where the agent says that the next one is."""

    def __call__(self) -> Link:
        from .seek import REASONS

        deadline = time.monotonic() + REJOIN_S
        pause_s = 0.02
        lost = ""  # At first the same leader may be there still.
        why: Exception = LinkClosed("no address of one is known")
        while True:
            hint, self.hint = self.hint, ""
            for url in (hint, *control_urls()) if hint else control_urls():
                try:
                    return self._try(url, lost)
                except REASONS as error:
                    why = error
            if time.monotonic() > deadline:
                raise LinkClosed(f"no other one has taken it on within {REJOIN_S:.0f} s: {why}")
            lost = self.data_url
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, REJOIN_PAUSE_S)

    def _try(self, url: str, lost: str) -> Link:
        from .seek import ask_leader

        data_url = url if url.startswith("ws:") else ask_leader(url, lost)
        link = Link.connect(data_url, os.environ["NOMADFN_TOKEN"], REJOIN_TRY_S)
        try:
            self._code.move(_join(link, again=True)[0])
        except BaseException:
            link.close()
            raise
        self.data_url = data_url
        return link


def _set_environment(bind: Bind) -> None:
    """The function's `env` and secrets stand before anything of the user is imported."""
    os.environ.update(bind.env)
    os.environ["NOMADFN_APP_ID"] = bind.app
    os.environ["NOMADFN_APP_NAME"] = bind.app_name
    os.environ["NOMADFN_FUNCTION"] = bind.spec.name
    if "TZ" in bind.env:
        time.tzset()
