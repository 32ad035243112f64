"""What the core knows: inputs, calls, sessions, functions and containers.

An input goes through these states; any other step is a fault and raises with what is known of the input.

    event      from                          to
    DISPATCH   PENDING                       RUNNING
    REQUEUE    RUNNING                       PENDING      recalled, or its container was lost
    RETRY      RUNNING                       DELAYED      it raised and has retries left
    WAKE       DELAYED                       PENDING
    FINISH     PENDING  RUNNING  DELAYED     DONE
    SETTLE     PENDING  RUNNING  DELAYED     COMMITTING   the result of a spawn, seen but not yet durable
    COMMIT     COMMITTING                    DONE
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from nomadfn_agent import wire

from ..exception import InternalError
from .ahead import Ahead
from .deadlines import NEVER, Deadlines
from .family import Family
from .placement import Want
from .queue import FunctionQueue
from .totals import Totals

PENDING, RUNNING, DELAYED, COMMITTING, DONE = range(5)
STATE_NAMES = ("pending", "running", "delayed", "committing", "done")

DISPATCH, REQUEUE, RETRY, WAKE, FINISH, SETTLE, COMMIT = range(7)
EVENT_NAMES = ("dispatch", "requeue", "retry", "wake", "finish", "settle", "commit")
_NO = -1
_NEXT = (
    (RUNNING, _NO, _NO, _NO, _NO),
    (_NO, PENDING, _NO, _NO, _NO),
    (_NO, DELAYED, _NO, _NO, _NO),
    (_NO, _NO, PENDING, _NO, _NO),
    (DONE, DONE, DONE, _NO, _NO),
    (COMMITTING, COMMITTING, COMMITTING, _NO, _NO),
    (_NO, _NO, _NO, DONE, _NO),
)
NO_DEADLINE = NEVER

STARTING, READY, DRAINING, STOPPING = range(4)
CONTAINER_STATES = ("starting", "ready", "draining", "stopping")


class Input(msgspec.Struct, eq=False, gc=False):
    """One input; once it is done, `payload` is its output and `status` says of what kind."""

    call: Call
    index: int
    payload: bytes
    codec: int
    deadline: float = NO_DEADLINE
    state: int = PENDING
    status: int = -1
    delivery: int = 0
    retries: int = 0
    losses: int = 0
    suspect: bool = False
    """It was in a container that was lost: it runs alone until it has a result."""

    def move(self, event: int) -> None:
        """Take one step of the table above."""
        state = _NEXT[event][self.state]
        if state == _NO:
            raise InternalError(
                f"input {self.index} of {self.call.id} cannot {EVENT_NAMES[event]} while {STATE_NAMES[self.state]} "
                f"(delivery {self.delivery}, {self.retries} retries, {self.losses} losses, suspect={self.suspect})"
            )
        self.state = state


class Call(msgspec.Struct, eq=False, gc=False):
    """One `.remote`, `.map` or `.spawn`. A call of one input keeps it in `single`, without a table."""

    id: str
    kind: int
    function: Function
    caller: str
    """The session that fairness counts it for."""
    priority: int = 0
    created: float = 0.0
    accepted: int = 0
    """Durable calls: inputs 0 … accepted-1 are known."""
    total: int = -1
    """How many inputs there are, once that is known."""
    done: int = 0
    """Durable calls: how many results are durable."""
    finished_at: float = 0.0
    cancelled: bool = False
    single: Input | None = None
    table: dict[int, Input] | None = None
    method: str = ""
    """Of a class: which of its methods."""
    parent: str = ""
    """Id of the input that made it, where one did."""
    family: Family | None = None

    @property
    def durable(self) -> bool:
        return self.kind >= wire.SPAWN

    @property
    def finished(self) -> bool:
        return self.total >= 0 and self.done >= self.total

    def get(self, index: int) -> Input | None:
        if self.table is not None:
            return self.table.get(index)
        single = self.single
        return single if single is not None and single.index == index else None

    def add(self, one: Input) -> None:
        if self.table is None and self.single is None:
            self.single = one
            return
        if self.table is None:
            self.table = {}
            if self.single is not None:
                self.table[self.single.index] = self.single
                self.single = None
        self.table[one.index] = one

    def drop(self, index: int) -> Input | None:
        if self.table is not None:
            return self.table.pop(index, None)
        single = self.single
        if single is not None and single.index == index:
            self.single = None
            return single
        return None

    def inputs(self) -> Iterator[Input]:
        if self.table is not None:
            yield from list(self.table.values())
        elif self.single is not None:
            yield self.single

    @property
    def empty(self) -> bool:
        return not self.table and self.single is None


class Batch:
    """Results of one call that wait to be sent, or sent and not acknowledged, as columns."""

    __slots__ = ("call", "codec", "indexes", "number", "payloads", "size_bytes", "statuses")

    def __init__(self, call: Call, codec: int) -> None:
        self.call = call
        self.codec = codec
        self.number = 0
        self.indexes: list[int] = []
        self.statuses: list[int] = []
        self.payloads: list[bytes] = []
        self.size_bytes = 0


class Stream:
    """What an input gives out while it runs, and what it is fed; see `streams`. Both are kept until they are taken."""

    __slots__ = ("attempt", "begun", "container", "fed", "feed", "number", "parts", "taken")

    def __init__(self) -> None:
        self.attempt = 0
        """The delivery that it belongs to; 0 while the input waits."""
        self.container = ""
        self.number = 0
        """Of the last part that came."""
        self.parts: deque[tuple[int, list[int], list[bytes]]] = deque()
        """Number of the last, statuses, payloads."""
        self.taken = 0
        """Parts up to this number are taken."""
        self.fed = 0
        """Number of the last part that it was fed."""
        self.feed: deque[tuple[int, list[bytes], bool]] = deque()
        """Number of the last, payloads, whether it is the last of all."""
        self.begun = False
        """It has given something, or user code has taken something: the input is not run again."""


class Session:
    """One client. Its results are numbered; what it has not acknowledged is kept."""

    __slots__ = ("apps", "attached", "away_since", "calls", "id", "number", "parent", "unacknowledged", "unsent")

    def __init__(self, id: str, parent: str) -> None:
        self.id = id
        self.parent = parent
        """The container that this client runs in, or empty."""
        self.attached = True
        self.away_since = 0.0
        self.number = 0
        self.calls: dict[str, Call] = {}
        """Its calls that are not durable, and its durable ones that are still open."""
        self.apps: set[str] = set()
        """Ephemeral apps that end with it."""
        self.unsent: dict[str, Batch] = {}
        self.unacknowledged: deque[Batch] = deque()


class Tally(NamedTuple):
    """Sums over containers, or what one counts for in them; see `core/tally.py`."""

    starting: int = 0
    draining: int = 0
    """Neither starting nor ready: they take no more inputs and are still there."""
    holding: int = 0
    """Ready ones that hold an input."""
    busy: int = 0
    """Slots in use of the ready ones; an input that runs alone uses all of its container's."""
    all_slots: int = 0
    """All slots of those that have one in use."""
    ahead: int = 0
    """Inputs that ready ones hold beyond their slots."""
    slow: int = 0
    """Those of `busy` that are not free soon."""
    slow_slots: int = 0
    """The same of `all_slots`."""
    blocked: int = 0
    """Containers that wait for inputs which they submitted themselves."""


NO_TALLY = Tally()


class Container:
    """One container of a function's pool."""

    __slots__ = (
        "adopted",
        "alone",
        "app",
        "batch_of",
        "batches",
        "begun",
        "function",
        "held",
        "id",
        "idle_since",
        "index",
        "interrupted",
        "late",
        "listed",
        "look_at",
        "part",
        "pid",
        "preparing",
        "progress",
        "queued",
        "recalled",
        "revision",
        "slots",
        "started",
        "state",
        "stop_reason",
        "waiting",
    )

    def __init__(self, id: str, function: Function, index: int, now: float) -> None:
        self.id = id
        self.function = function
        self.app = function.app
        self.index = index
        self.state = STARTING
        self.preparing = ""
        """What it waits for before it begins to start, in words; it has begun once there is a `pid`."""
        self.slots = 1
        self.held: dict[int, Input] = {}
        """Delivery number → input, in the order in which the runner takes them."""
        self.batches: dict[int, int] = {}
        """Batched functions: first delivery of a batch → how many of it have no output yet."""
        self.batch_of: dict[int, int] = {}
        """Batched functions: delivery → first delivery of its batch."""
        self.begun: dict[int, float] = {}
        """Where several inputs (or a batch) run at once: the slots' deliveries, each with the time from when its
        timeout counts, the oldest first. A batch stands here by its first delivery."""
        self.queued: deque[int] = deque()
        """The same containers: deliveries beyond the slots."""
        self.interrupted: dict[int, float] = {}
        """Attempts that were given up and still hold their slot, and until when they may."""
        self.adopted = False
        """An earlier leader has started it, and its runner is not here yet."""
        self.alone = False
        """It runs one suspect input and gets nothing beside it."""
        self.started = now
        self.progress = now
        """When it last gave an output, or was given the first input."""
        self.idle_since = now
        self.recalled = -math.inf
        """When it was last asked for inputs back, and has not answered."""
        self.listed = 0
        """Which of the pool's heaps it stands in: 0 none, 1 idle, 2 roomy."""
        self.late = False
        """What runs in it has done so for long: its slots are not free soon."""
        self.look_at = math.inf
        """When `watch` looks at it next."""
        self.part = NO_TALLY
        """What it counts for in its function's `tally`."""
        self.revision = function.revision
        self.pid = 0
        self.waiting = 0
        """Inputs it has submitted itself and waits for."""
        self.stop_reason = ""

    @property
    def busy(self) -> bool:
        return bool(self.held)

    @property
    def used(self) -> int:
        """Slots that are taken, by what was sent ahead of a free one as well: more than `slots` then."""
        return (len(self.batches) if self.batches else len(self.held)) + len(self.interrupted)

    @property
    def counts_slots(self) -> bool:
        """Whether `begun` says what runs; else one input at a time does, the first that is held."""
        return self.slots > 1 or self.function.spec.max_batch_size > 0

    def begin(self, now: float, delivery: int) -> None:
        """A delivery (a batch by its first) was handed over: it runs if there is a slot."""
        if len(self.begun) < self.slots:
            self.begun[delivery] = now
        else:
            self.queued.append(delivery)

    def release(self, now: float, delivery: int) -> bool:
        """It holds this delivery no more; what comes next begins. Says whether a slot became free, or a whole batch."""
        first = self.batch_of.pop(delivery, delivery)
        if first in self.batches:
            self.batches[first] -= 1
            if self.batches[first]:
                return False
            del self.batches[first]
        if self.begun.pop(first, None) is not None:
            while self.queued and len(self.begun) < self.slots:
                following = self.queued.popleft()
                if following in self.held:
                    self.begun[following] = now
        return True

    def forget_all(self) -> None:
        """It holds nothing any more."""
        for table in (self.held, self.batches, self.batch_of, self.begun, self.queued, self.interrupted):
            table.clear()


class Function:
    """One function of one app: its definition, its queue, its pool and its figures."""

    __slots__ = (
        "ahead",
        "ahead_s",
        "app",
        "arrivals",
        "arrived",
        "blocked",
        "changed",
        "containers",
        "deadlines",
        "decisions",
        "failures",
        "id",
        "idle_heap",
        "last_decision",
        "last_error",
        "mean_run_s",
        "next_decision",
        "next_stops",
        "overrides",
        "pending",
        "queue",
        "ready",
        "retry_start_at",
        "revision",
        "roomy_heap",
        "running",
        "shared_until",
        "spec",
        "tally",
        "temporary",
        "totals",
        "unplaced",
        "used_at",
        "variation",
        "want",
        "wanted",
    )

    def __init__(self, id: str, app: str, spec: wire.FunctionSpec, totals: Totals | None = None) -> None:
        self.id = id
        self.app = app
        self.spec = spec
        self.totals = totals or Totals()
        self.revision = 1
        self.variation: wire.Variation | None = None
        """Where it is a variant: of what, and how it differs."""
        self.used_at = 0.0
        """A variant: when it had containers or inputs, or was asked for."""
        self.overrides: dict[str, Any] = {}
        self.temporary: dict[str, tuple[Any, float]] = {}
        """Over those: by setting its value, and until when (wall clock)."""
        self.queue: FunctionQueue[Input] = FunctionQueue()
        self.deadlines: Deadlines[Input] = Deadlines(lambda one: one.state < COMMITTING)
        self.pending = [0, 0]
        """Inputs that wait: those of `.remote` and `.map`, and those of spawns."""
        self.running = [0, 0]
        self.arrivals: deque[tuple[float, int]] = deque()
        """Batched functions: when inputs began to wait for a batch, and how many, the oldest first."""
        self.arrived = 0
        """How many those are together."""
        self.containers: dict[str, Container] = {}
        self.changed: dict[str, Container] = {}
        """Those that the `tally` has to look at again."""
        self.tally = NO_TALLY
        self.want: Want | None = None
        """What it asked for when it was last looked at."""
        self.next_stops = 0.0
        """When it is looked at next for containers that may stop."""
        self.ready = 0
        self.idle_heap: list[tuple[int, str]] = []
        self.roomy_heap: list[tuple[int, str]] = []
        self.mean_run_s: float | None = None
        self.ahead_s = 0.0
        """How much work its containers are sent beyond their slots."""
        self.ahead = Ahead()
        self.shared_until = 0.0
        self.wanted = 0
        self.blocked = ""
        """What keeps it from having the containers it wants, in words."""
        self.unplaced = ""
        """Why the cluster has no place for its containers, in words; empty where it has."""
        self.decisions: deque[tuple[float, int, str]] = deque(maxlen=20)
        self.next_decision = 0.0
        self.last_decision = 0.0
        self.failures = 0
        """Starts that failed, one after the other."""
        self.retry_start_at = 0.0
        self.last_error = ""

    @property
    def settings(self) -> wire.AutoscalerSettings:
        """The autoscaler settings now in force: the decorator's, with what was changed since the deploy."""
        base = self.spec.autoscaler
        if not self.overrides and not self.temporary:
            return base
        live = self.overrides | {name: value for name, (value, _) in self.temporary.items()}
        return msgspec.structs.replace(base, **live)

    @property
    def target(self) -> int:
        return self.spec.target_inputs or self.spec.max_inputs

    @property
    def waiting_inputs(self) -> int:
        return self.pending[0] + self.pending[1]

    @property
    def running_inputs(self) -> int:
        return self.running[0] + self.running[1]


class App:
    """One app instance: deployed under its name, or ephemeral and of one session."""

    __slots__ = (
        "code",
        "deployed",
        "deployed_at",
        "functions",
        "id",
        "name",
        "session",
        "started",
        "stopping",
        "version",
    )

    def __init__(self, id: str, name: str, session: str, deployed: bool, now: float) -> None:
        self.id = id
        self.name = name
        self.session = session
        """The session that it ends with; empty when deployed or detached."""
        self.deployed = deployed
        self.version = 0
        self.deployed_at = now
        """When its version was put in force (wall clock)."""
        self.code = wire.CodeRef()
        self.functions: dict[str, Function] = {}
        self.started = now
        self.stopping = False
