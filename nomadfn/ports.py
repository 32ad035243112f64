"""The six things that the control service needs from the world around it.

    port       on one machine       on a cluster
    Journal    SQLite               Consul
    Blobs      a directory          a directory or an object store
    Registry   SQLite               Consul
    Secrets    files                Nomad, Consul
    Lease      a lock file          Consul
    Cluster    child processes      Nomad

`control/embedded.py` and `control/clustered.py` pick adapters, one for each world. Calls that may block say so; the
control service makes them on a thread of their own, one at a time a port.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from nomadfn_agent import wire


class JournalError(Exception):
    """A segment was definitely not written. The leader that gets this discards its state and steps down."""


class JournalFullError(JournalError):
    """There is no room: the disk or the store is full."""


class FencedError(JournalError):
    """Another control service holds the lease: this one must not write any more."""


class Journal(Protocol):
    """What must survive: an ordered log of segments, each durable and whole, or absent.

    All calls may block. Segments are numbered 1, 2, 3, … without gaps; the numbers go on over compactions.
    """

    def replay(self) -> Iterator[tuple[int, bytes]]:
        """Every segment from the last snapshot on, in order. Raises `JournalError` for a damaged one.

        After a compaction the snapshot's bodies come first, then the segments appended since.
        """
        ...

    def append(self, body: bytes) -> int:
        """Write one segment; it is durable when this returns its number. Raises `JournalError` if it is not."""
        ...

    def compact(self, snapshot: Iterable[bytes], upto: int, *, repeats: bool = False) -> None:
        """Replace the segments up to number `upto` by the bodies of `snapshot`, all or nothing.

        Segments after `upto` stay as they are and are replayed after the snapshot. It `repeats` when there is
        nothing in it that no segment has said by now.
        """
        ...

    def size_bytes(self) -> int:
        """How much the journal holds now, for the decision to compact."""
        ...

    def segment_count(self) -> int:
        """Segments since the last compaction, likewise: some journals like few better than small ones."""
        ...

    def close(self) -> None:
        """Let go. Another thread may call it: an append that waits for its store then ends with `JournalError`."""
        ...


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class Blobs(Protocol):
    """Large bytes by name; written whole or not at all. All calls may block."""

    def put(self, name: str, data: bytes) -> None: ...

    def get(self, name: str) -> bytes:
        """Raises `KeyError` for an unknown name."""
        ...

    def has(self, name: str) -> bool: ...

    def delete(self, name: str) -> None:
        """Deleting what is not there is no error."""
        ...

    def parts(self, name: str) -> Iterator[bytes]:
        """What `get` gives, a few MiB at a time. Raises `KeyError` in place of the first part."""
        ...

    def writing(self, name: str) -> AbstractContextManager[Sink]:
        """What is written inside is there, whole, once the block has ended in good order, and otherwise never."""
        ...

    def names(self) -> Iterator[tuple[str, float]]:
        """Every blob's name and its age in seconds."""
        ...

    @property
    def folder(self) -> str:
        """The folder that SDK, control service and containers may share; empty where there is none."""
        ...

    @property
    def mark(self) -> str:
        """Name of a file in `folder`, of this control service alone: who sees it, sees the same folder."""
        ...


class Registry(Protocol):
    """Small readable JSON by key (`apps/thumbs`, `overrides/thumbs/embed`). All calls may block."""

    def get(self, key: str) -> Any | None: ...

    def put(self, key: str, value: Any) -> None: ...

    def delete(self, key: str) -> None: ...

    def list(self, prefix: str, on_fault: Callable[[str], None] | None = None) -> dict[str, Any]:
        """Every key under `prefix` with its value, sorted by key.

        With `on_fault`, a value that cannot be read is left out and told to it; without, that raises `ServiceError`.
        """
        ...

    def close(self) -> None: ...


class Secrets(Protocol):
    """Environment variables that are kept under a name, for functions to name. All calls may block.

    Each raises `PermissionDeniedError` where it is not allowed, and `ServiceError` where nobody answers.
    """

    def read(self, name: str) -> dict[str, str]:
        """Raises `NotFoundError`, which says how to make it, or `InvalidError` for what cannot be a secret."""
        ...

    def write(self, name: str, values: dict[str, str], *, replace: bool = False) -> None:
        """Raises `AlreadyExistsError` for one that is there already, unless it is to be replaced."""
        ...

    def delete(self, name: str) -> None:
        """Raises `NotFoundError`."""
        ...

    def names(self) -> dict[str, float]:
        """Every secret that was written here, and when it was changed last (unix s)."""
        ...


class LeaseHeldError(Exception):
    """Somebody else holds the lease. The text says who, as far as it is known."""


class Lease(Protocol):
    """A control service's right to lead. All calls may block."""

    def acquire(self) -> int:
        """Take the lease; returns its epoch, larger than every one before. Raises `LeaseHeldError`."""
        ...

    def describe(self, note: str) -> None:
        """Leave a line about the holder that `LeaseHeldError` shows to others."""
        ...

    def release(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Needs:
    """What a cluster must know of a function before it can place its containers: its spec, without its code."""

    app: str
    function: str
    cpu_cores: float | None = None
    memory_mib: int | None = None
    gpu: tuple[str, ...] = ()
    """As `gpu=` has been checked: `("H100:4", "A100-80GB:4")`, the preferred one first."""
    image: str = ""
    """The container image; empty is the cluster's own."""
    max_containers: int | None = None


class Placement(msgspec.Struct, frozen=True):
    """One container that shall run: which function's, its index in the pool, and how its runner joins."""

    container: str
    function: str
    index: int
    env: dict[str, str]
    needs: Needs | None = None
    """For clusters that place containers by them."""
    environment: wire.ImageSpec | None = None
    """The recipe of the Python environment that it runs in; None is the cluster's own."""


class EnvironmentOutput(msgspec.Struct, frozen=True):
    """From the log of an environment that is made for a function, before a container waits for it."""

    function: str
    text: str


class ContainerPreparing(msgspec.Struct, frozen=True):
    """The container waits until its environment is made: `what` in words. `ContainerStarted` or its end follows."""

    container: str
    what: str


class ContainerStarted(msgspec.Struct, frozen=True):
    container: str
    pid: int


class ContainerEnded(msgspec.Struct, frozen=True):
    """The cluster says that the container is gone: `what` in words ("killed by SIGKILL", "exit code 3")."""

    container: str
    what: str
    tail: str
    """The last lines that it wrote."""


class ContainerOutput(msgspec.Struct, frozen=True):
    container: str
    stream: int
    text: str


class ContainerWithdrawn(msgspec.Struct, frozen=True):
    """The answer to `recall`: of the deliveries up to `up_to` those beyond `after` will not run in this container.

    The columns are outputs that the container had finished and not sent; it may send them again itself.
    """

    container: str
    after: int
    up_to: int
    deliveries: list[int]
    statuses: list[int]
    payloads: list[bytes]
    run_ns: int


class ContainerLeaving(msgspec.Struct, frozen=True):
    """The cluster is about to end the container (its node is drained): it shall get no more inputs."""

    container: str
    what: str


class ContainerFound(msgspec.Struct, frozen=True):
    """A container that this control service did not start runs: one that an earlier leader has left."""

    container: str
    app: str
    function: str
    index: int


class PlacementBlocked(msgspec.Struct, frozen=True):
    """Containers of a function wait for a place: `why` in words, empty once none waits any more."""

    function: str
    why: str


class ClusterLost(msgspec.Struct, frozen=True):
    """The cluster itself is gone (its supervisor ended); every container with it."""

    what: str


ClusterEvent = (
    EnvironmentOutput
    | ContainerPreparing
    | ContainerStarted
    | ContainerEnded
    | ContainerOutput
    | ContainerWithdrawn
    | ContainerLeaving
    | ContainerFound
    | PlacementBlocked
    | ClusterLost
)


class Cluster(Protocol):
    """Where containers run. Calls do not block; what happens is told to the listener, on the event loop."""

    @property
    def capacity(self) -> int | None:
        """How many containers fit at once, if that is known."""
        ...

    @property
    def capacity_reason(self) -> str:
        """The capacity in words, as it stands behind "limited by"."""
        ...

    async def open(self, listener: Callable[[ClusterEvent], None]) -> None: ...

    def check(self, needs: Needs) -> None:
        """Raises one of nomadfn's errors for what this cluster can never place."""
        ...

    def start(self, placement: Placement) -> None: ...

    def stop(self, container: str, grace_s: float) -> None:
        """Ask the container to end, and make it after `grace_s`; 0 is at once."""
        ...

    def recall(self, container: str, up_to: int) -> None:
        """Take back what the container has not started, up to this delivery: `ContainerWithdrawn` says what that is.

        That may never come (the container's supervisor is away for a moment): ask again.
        """
        ...

    def note(self, function: str, reason: str) -> None:
        """Why the function's containers become more or fewer, for who looks at the cluster; told before they do."""
        ...

    def retire(self, app: str, function: str = "") -> None:
        """The app, as its containers' `Needs` name it, or only one function of it, is gone: nothing has to be kept."""
        ...

    def may_stop(self, indexes: frozenset[int], idle: frozenset[int]) -> frozenset[int]:
        """Which of the idle containers this cluster can stop without touching a busy one."""
        ...

    async def close(self) -> None:
        """End every container and wait until the operating system says that they are gone."""
        ...
