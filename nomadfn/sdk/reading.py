"""Who reads a session's link: its reader thread or, for a moment, a thread of the program that waits for its call.

A result that the reader thread receives costs a change of threads before its caller has it, which is a good part of
a short call. So while a program does nothing but call and wait, the reader thread stands aside and callers read for
themselves (`read_for`), awake all the time while calls are very short. The reader thread comes back when anything
needs it: a call that nobody waits for on a thread of its own, two callers at once, a call that takes long, an end of
the link; or when nobody has called for a moment.

A caller that reads deals with what is for itself only, and with lines to show, and leaves the rest to the reader
thread. It may be the main thread, where Ctrl-C or the program's own signal handlers may raise at any moment, also
between a message's arrival and what is done with it. Then nobody knows what is lost: the link is ended, and the reader
thread resumes the session on a new one, where everything that was not seen comes again.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from threading import get_ident
from typing import Any, Protocol

from nomadfn_agent import wire
from nomadfn_agent.wire.link import Link, LinkClosed

from nomadfn.exception import Error, InternalError

from . import service
from .blocking import Pending

ACK_EVERY_RESULTS = 256
ACK_EVERY_BYTES = 1 << 20
ACK_IDLE_S = 0.1
QUIET_S = 5.0
"""A client of a cluster that hears nothing for so long asks whether another control service leads by now."""
DIRECT_S = 0.05
"""A caller reads for itself for so long at the most; then the reader thread does, which sees to everything."""
SPIN_S = 0.0004
"""A caller whose last calls were all over sooner stays awake for so long: a processor that has gone idle takes a good
part of such a call to wake, most of all a virtual machine's."""
QUICK_ENOUGH, QUICK_MOST, QUICK_LOSS = 8, 16, 4
"""Calls within SPIN_S before a caller stays awake, how many count at the most, and what a longer one takes off."""
ASIDE_S = 0.02
"""The reader thread stands aside until no caller has read for itself for so long, or twice as long."""
CALM = 3
"""The reader thread stands aside once so many callers in a row could have read for themselves."""
STALE_S = 1.0
"""A caller that said longer ago than this that it reads was interrupted before it could say that it ends."""

SHOWN = (wire.Log, wire.Stats)
SEVERAL_PROCESSORS = (os.cpu_count() or 1) > 1

Opened = tuple[Link, list[bytes]]
"""A link that has said hello, and what has arrived behind its welcome."""


class Session(Protocol):
    """What the reader needs of the client that it belongs to."""

    handle: service.ServiceHandle

    @property
    def closing(self) -> bool: ...

    @property
    def is_idle(self) -> bool:
        """Whether no call and no request is open."""
        ...

    def dispatch(self, frame: wire.ToClientFrame) -> None: ...

    def awaits(self, frame: wire.ToClientFrame, pending: Pending[Any]) -> bool:
        """Whether all of `frame` is for whoever waits for `pending`."""
        ...

    def send(self, frame: wire.ClientFrame) -> None: ...

    def reconnect(self, lost: LinkClosed) -> Opened | None:
        """Come back as the same session; None when that failed and everyone has been told."""
        ...

    def fail(self, error: BaseException) -> None: ...


class Reader:
    """The reader thread of one session, and who reads in its place."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._link: Link | None = None
        self._thread: threading.Thread | None = None
        self._suspicion: threading.Thread | None = None
        self.seen = 0
        """The number of the last results that came; what is acknowledged is that of the last one said to be safe."""
        self.acknowledged = 0
        self._unacked_bytes = 0
        self._right = threading.Lock()
        """Held by who reads."""
        self._aside = False
        """The reader thread leaves the right to callers."""
        self._asked = False
        """A caller would have read for itself, had the reader thread stood aside."""
        self._calm = 0
        """How often in a row that was so, and nothing else was open then."""
        self._needed = False
        self._bell = threading.Lock()
        """Wakes the reader thread while it stands aside, by being released. An Event would be no good: its lock stays
        taken when an interrupt comes at the wrong moment."""
        self._bell.acquire()
        self._callers: dict[int, float] = {}
        """Threads that read for themselves or are about to, and since when. Told before `_aside` is looked at, as that
        is told before this is looked at: so one of the two sides always sees the other."""
        self._times = 0
        """How often callers have read for themselves."""
        self._quick = 0
        """How sure it is that a call will be over within SPIN_S."""
        self._left: deque[bytes] = deque()
        """Messages that a caller has received, and left to the reader thread."""

    def start(self, link: Link, messages: list[bytes]) -> None:
        self._link = link
        self._thread = threading.Thread(target=self._run, args=(link, messages), name="nomadfn-reader", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended, once its link is closed. On that thread itself this does nothing."""
        self.come_back()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def begin_anew(self) -> None:
        """Another control service leads: its results are numbered anew."""
        self.seen = self.acknowledged = 0

    def acknowledge(self) -> None:
        if self.seen > self.acknowledged:
            self.acknowledged = self.seen
            self._unacked_bytes = 0
            self._session.send(wire.Ack(self.acknowledged))

    def come_back(self) -> None:
        """Have the reader thread read again, if it stands aside."""
        if self._aside:
            self._needed = True
            self._ring()

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:
            pass  # It has been rung, and not heard yet.

    # The caller's side.

    def read_for(self, pending: Pending[Any], timeout_s: float | None) -> None:
        """Read until `pending` is there, on its caller's thread; gives up early where the reader thread has to read."""
        me = get_ident()
        if me in self._callers:
            self._take_over()
            return
        try:
            self._callers[me] = time.monotonic()
            if not self._aside or self._right.locked():
                self._asked = True
                return
            with self._right:
                self._times += 1
                self._read_until(pending, DIRECT_S if timeout_s is None else min(timeout_s, DIRECT_S))
        finally:
            self._callers.pop(me, None)
            if self._aside and not self._session.is_idle:
                self.come_back()

    def _take_over(self) -> None:
        """A signal handler, or a finalizer, calls while its own thread reads, and that goes on only after this."""
        self._right = threading.Lock()
        self._callers.pop(get_ident(), None)
        if self._link is not None:
            self._link.tear()
        self.come_back()

    def _read_until(self, pending: Pending[Any], timeout_s: float) -> None:
        link, start, torn = self._link, time.monotonic(), False
        assert link is not None
        deadline = start + timeout_s
        try:
            if self._quick >= QUICK_ENOUGH and SEVERAL_PROCESSORS:
                link.spin(min(deadline, start + SPIN_S))
            while not pending.done and (rest_s := deadline - time.monotonic()) > 0 and link.wait(rest_s):
                torn = True
                shared = [message for message in link.receive_once() if not self._take_for(pending, message)]
                torn = False
                if shared:
                    break
            quick = time.monotonic() - start <= SPIN_S
            self._quick = min(self._quick + 1, QUICK_MOST) if quick else max(0, self._quick - QUICK_LOSS)
        except LinkClosed:
            torn = False  # The reader thread will find the same, with the reason that the other side has given.
        finally:
            if torn:
                link.tear()
                self.come_back()

    def _take_for(self, pending: Pending[Any], message: bytes) -> bool:
        """Deal with a message that is for `pending` alone, or a line to show, which has its place before the result.

        Any other is left to the reader thread, and False: it may be for `pending`, too.
        """
        try:
            frame = wire.decode_to_client(message)
        except ValueError:
            frame = None
        if frame is None or not (isinstance(frame, SHOWN) or self._session.awaits(frame, pending)):
            self._left.append(message)
            self._ring()
            return False
        self._hand_on(frame)
        if self._owes_much():
            self.acknowledge()
        return True

    # The reader thread.

    def _run(self, link: Link, messages: list[bytes]) -> None:
        while True:
            try:
                self._read(link, messages)
            except LinkClosed as lost:
                link.close()
                if self._session.closing:
                    return
                again = self._session.reconnect(lost)
                if again is None:
                    return
                link, messages = again
                self._link = link
            except Exception as fault:
                link.close()
                self._session.fail(InternalError(f"the connection to the control service failed: {fault!r}"))
                return

    def _read(self, link: Link, messages: list[bytes]) -> None:
        """Read until the link is lost."""
        session = self._session
        while True:
            for message in messages:
                self._hand_on(wire.decode_to_client(message))
            unacked = self.seen > self.acknowledged
            if unacked and (not messages or self._owes_much()):
                self.acknowledge()
                unacked = False
            if self._asked and self._is_calm():
                self._stand_aside()
                self.acknowledge()
                unacked = False
            with self._right:
                messages = link.receive(ACK_IDLE_S if unacked else QUIET_S if session.handle.locate else None)
            if not messages and not unacked and not session.is_idle:
                self._suspect(link)

    def _is_calm(self) -> bool:
        self._asked = False
        self._calm = self._calm + 1 if self._session.is_idle else 0
        return self._calm >= CALM

    def _hand_on(self, frame: wire.ToClientFrame) -> None:
        self._session.dispatch(frame)
        if isinstance(frame, (wire.Results, wire.ManyResults)):
            self.seen = max(self.seen, frame.number)
            self._unacked_bytes += sum(map(len, frame.payloads))

    def _owes_much(self) -> bool:
        return self.seen - self.acknowledged >= ACK_EVERY_RESULTS or self._unacked_bytes >= ACK_EVERY_BYTES

    def _stand_aside(self) -> None:
        """Leave the reading to callers until this thread is needed, or none has read for a while."""
        self._calm, self._needed, self._aside = 0, False, True
        times = -1
        while True:
            told = self._bell.acquire(timeout=ASIDE_S)
            self._take_left()
            if self._needed or (not told and times == self._times):
                self._aside = False
                if not self._is_read():
                    self._take_left()  # From now on nobody leaves any more.
                    return
                self._aside = True
            times = self._times

    def _take_left(self) -> None:
        while self._left:
            self._hand_on(wire.decode_to_client(self._left[0]))
            self._left.popleft()

    def _is_read(self) -> bool:
        """Whether a caller reads for itself now, or is about to."""
        early = time.monotonic() - STALE_S
        return any(since > early for since in list(self._callers.values()))

    def _suspect(self, link: Link) -> None:
        """See whether another one leads, on a thread: one that is frozen, or cut off, closes no connection."""
        locate, known = self._session.handle.locate, self._session.handle.data_url

        def look() -> None:
            try:
                leader = locate("") if locate is not None else None
            except Error:
                return
            if leader is not None and leader.data_url != known:
                link.close()

        if self._suspicion is None or not self._suspicion.is_alive():
            self._suspicion = threading.Thread(target=look, name="nomadfn-suspicion", daemon=True)
            self._suspicion.start()
