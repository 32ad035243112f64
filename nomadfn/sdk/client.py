"""The connection to the control service: one session, shared by every thread of the program.

Callers encode and send on the socket themselves; one reader thread decodes what comes and completes whoever
waits. Everything that is not acknowledged is kept by its call, so after a lost connection the reader thread
connects again as the same session, starts the session's apps anew if another control service leads now, and
sends all of it once more; the callers notice nothing but the time.
"""

from __future__ import annotations

import atexit
import itertools
import os
import secrets
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from nomadfn_agent import wire
from nomadfn_agent.wire.heap import keep_freed
from nomadfn_agent.wire.link import Link, LinkClosed, LinkRefused
from nomadfn_agent.wire.store import BlobStore, Place

from nomadfn.exception import AuthError, Error, ServiceError

from . import errors, service
from .blocking import Pending, driving_loop
from .chores import Chores
from .outgoing import Outgoing
from .progress import Observer
from .reading import Opened, Reader

CONNECT_TIMEOUT_S = 10.0
RECONNECT_S = 45.0
LONGEST_PAUSE_S = 2.0


class OpenCall(Protocol):
    """A call that the client keeps until it is done; see `calls`."""

    id: str

    @property
    def outcome(self) -> Pending[Any] | None:
        """What it gives as a whole; None for one that gives many results."""
        ...

    def take(self, frame: wire.Results) -> None: ...
    def accept(self, frame: wire.Accepted) -> None: ...
    def reject(self, frame: wire.Rejected) -> None: ...
    def fail(self, error: BaseException) -> None: ...
    def outstanding(self) -> Sequence[wire.Submit]: ...


class OpenStream(OpenCall, Protocol):
    """A call that gives parts before its result; see `generators`."""

    def take_parts(self, frame: wire.Parts) -> None: ...
    def taken(self) -> wire.Taken: ...


class Client:
    """One session with a control service. It connects at the first use and may be used by any thread."""

    def __init__(self, handle: service.ServiceHandle, observer: Observer | None = None) -> None:
        self.handle = handle
        self.observer = observer or Observer()
        self.blobs = BlobStore(self._place)
        self._begin()
        _clients.add(self)

    def _begin(self) -> None:
        """A new session; also what a forked child does, which must leave its parent's socket alone."""
        self.session = f"se-{secrets.token_hex(16)}"
        self._lock = threading.RLock()
        self._link: Link | None = None
        self._reader = Reader(self)
        self._chores = Chores()
        self._welcome: wire.Welcome | None = None
        self._calls: dict[str, OpenCall] = {}
        self._streams: dict[str, OpenStream] = {}
        self._requests: dict[int, tuple[wire.Request, Pending[Any]]] = {}
        self._standing: list[wire.Request] = []
        self._ids = itertools.count(1)
        self._outgoing = Outgoing(lambda: self._link)
        self._broken: BaseException | None = None
        self._closing = False

    # What the rest of the SDK uses.

    def connect(self) -> wire.Welcome:
        """Connect if that has not been done. Raises AuthError or ServiceError."""
        if self._broken is not None:
            raise self._broken.with_traceback(None)
        if self._welcome is None:
            with self._lock:
                if self._welcome is None:
                    link, welcome, rest = self._open_first()
                    keep_freed()
                    self._link = link
                    self._welcome = welcome
                    self._reader.start(link, rest)
        return self._welcome

    def _place(self) -> Place:
        welcome = self.connect()
        return Place(welcome.blobs, welcome.blobs_mark, welcome.http_url, self.handle.token)

    def begin(self, call: OpenCall) -> None:
        """Keep `call` from now on: results find it, and what it has sent is sent again if it must be."""
        self.connect()
        with self._lock:
            if self._broken is not None:
                raise self._broken.with_traceback(None)
            self._calls[call.id] = call
        if call.outcome is None or driving_loop() is not None:
            self._reader.come_back()
        else:
            call.outcome.reader = self._reader.read_for

    def begin_stream(self, call: OpenStream) -> None:
        """As `begin`, for a call that gives parts."""
        self._streams[call.id] = call
        self.begin(call)
        self._reader.come_back()

    def forget(self, call: str) -> None:
        self._calls.pop(call, None)
        if self._streams:
            self._streams.pop(call, None)

    def send(self, frame: wire.ClientFrame) -> None:
        """Send now; while the connection is down nothing is sent, as the reader thread will send it all again."""
        self._outgoing.send(frame)

    def send_soon(self, frame: wire.ClientFrame) -> None:
        """The same, together with others that are handed in at the same time."""
        self._outgoing.send_soon(frame)

    async def request(self, operation: str, body: dict[str, Any], timeout_s: float | None = None) -> Any:
        """Do one operation; raises what the control service answers, or ServiceError after `timeout_s`."""
        pending = self.start_request(operation, body)
        if not await pending.within(timeout_s):
            raise ServiceError(f"the control service has not answered {operation} within {timeout_s:.0f} s; try again")
        return pending.result()

    def start_request(self, operation: str, body: dict[str, Any], *, standing: bool = False) -> Pending[Any]:
        """Send an operation and give what its answer will be.

        A `standing` one is done again whenever another control service begins to lead.
        """
        self.connect()
        frame = wire.Request(next(self._ids), operation, body)
        pending: Pending[Any] = Pending()
        if driving_loop() is None:
            pending.reader = self._reader.read_for
        with self._lock:
            if self._broken is not None:
                raise self._broken.with_traceback(None)
            self._requests[frame.id] = (frame, pending)
            if standing:
                self._standing.append(frame)
        if pending.reader is None:
            self._reader.come_back()
        self.send(frame)
        return pending

    def cancel(self, call: str) -> None:
        """Let the control service drop what is left of a call that nobody waits for; without an answer, or an error."""
        try:
            self.start_request("call.cancel", {"call": call, "terminate_containers": False})
        except Error:
            pass

    def drop_standing(self, app_id: str) -> None:
        """The app is stopped: nothing of it is done again."""
        with self._lock:
            self._standing = [one for one in self._standing if one.body.get("app_id") != app_id]

    def later(self, delay_s: float, chore: Callable[[], None]) -> None:
        self._chores.add(delay_s, chore)

    def notice(self, text: str) -> None:
        self.tell(self.observer.notice, text)

    def tell(self, method: Callable[..., None], *what: Any) -> None:
        """Call a method of the observer; its errors are its own."""
        try:
            method(*what)
        except Exception as error:
            sys.stderr.write(f"nomadfn: the observer failed in {method.__name__}: {error!r}\n")

    @property
    def connected(self) -> bool:
        """Whether the control service is there now, as far as is known."""
        return self._link is not None

    @property
    def broken(self) -> bool:
        """Whether the session has ended, in good order or not."""
        return self._broken is not None

    def close(self) -> None:
        """End the session. Whoever still waits gets ServiceError. More than once is no error."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            link = self._link
        self._reader.acknowledge()
        self.fail(ServiceError("the connection to the control service was closed while this was under way"))
        if link is not None:
            link.close()
        self._reader.join(5)

    # What the reader does with what has come.

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def is_idle(self) -> bool:
        """Whether no call and no request is open."""
        return not self._calls and not self._requests

    def awaits(self, frame: wire.ToClientFrame, pending: Pending[Any]) -> bool:
        """Whether all of `frame` is for whoever waits for `pending`."""
        match frame:
            case wire.Results() | wire.Accepted() | wire.Rejected():
                call = self._calls.get(frame.call)
                return call is not None and call.outcome is pending
            case wire.ManyResults(calls=[only]):
                call = self._calls.get(only)
                return call is not None and call.outcome is pending
            case wire.Reply():
                return self._requests.get(frame.id, (None, None))[1] is pending
            case _:
                return False

    def dispatch(self, frame: wire.ToClientFrame) -> None:
        match frame:
            case wire.Results() | wire.ManyResults():
                for results in frame.each():
                    if call := self._calls.get(results.call):
                        call.take(results)
            case wire.Parts():
                if stream := self._streams.get(frame.call):
                    stream.take_parts(frame)
            case wire.Accepted():
                if call := self._calls.get(frame.call):
                    call.accept(frame)
            case wire.Rejected():
                if call := self._calls.get(frame.call):
                    call.reject(frame)
            case wire.Reply():
                _, pending = self._requests.pop(frame.id, (None, None))
                if pending is not None and frame.error:
                    pending.fail(errors.named(frame.error, frame.message))
                elif pending is not None:
                    pending.set(frame.body)
            case wire.Log():
                self.tell(self.observer.log, frame)
            case wire.Stats():
                self.tell(self.observer.stats, frame)
            case wire.Welcome():
                pass

    # Connecting.

    def _open_first(self) -> tuple[Link, wire.Welcome, list[bytes]]:
        deadline, pause_s = time.monotonic() + RECONNECT_S, 0.02
        while True:
            try:
                return self._open()
            except (ServiceError, AuthError, LinkClosed):
                if not self.handle.moves or time.monotonic() >= deadline:
                    raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            self.handle.refresh(patiently=True)

    def _open(self) -> tuple[Link, wire.Welcome, list[bytes]]:
        """A link that has said hello, the welcome, and what came right behind it."""
        handle = self.handle
        try:
            link = Link.connect(handle.data_url, handle.token, CONNECT_TIMEOUT_S, handle.data_socket)
        except LinkRefused as refused:
            raise _refusal(refused, handle) from None
        except OSError as error:
            raise ServiceError(
                handle.obituary()
                or f"the control service at {handle.data_url} cannot be reached ({error}); "
                f"`nomadfn status` says whether one runs and `nomadfn up` starts one"
            ) from None
        try:
            link.send(wire.encode(self._hello()))
            messages = link.receive(CONNECT_TIMEOUT_S)
            welcome = wire.decode_to_client(messages[0]) if messages else None
        except (LinkClosed, msgspec.ValidationError) as error:
            link.close()
            raise ServiceError(f"the control service at {handle.data_url} did not welcome us: {error}") from None
        if not isinstance(welcome, wire.Welcome):
            link.close()
            raise ServiceError(f"the control service at {handle.data_url} did not welcome us in time; try again")
        if welcome.version != wire.VERSION:
            link.close()
            raise ServiceError(
                f"the control service speaks version {welcome.version} of the protocol and this program version "
                f"{wire.VERSION}; install the same nomadfn on both sides"
            )
        return link, welcome, messages[1:]

    def _hello(self) -> wire.Hello:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        parent = os.environ.get("NOMADFN_CONTAINER_ID", "")
        return wire.Hello(wire.VERSION, "client", self.session, python, "", self._reader.seen, parent, takes_many=True)

    def reconnect(self, lost: LinkClosed) -> Opened | None:
        """Come back as the same session, within RECONNECT_S; None when that failed and everyone has been told."""
        self._link = None
        deadline = time.monotonic() + RECONNECT_S
        pause_s = 0.02
        error: BaseException = lost
        told = tried = False
        while not self._closing:
            if (obituary := self.handle.obituary()) is not None:
                error = ServiceError(f"{obituary}\n  | {lost.reason}" if lost.reason else obituary)
                break
            try:
                if not self.handle.refresh(patiently=tried):
                    raise ServiceError("no control service runs now")
                return self._resume()
            except AuthError as refused:
                error = refused
                if not self.handle.moves:
                    break
            except (ServiceError, LinkClosed) as failed:
                error = failed
            tried = True
            if time.monotonic() >= deadline:
                error = ServiceError(
                    f"the control service was lost ({lost}) and has not come back within {RECONNECT_S:.0f} s "
                    f"({error}); start it again with `nomadfn up` and run the program again"
                )
                break
            if not told and pause_s > 0.5:
                told = True
                self.notice(f"the connection to the control service was lost ({lost}); trying to get it back")
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        if not self._closing:
            self.fail(error)
        return None

    def _resume(self) -> Opened:
        link, welcome, messages = self._open()
        try:
            before = self._welcome
            if not welcome.resumed:
                self._reader.begin_anew()
            if not welcome.resumed or before is None or welcome.epoch != before.epoch:
                messages += self._stand_again(link)
            with self._lock:
                self._welcome = welcome
                self._link = link
                frames: list[wire.ClientFrame] = [frame for frame, _ in self._requests.values()]
                for call in list(self._calls.values()):
                    frames += call.outstanding()
            for frame in frames:
                link.send(wire.encode(frame))
            for stream in list(self._streams.values()):
                # What a reader has said on the new link may have overtaken what makes its call known there.
                link.send(wire.encode(stream.taken()))
        except BaseException:
            self._link = None
            link.close()
            raise
        return link, messages

    def _stand_again(self, link: Link) -> list[bytes]:
        """Do the standing requests before anything that needs them; gives whatever else came meanwhile."""
        with self._lock:
            standing = {frame.id: frame for frame in self._standing}
        for frame in standing.values():
            link.send(wire.encode(frame))
        other: list[bytes] = []
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while standing:
            messages = link.receive(max(0.0, deadline - time.monotonic()))
            if not messages:
                raise ServiceError("the control service does not answer")
            for message in messages:
                frame = wire.decode_to_client(message)
                if not isinstance(frame, wire.Reply) or standing.pop(frame.id, None) is None:
                    other.append(message)
                elif frame.error:
                    raise ServiceError(f"the app could not be started again: {frame.message}")
        return other

    def fail(self, error: BaseException) -> None:
        """Nothing more will come: everyone who waits is told why."""
        with self._lock:
            self._broken = error
            self._link = None if not self._closing else self._link
            calls, requests = list(self._calls.values()), list(self._requests.values())
            self._calls.clear()
            self._requests.clear()
        self._chores.stop()
        for call in calls:
            call.fail(error)
        for _, pending in requests:
            pending.fail(error)


def _refusal(refused: LinkRefused, handle: service.ServiceHandle) -> Error:
    if refused.status == 401:
        where = f"it is in {handle.data_dir / 'token'}" if handle.data_dir else "it is in NOMADFN_TOKEN"
        return AuthError(f"the control service at {handle.data_url} refused the token ({where}): {refused.body}")
    return ServiceError(f"the control service at {handle.data_url} answered HTTP {refused.status}: {refused.body}")


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_active: list[Client] = []
_default: Client | None = None
_default_lock = threading.Lock()


def default_client() -> Client:
    """The client of the app that runs in this program, else one of the service that is there.

    Raises ServiceError when no control service runs.
    """
    global _default
    if _active:
        return _active[-1]
    with _default_lock:
        if _default is None or _default.broken:
            handle = service.attach()
            if handle is None:
                raise ServiceError(
                    "no control service runs on this machine; start one with `nomadfn up`, or run the program "
                    "with `nomadfn run` or inside `with app.run():`"
                )
            _default = Client(handle)
            atexit.register(_default.close)
        return _default


def activate(client: Client) -> None:
    _active.append(client)


def deactivate(client: Client) -> None:
    if client in _active:
        _active.remove(client)


def _after_fork() -> None:
    global _default_lock
    _default_lock = threading.Lock()
    for client in list(_clients):
        link = client._link
        client._begin()
        if link is not None:
            link.abandon()


os.register_at_fork(after_in_child=_after_fork)
