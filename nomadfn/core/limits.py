"""How much of everything there may be, and the words for what is over it.

A check returns data, never raises: the caller of a `.map` is told to come back, the caller of a `.remote` gets
the error, and both are decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from nomadfn_agent import wire

MIN_RETRY_AFTER_S = 0.05
MAX_RETRY_AFTER_S = 10.0
DEFAULT_RETRY_AFTER_S = 1.0
PRIORITIES = range(-100, 101)
"""What `priority=` may be."""
PRIORITY_TEXT = "it is a whole number from -100 to 100, the higher the sooner"
SMALL_BYTES = 128
"""The result of a spawn always has so much room: what was admitted may fill half, and each input counts for as much."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one cluster. Each is a setting `limits.<name of the field>`; counts are for one function."""

    pending_inputs: int = 2_000
    """Inputs of `.remote` and `.map` that wait for a container."""
    total_inputs: int = 25_000
    """Inputs of `.remote` and `.map` that wait or run."""
    pending_spawns: int = 1_000_000
    """Inputs of `.spawn` and `.spawn_map` that wait for a container."""
    spawn_bytes: int | None = None
    """Payloads and results of all spawns that are kept; None where the journal bounds nothing. New spawns may fill
    half of it: the rest is for results, and one that finds no room there fails."""
    map_in_flight: int = 1_000
    """Inputs of one `.map` that are submitted and whose results have not been read."""
    map_share: float = 0.9
    """The part of `pending_inputs` that maps may fill; the rest stays free for other calls."""
    payload_bytes: int = 1 << 30
    function_bytes: int = 16 << 20
    dict_bytes: int = 64 << 20
    """Entries of all Dicts together, without the values that lie in the blob store."""
    dict_blob_bytes: int = 16 << 30
    """Those."""
    web_requests_per_s: float = 200.0
    """Requests of a web function, on the average."""
    web_burst_s: float = 5.0
    """So many seconds' worth of them may come at once."""
    retention_s: float = 7 * 86_400.0
    """How long a spawn's result is kept."""


class Load(msgspec.Struct, frozen=True):
    """What one function holds now."""

    pending: int
    """Inputs of `.remote` and `.map` that are not in a container."""
    running: int
    """Inputs of `.remote` and `.map` that are."""
    pending_spawns: int
    drained_per_s: float | None = None
    """Inputs that the function finishes in a second, if that has been measured; for `retry_after_s` only."""


class Bucket:
    """A token bucket: `rate_per_s` on the average, and `burst_s` seconds' worth of that at once."""

    __slots__ = ("_at", "_full", "_rate_per_s", "_tokens")

    def __init__(self, rate_per_s: float, burst_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._full = max(1.0, rate_per_s * burst_s)
        self._tokens = self._full
        self._at = 0.0

    def take(self, now: float) -> float:
        """Take one token: 0 where there was one, else the seconds until there is."""
        tokens = min(self._full, self._tokens + max(0.0, now - self._at) * self._rate_per_s)
        self._at = now
        if tokens >= 1.0:
            self._tokens = tokens - 1.0
            return 0.0
        self._tokens = tokens
        return (1.0 - tokens) / self._rate_per_s


class Excess(msgspec.Struct, frozen=True):
    """Something is over a limit. `error` names the class of `nomadfn.exception` that says so to the caller."""

    limit: str
    value: int
    maximum: int
    message: str
    retry_after_s: float = DEFAULT_RETRY_AFTER_S
    error: str = "ResourceExhaustedError"


class Admission(msgspec.Struct, frozen=True):
    """How many of the offered inputs are taken, from the first on; `excess` says why the others are not."""

    count: int
    excess: Excess | None = None


def has_room(limits: Limits, kind: int, pending: int, running: int) -> bool:
    """Whether one input of a call that is not durable is taken."""
    most = int(limits.pending_inputs * limits.map_share) if kind == wire.MAP else limits.pending_inputs
    return pending < most and pending + running < limits.total_inputs


def admit(limits: Limits, load: Load, kind: int, count: int) -> Admission:
    """Take as many of `count` inputs of a call of `kind` (`wire.REMOTE`, …) as the function has room for."""
    if kind in wire.DURABLE_KINDS:
        room = limits.pending_spawns - load.pending_spawns
        if count <= room:
            return Admission(count)
        return _refuse("pending_spawns", load.pending_spawns, limits.pending_spawns, room, count, load)
    pending_limit = limits.pending_inputs
    share = ""
    if kind == wire.MAP:
        pending_limit = int(limits.pending_inputs * limits.map_share)
        share = f", of which maps may fill {pending_limit:,}"
    total = load.pending + load.running
    room_pending = pending_limit - load.pending
    room_total = limits.total_inputs - total
    if count <= min(room_pending, room_total):
        return Admission(count)
    if room_pending <= room_total:
        return _refuse("pending_inputs", load.pending, limits.pending_inputs, room_pending, count, load, share)
    return _refuse("total_inputs", total, limits.total_inputs, room_total, count, load)


_WORDS = {
    "pending_inputs": "inputs wait for a container of this function",
    "total_inputs": "inputs of this function wait or run",
    "pending_spawns": "spawned inputs of this function wait for a container",
}


def _refuse(limit: str, value: int, maximum: int, room: int, count: int, load: Load, share: str = "") -> Admission:
    taken = max(0, min(room, count))
    # When half of the limit is free at the latest: whoever waits longer lets the containers run dry.
    retry_after_s = _time_to_drain_s(min(count - taken, max(1, maximum // 2)), load.drained_per_s)
    message = (
        f"{value + taken:,} {_WORDS[limit]} and the limit is {maximum:,}{share}; "
        f"try again in {retry_after_s:.2g} s, or raise the setting limits.{limit}"
    )
    return Admission(taken, Excess(limit, value + taken, maximum, message, retry_after_s))


def _time_to_drain_s(count: int, drained_per_s: float | None) -> float:
    if drained_per_s is None or drained_per_s <= 0:
        return DEFAULT_RETRY_AFTER_S
    return min(max(count / drained_per_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)


def admit_bytes(limits: Limits, kept_bytes: int, sizes_bytes: Sequence[int]) -> Admission:
    """Take as many of the spawned inputs of these sizes as there is room for, beside the `kept_bytes` of others."""
    if limits.spawn_bytes is None:
        return Admission(len(sizes_bytes))
    maximum = limits.spawn_bytes // 2
    for count, size_bytes in enumerate(sizes_bytes):
        if kept_bytes + size_bytes > maximum:
            message = (
                f"{kept_bytes:,} bytes of spawned inputs and their results are kept, and new ones may fill "
                f"{maximum:,}, half of limits.spawn_bytes; wait until results have expired, set a blob store "
                "(blobs, in the cluster's profile), or raise the setting limits.spawn_bytes"
            )
            return Admission(count, Excess("spawn_bytes", kept_bytes, maximum, message, MAX_RETRY_AFTER_S))
        kept_bytes += size_bytes
    return Admission(len(sizes_bytes))


def check_result(limits: Limits, kept_bytes: int, size_bytes: int) -> Excess | None:
    """A spawn's result that is to take the place of its payload, beside the `kept_bytes` of others."""
    if limits.spawn_bytes is None or size_bytes <= SMALL_BYTES or kept_bytes + size_bytes <= limits.spawn_bytes:
        return None
    # It is kept in place of the result: it must not be longer than what always has room.
    message = f"no room for its result of {size_bytes:,} bytes: set blobs, or raise limits.spawn_bytes"
    return Excess("spawn_bytes", kept_bytes, limits.spawn_bytes, message)


def check_payload(limits: Limits, size_bytes: int) -> Excess | None:
    """A payload or a result of `size_bytes`; over the limit, trying again does not help."""
    if size_bytes <= limits.payload_bytes:
        return None
    message = (
        f"the payload has {size_bytes:,} bytes and the limit is {limits.payload_bytes:,}; pass a path or "
        "an address in place of the data, or raise the setting limits.payload_bytes"
    )
    return Excess("payload_bytes", size_bytes, limits.payload_bytes, message, 0.0, "RequestSizeError")


def check_function(limits: Limits, name: str, size_bytes: int) -> Excess | None:
    """The pickle of function `name`, where no module can give it."""
    if size_bytes <= limits.function_bytes:
        return None
    message = (
        f"the pickled function {name} has {size_bytes:,} bytes and the limit is {limits.function_bytes:,}; "
        "load large data inside the function instead of closing over it, or raise the setting limits.function_bytes"
    )
    return Excess("function_bytes", size_bytes, limits.function_bytes, message, 0.0, "InvalidError")
