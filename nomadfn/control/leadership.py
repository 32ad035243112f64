"""From standing by to leading: wait for the lease, and take it as soon as the one who has it is gone.

A standby holds a connection to the leader. Where it ends and nobody listens there any more, the leader's process is
gone, and the standby takes the lease at once instead of waiting until it runs out. A leader that is merely silent
(its host is gone, it is frozen) keeps the lease until it runs out. A wrong suspicion costs a change of leaders and
nothing else, because whatever is written under a lease that was lost is refused.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from nomadfn_agent import wire
from nomadfn_agent.wire.link import Link, LinkClosed, LinkRefused

from nomadfn import ports
from nomadfn.exception import ServiceError

WATCH_S = 5.0
"""How long one question to the lease may wait for a change."""
CONNECT_S = 2.0
RETRY_S = 0.5
RECONNECT_S = 0.01
STAND_BY = "control.stand_by"
"""The operation by which a standby tells the leader where it is."""

Result = TypeVar("Result")


class Leader(Protocol):
    """Who leads, as far as the lease says it; the addresses are empty until it serves."""

    @property
    def http_url(self) -> str: ...

    @property
    def data_url(self) -> str: ...


class SharedLease(Protocol):
    """A lease that others wait for. All calls may block."""

    def acquire(self) -> int: ...

    def take_over(self, leader: Any) -> int: ...

    def leader(self) -> Any | None: ...

    def wait_for_change(self, known: Any | None, timeout_s: float) -> Any | None: ...


async def await_lease(
    lease: SharedLease,
    token: str,
    http_url: str,
    on_leader: Callable[[Leader | None], None],
    log: Callable[[str], None],
) -> int:
    """Returns the epoch once the lease is held. `on_leader` hears who leads meanwhile, and it of `http_url`.

    While the lease cannot be asked for, that is said once and tried again.
    """
    fault = ""
    while True:
        try:
            leader = await in_thread(lease.leader)
            on_leader(leader)
            gone = leader is not None and await _until_gone(lease, leader, token, http_url)
            if gone:
                on_leader(None)
                log("the connection to the leader has ended and nobody listens there: taking its lease")
                return await in_thread(lease.take_over, leader)
            if leader is None:
                return await in_thread(lease.acquire)
            fault = ""
        except ports.LeaseHeldError:
            pass
        except ServiceError as error:
            if str(error) != fault:
                fault = str(error)
                log(f"standing by: {error}")
            await asyncio.sleep(RETRY_S)


async def _until_gone(lease: SharedLease, leader: Leader, token: str, http_url: str) -> bool:
    """Returns when the lease has changed (False), or when the leader's process is gone (True)."""
    watch = _Watch(leader.data_url, token, http_url)
    closed = asyncio.ensure_future(in_thread(watch.until_closed))
    closed.add_done_callback(_forget)
    try:
        while True:
            changed = asyncio.ensure_future(in_thread(lease.wait_for_change, leader, WATCH_S))
            changed.add_done_callback(_forget)
            await asyncio.wait((changed, closed), return_when=asyncio.FIRST_COMPLETED)
            if closed.done() and closed.result():
                return True
            # A leader that cannot be watched keeps its lease until that runs out.
            if await changed != leader or closed.done():
                return False
    finally:
        watch.end()


def _forget(future: asyncio.Future[Any]) -> None:
    """Whoever waits for it has its error; that nobody does is no fault."""
    if not future.cancelled():
        future.exception()


class _Watch:
    """A connection to the leader that is there to be seen ending. It tells the leader where this standby is."""

    def __init__(self, url: str, token: str, http_url: str) -> None:
        self._url = url
        self._token = token
        self._http_url = http_url
        self._ended = False
        self._link: Link | None = None

    def until_closed(self) -> bool:
        """Returns when the leader's process is gone (True), or cannot be watched (False). Blocks."""
        give_up_at = time.monotonic() + CONNECT_S
        while self._url and not self._ended:
            try:
                link = self._connect()
            except ConnectionRefusedError:
                return True
            except LinkRefused:
                return False
            except OSError:
                # A process that is being killed closes its sockets one after the other: soon it refuses.
                if time.monotonic() > give_up_at:
                    return False
                time.sleep(RECONNECT_S)
                continue
            try:
                while not self._ended:
                    link.receive(None)
            except LinkClosed:
                pass  # It may have closed this connection alone: the next try tells.
            finally:
                link.close()
                give_up_at = time.monotonic() + CONNECT_S
        return False

    def _connect(self) -> Link:
        link = Link.connect(self._url, self._token, CONNECT_S)
        self._link = link
        link.send(wire.encode(wire.Hello(wire.VERSION, "client", f"se-{secrets.token_hex(16)}")))
        link.send(wire.encode(wire.Request(1, STAND_BY, {"http_url": self._http_url})))
        return link

    def end(self) -> None:
        self._ended = True
        if self._link is not None:
            self._link.close()


async def in_thread(call: Callable[..., Result], *args: Any) -> Result:
    """Make a call that blocks, on a thread that nobody waits for at the end of the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = call(*args)
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            pass  # The loop has ended.

    threading.Thread(target=run, name=getattr(call, "__name__", "work"), daemon=True).start()
    return await done
