"""How many containers one function shall have: a sample in, a plan with its reason out. No clock, no memory.

`wanted` says what the function would have if it were alone; `placement.share` divides what the cluster has
between all functions; `decide` turns both into what to start, stop and drain.

The plan depends on the sum of pending and running inputs, not on how they are split, so that it does not move
while containers take inputs up; containers that are starting count as there, so that a burst is answered once.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal

import msgspec
from nomadfn_agent.wire import AutoscalerSettings

DRAIN_WITHIN_S = 1.0
"""A backlog whose run time is known gets no more containers than drain it within this time."""
YIELD_IDLE_S = 0.1
"""How long a container is idle before it makes room for another function."""
YIELD_LAST_IDLE_S = 2.0
"""The same for a function's last idle container: a caller in a loop shall find it warm."""


class Member(msgspec.Struct, frozen=True):
    """One container that is ready and not draining. `idle_s` is None while it holds an input."""

    container: str
    index: int
    idle_s: float | None


class Sample(msgspec.Struct, frozen=True):
    """What is to know about one function at one moment."""

    settings: AutoscalerSettings
    pending: int
    """Inputs without a slot; those sent ahead of a free slot belong here."""
    running: int
    """Slots in use: inputs, or batches of a batched function."""
    slow: int = 0
    """Those of `running` that have held their slot for more than `DRAIN_WITHIN_S`, or that wait for inputs which
    they submitted themselves: their slots are not free soon."""
    mean_run_s: float | None = None
    """Measured time that one input (or batch) holds its slot; None before the first."""
    target: int = 1
    """Inputs (or batches) that one container shall hold."""
    batch_size: int = 0
    """`max_batch_size` of a batched function, else 0."""
    starting: int = 0
    ready: Collection[Member] = ()
    holding: int = 0
    """Those of `ready` that hold an input."""
    stops: bool = True
    """Whether to look for containers that may stop: each of `ready` is looked at then."""
    draining: int = 0
    """Containers that take no more inputs and are still there."""
    ceiling: int | None = None
    """Containers, draining ones included, that the cluster grants (`placement.Grant.count`)."""
    ceiling_reason: str = ""
    yields: int = 0
    """Containers that other functions need more (`placement.Grant.yields`)."""


class Wanted(msgspec.Struct, frozen=True):
    """`count` containers, of which `buffer` only to be idle and ready; `reason` has the numbers."""

    count: int
    buffer: int
    reason: str


class Scale(msgspec.Struct, frozen=True):
    """The plan: aim at `count` containers, `start` that many more, `stop` these idle ones.

    `drain` names containers that have work and are too many, because `max_containers` was lowered or another
    function needs the room: they take no more inputs and end when those that they hold are done.
    """

    count: int
    reason: str
    start: int = 0
    stop: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()

    @property
    def direction(self) -> Literal["up", "down", "same"]:
        if self.start:
            return "up"
        return "down" if self.stop or self.drain else "same"


def demand(sample: Sample) -> int:
    """Containers that the function's inputs need: `ceil((pending + running) / target)`, fewer where they are fast."""
    pending = _units(sample)
    plain = math.ceil((pending + sample.running) / sample.target)
    if sample.mean_run_s is None or plain <= 1:
        return plain
    # Slots whose input is known to take long are not free within the time; all others, running ones included,
    # are so much work to do. Counting running ones as work keeps the sum the same while containers take them up.
    slow = min(sample.slow, sample.running)
    work_s = (pending + sample.running - slow) * sample.mean_run_s
    quick = math.ceil(work_s / (sample.target * DRAIN_WITHIN_S))
    held, shared = divmod(slow, sample.target)
    if pending and shared == 0:
        quick = max(quick, 1)
    return min(plain, max(held + max(quick, 1 if shared else 0), 1))


def wanted(sample: Sample) -> Wanted:
    """The count by the function's own settings, whatever the cluster has."""
    settings = sample.settings
    needed = demand(sample)
    active = sample.pending + sample.running > 0
    if not sample.pending:
        # Buffer containers are idle ones: they come on top of those that have work, however little.
        needed = max(needed, sample.holding if active else 0)
    buffer = settings.buffer_containers if active else 0
    reason = _work_in_words(sample, needed)
    if buffer:
        reason += f", plus buffer_containers={buffer:,}"
    count = needed + buffer
    if count < settings.min_containers:
        count = settings.min_containers
        reason += f", raised to min_containers={count:,}"
    if settings.max_containers is not None and count > settings.max_containers:
        count = settings.max_containers
        reason += f", capped by max_containers={count:,}"
    return Wanted(count, max(0, count - max(needed, settings.min_containers)), reason)


def decide(sample: Sample) -> Scale:
    """What to do about one function now. With the same load, the plan after the plan is to do nothing."""
    want = wanted(sample)
    settings = sample.settings
    count, reason = want.count, want.reason
    ceiling = math.inf if sample.ceiling is None else sample.ceiling
    maximum = math.inf if settings.max_containers is None else settings.max_containers
    if ceiling < count:
        count = int(ceiling)
        reason += f", limited to {count:,} by {sample.ceiling_reason or 'the capacity of the cluster'}"
    there = sample.starting + len(sample.ready)
    room = min(maximum, ceiling) - there - sample.draining
    start = int(max(0, min(count - there, room)))
    if start:
        return Scale(count, reason, start)
    floor = max(count, min(settings.min_containers, maximum))
    surplus = int(there - floor)
    over = int(max(0, there - maximum))
    if surplus <= 0 or not (sample.stops or over or sample.yields):
        return Scale(count, reason)
    stop, drain = _shrink(sample, surplus, over)
    if stop:
        reason += f"; {len(stop):,} idle stop"
    if drain:
        reason += f"; {len(drain):,} finish their inputs and stop"
    return Scale(count, reason, 0, stop, drain)


def _shrink(sample: Sample, surplus: int, over: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which idle containers stop and which busy ones drain, when `over` of the `surplus` are over the maximum."""
    members = sorted(sample.ready, key=lambda member: -member.index)
    idle = [member for member in members if member.idle_s is not None]
    yields = min(sample.yields, surplus)
    stop: list[str] = []
    for position, member in enumerate(idle[:surplus]):
        assert member.idle_s is not None
        last = position == len(idle) - 1
        patience_s = YIELD_LAST_IDLE_S if last else YIELD_IDLE_S
        if (
            len(stop) < over
            or member.idle_s >= sample.settings.scaledown_window_s
            or (len(stop) < yields and member.idle_s >= patience_s)
        ):
            stop.append(member.container)
    # A container that is idle or starting makes room soon enough; only beyond those does a busy one have to end.
    soon = min(len(idle), surplus) + sample.starting
    drains = max(over - len(stop), yields - soon, 0)
    busy = [member.container for member in members if member.idle_s is None]
    return tuple(stop), tuple(busy[:drains])


def _units(sample: Sample) -> int:
    """Pending inputs, or the batches that they make."""
    return math.ceil(sample.pending / sample.batch_size) if sample.batch_size else sample.pending


def _work_in_words(sample: Sample, needed: int) -> str:
    if sample.pending + sample.running == 0:
        return "no inputs"
    words = f"backlog {sample.pending:,}" if sample.pending or not sample.running else ""
    if sample.pending and sample.batch_size:
        words += f" in batches of {sample.batch_size:,}"
    if sample.running:
        words += f"{' and ' if words else ''}{sample.running:,} running"
    words += f" / target {sample.target:,}"
    if sample.mean_run_s is not None and needed < math.ceil((_units(sample) + sample.running) / sample.target):
        words += f", at {_duration(sample.mean_run_s)} each done within {DRAIN_WITHIN_S:g} s by {needed:,}"
    return words


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{seconds * 1000:.2g} ms"
