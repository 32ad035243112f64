"""Calls that are under way: what was handed in and is not acknowledged, and what has come back.

A call keeps each input until its result has come, or for a spawn until the control service has it safe, so
that everything else can be sent again after a lost connection: inputs are named by call and index, and the
control service takes each one once.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from nomadfn_agent import wire
from nomadfn_agent.context import current_input_id
from nomadfn_agent.wire import payload as payloads
from nomadfn_agent.wire.store import BlobStore

from nomadfn.exception import RequestSizeError, ServiceError

from . import errors
from .blocking import Pending
from .call_options import NO_OPTIONS, CallOptions

Outcome = tuple[int, bytes, int]
"""Status, payload and codec of one result."""

FRAME_BYTES = wire.MAX_FRAME_BYTES * 3 // 4
CHUNK = 256
"""Inputs that are worth a frame of their own, and results that are handed out before their room is given back."""
ID_BYTES, IDS = 12, 64
LONGEST_BACK_OFF_S = 15.0
WARN_EVERY_S = 10.0


class Session(Protocol):
    """What a call needs of the client that it belongs to."""

    def send(self, frame: wire.ClientFrame) -> None:
        """Send now, or leave it to the resubmission if the connection is down."""
        ...

    def send_soon(self, frame: wire.ClientFrame) -> None:
        """The same, together with others that are handed in at the same time."""
        ...

    def forget(self, call: str) -> None: ...

    def later(self, delay_s: float, chore: Callable[[], None]) -> None: ...

    def notice(self, text: str) -> None: ...


_random: deque[str] = deque()
"""Random parts of ids to come: asking the system for each one would take as long as much of a call."""
os.register_at_fork(after_in_child=_random.clear)


def new_call_id() -> str:
    try:
        random = _random.popleft()
    except IndexError:
        words = secrets.token_hex(ID_BYTES * IDS)
        _random.extend(words[start : start + 2 * ID_BYTES] for start in range(2 * ID_BYTES, len(words), 2 * ID_BYTES))
        random = words[: 2 * ID_BYTES]
    return f"fc-{int(time.time()):08x}{random}"


def store(
    pieces: list[bytes],
    size: int,
    blobs: BlobStore,
    max_payload_bytes: int,
    function_id: str,
    function: str,
    *,
    durable: bool,
) -> bytes:
    """A large payload as a blob: the reference that travels in its place. Raises RequestSizeError or ServiceError."""
    if size > max_payload_bytes:
        raise RequestSizeError(
            f"the arguments of {function} have {size:,} bytes pickled, {payloads.over_limit(max_payload_bytes)}, "
            f"or put them in a file and pass its path"
        )
    app = function_id.partition("/")[0]
    with storing(f"the arguments of {function}", size):
        return payloads.encode(blobs.write_pieces(pieces, size, app, durable=durable))


@contextmanager
def storing(what: str, size: int) -> Iterator[None]:
    """Raises ServiceError with `what` it is when the blob store does not take it."""
    try:
        yield
    except OSError as error:
        raise ServiceError(f"{what} ({size:,} bytes) could not be stored: {error}") from None


class SingleCall:
    """One `.remote` or `.spawn`: one input. `outcome` gives its result, for a spawn None once it is safe."""

    def __init__(
        self,
        session: Session,
        function_id: str,
        kind: int,
        data: bytes,
        is_ref: bool,
        options: CallOptions = NO_OPTIONS,
        method: str = "",
    ) -> None:
        self.id = new_call_id()
        self.outcome: Pending[Outcome | None] = Pending()
        self._session = session
        self._options = options
        self._submit = wire.Submit(
            self.id,
            function_id,
            kind,
            0,
            [data],
            wire.PICKLE,
            [0] if is_ref else [],
            options.priority,
            parent=current_input_id() or "",
            method=method,
        )

    def submit(self) -> None:
        self._submit.deadline_s = self._options.rest_s
        self._session.send_soon(self._submit)

    def take(self, frame: wire.Results) -> None:
        self._session.forget(self.id)
        self.outcome.set((frame.statuses[0], frame.payloads[0], frame.codec))

    def accept(self, frame: wire.Accepted) -> None:
        self._session.forget(self.id)
        self.outcome.set(None)

    def reject(self, frame: wire.Rejected) -> None:
        self.fail(errors.from_rejection(frame))

    def fail(self, error: BaseException) -> None:
        self._session.forget(self.id)
        self.outcome.fail(error)

    def outstanding(self) -> list[wire.Submit]:
        self._submit.deadline_s = self._options.rest_s
        return [self._submit]


class StreamCall:
    """One `.map` or `.spawn_map`: many inputs, at most `window` of them between `put` and `release`.

    Inputs are gathered into frames. A full frame goes out at once; `flush` sends what is left, and whoever
    feeds the call flushes before it waits.
    """

    def __init__(
        self,
        session: Session,
        function_id: str,
        function: str,
        kind: int,
        window: int,
        options: CallOptions = NO_OPTIONS,
        method: str = "",
    ) -> None:
        self.id = new_call_id()
        self.outcome = None
        self._options = options
        self._method = method
        self._parent = current_input_id() or ""
        self.arrived: deque[tuple[list[int], list[int], list[bytes], int]] = deque()
        self.submitted = 0
        self.done = 0
        """Inputs with a result, or for a spawn safe at the control service."""
        self.error: BaseException | None = None
        self._session = session
        self._function_id = function_id
        self._function = function
        self._kind = kind
        self.window = window
        self._released = 0
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._sent: dict[int, bytes] = {}
        self._refs: set[int] = set()
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._paused = False
        self._rejected: set[int] = set()
        self._refusals = 0
        self._warned_at = -WARN_EVERY_S
        self._signal: Pending[None] | None = None
        self._room_signal: Pending[None] | None = None
        self.closed = False

    # The feeder's side.

    def room(self) -> int:
        """How many more inputs may be put now."""
        return self.window - (self.submitted - self._released)

    def wants_more(self) -> bool:
        """Whether there is room enough for a frame worth sending, or little enough under way to send a small one."""
        room = self.room()
        return room >= CHUNK or (room > 0 and self.submitted - self.done <= self.window // 2)

    def put(self, data: bytes, is_ref: bool) -> bool:
        """Add the next input; says whether it is the first of a new frame, which nobody may flush."""
        return self.put_many([data], [0] if is_ref else [])

    def put_many(self, inputs: list[bytes], refs: list[int]) -> bool:
        """Add the next inputs; `refs` are the places of blob references among them. Answers as `put`."""
        with self._lock:
            first = not self._outbox
            if refs:
                self._refs.update(self.submitted + place for place in refs)
            self.submitted += len(inputs)
            self._outbox += inputs
            self._outbox_bytes += sum(map(len, inputs))
            full = self._outbox_bytes >= FRAME_BYTES or len(self._outbox) >= wire.MAX_INPUTS_PER_FRAME
        if full:
            self.flush()
        return first and not full

    def flush(self) -> None:
        """Send what was put and has not been sent, unless the control service has asked to wait."""
        with self._sending:
            with self._lock:
                if not self._outbox or self._paused or self.closed:
                    return
                taken, self._outbox = self._outbox, []
                first = self.submitted - len(taken)
                size, self._outbox_bytes = self._outbox_bytes, 0
                self._sent.update(enumerate(taken, first))
                if size <= wire.MAX_FRAME_BYTES and len(taken) <= wire.MAX_INPUTS_PER_FRAME:
                    frames = [self._frame(first, taken)]
                else:
                    frames = self._frames(range(first, self.submitted))
            for frame in frames:
                self._session.send(frame)

    def room_signal(self) -> Pending[None]:
        """Something to wait for that is set when there may be room again; look at `room` after this call."""
        pending: Pending[None] = Pending()
        self._room_signal = pending
        return pending

    # The consumer's side.

    def release(self, count: int) -> None:
        """So many results have been handed out: their room is free."""
        self._released += count
        if self._room_signal is not None and (self.closed or self.wants_more()):
            signal, self._room_signal = self._room_signal, None
            if signal is not None:
                signal.set(None)

    def signal(self) -> Pending[None]:
        """Something to wait for that is set when results come, or the call fails; look at them after this call."""
        pending: Pending[None] = Pending()
        self._signal = pending
        return pending

    def wake(self) -> None:
        signal, self._signal = self._signal, None
        if signal is not None:
            signal.set(None)

    def close(self) -> None:
        """Nothing more goes out, and what comes is dropped."""
        with self._lock:
            self.closed = True
            self._sent.clear()
            self._outbox.clear()
            self.arrived.clear()
        self._session.forget(self.id)
        self.release(0)
        self.wake()

    # What the connection tells.

    def take(self, frame: wire.Results) -> None:
        indexes, statuses, results = frame.indexes, frame.statuses, frame.payloads
        with self._lock:
            take = self._sent.pop
            fresh = [place for place, index in enumerate(indexes) if take(index, None) is not None]
            if self.closed or not fresh:
                return
            if len(fresh) < len(indexes):  # sent twice by a control service that had lost its connection to us
                indexes = [indexes[place] for place in fresh]
                statuses = [statuses[place] for place in fresh]
                results = [results[place] for place in fresh]
            self.done += len(fresh)
            self._refusals = 0
            self.arrived.append((indexes, statuses, results, frame.codec))
        self.wake()

    def accept(self, frame: wire.Accepted) -> None:
        with self._lock:
            take = self._sent.pop
            safe = sum(take(index, None) is not None for index in range(frame.first, frame.first + frame.count))
            self.done += safe
            self._refusals = 0
        self.release(safe)
        self.wake()

    def reject(self, frame: wire.Rejected) -> None:
        """Over a limit: wait and send again. Anything else fails the whole call."""
        error = errors.from_rejection(frame)
        if frame.error not in ("ResourceExhaustedError", "ResourceExhausted"):
            self.fail(error)
            return
        with self._lock:
            refused = range(frame.first, frame.first + frame.count)
            self._rejected.update(index for index in refused if index in self._sent)
            if self._paused or self.closed:
                return
            self._paused = True
            self._refusals += 1
            delay_s = min(frame.retry_after_s * 2 ** min(self._refusals - 1, 10), LONGEST_BACK_OFF_S)
            warn = time.monotonic() - self._warned_at >= WARN_EVERY_S
            if warn:
                self._warned_at = time.monotonic()
        if warn:
            self._session.notice(f"{self._function} waits {delay_s:.1f} s and goes on: {frame.message}")
        self._session.later(delay_s, self._try_again)

    def fail(self, error: BaseException) -> None:
        with self._lock:
            if self.error is None:
                self.error = error
        self.close()

    def outstanding(self) -> list[wire.Submit]:
        """Everything that was sent and is not acknowledged, as frames."""
        with self._lock:
            self._rejected.clear()
            return self._frames(sorted(self._sent))

    def _try_again(self) -> None:
        with self._sending:
            with self._lock:
                frames = self._frames(sorted(self._rejected & self._sent.keys()))
                self._rejected.clear()
                self._paused = False
            for frame in frames:
                self._session.send(frame)
        self.flush()

    def _frames(self, indexes: Sequence[int]) -> list[wire.Submit]:
        """Frames for these inputs: a new one at each gap and when one is full."""
        frames: list[wire.Submit] = []
        taken: list[bytes] = []
        first = size = 0
        for index in indexes:
            data = self._sent[index]
            full = size + len(data) > FRAME_BYTES or len(taken) >= wire.MAX_INPUTS_PER_FRAME
            if taken and (full or index != first + len(taken)):
                frames.append(self._frame(first, taken))
                taken, size = [], 0
            if not taken:
                first = index
            taken.append(data)
            size += len(data)
        if taken:
            frames.append(self._frame(first, taken))
        return frames

    def _frame(self, first: int, taken: list[bytes]) -> wire.Submit:
        refs = [place for place in range(len(taken)) if first + place in self._refs] if self._refs else []
        options = self._options
        return wire.Submit(
            self.id,
            self._function_id,
            self._kind,
            first,
            taken,
            wire.PICKLE,
            refs,
            options.priority,
            options.rest_s,
            self._parent,
            self._method,
        )
