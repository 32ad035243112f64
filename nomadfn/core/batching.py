"""Forming the batches of a batched function, over all its callers.

The timer of a batch starts with its first input. A batch is eligible once it is full or its timer has ended; it
is formed when a slot takes it, and fills until then. It goes to its container whole and takes one slot.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from nomadfn_agent import wire

from .effects import DeliverBatch
from .model import DISPATCH, READY, REQUEUE, Container, Function, Input
from .state import LOOK_S, State, forget_claim, is_claim, is_live


def note_arrival(function: Function, now: float, count: int) -> None:
    """`count` inputs began to wait for a batch."""
    if count:
        function.arrivals.append((now, count))
        function.arrived += count


def note_return(function: Function, now: float, count: int) -> None:
    """Inputs that were in a container are first in the queue again: their wait is over."""
    function.arrivals.appendleft((now - function.spec.batch_wait_ms / 1000, count))
    function.arrived += count


def due_at(function: Function) -> float:
    """When the timer of the batch that forms now ends."""
    return function.arrivals[0][0] + function.spec.batch_wait_ms / 1000


def eligible(state: State, now: float, function: Function) -> bool:
    """Whether a slot may take a batch now; else the core is woken when it may."""
    if not function.waiting_inputs:
        forget_arrivals(function)
    elif not function.arrivals and function.queue.has_lines:
        note_return(function, now, function.waiting_inputs)  # They came before the function was batched.
    if not function.arrivals:
        return False
    if min(function.arrived, function.waiting_inputs) >= function.spec.max_batch_size or due_at(function) <= now:
        return True
    state.wake_at = min(state.wake_at, due_at(function))
    return False


def take(function: Function) -> list[Input]:
    """The next batch's inputs, no longer in the queue."""
    size = function.spec.max_batch_size
    inputs = function.queue.take(size, is_live)
    if len(inputs) < size:
        forget_arrivals(function)  # The queue is empty: what was left of them had been cancelled.
        return inputs
    left = size
    while left and function.arrivals:
        since, count = function.arrivals.popleft()
        if count > left:
            function.arrivals.appendleft((since, count - left))
        function.arrived -= min(count, left)
        left -= min(count, left)
    return inputs


def is_ready(state: State, now: float, function: Function) -> bool:
    """Whether a slot may take a batch now: one that forms, or a part of one that raised."""
    return bool(function.queue.parts) or eligible(state, now, function)


def take_next(function: Function) -> list[Input]:
    """The inputs of the batch that is next."""
    parts = function.queue.parts
    return [one for one in parts.popleft() if is_live(one)] if parts else take(function)


def whole_batches(container: Container, deliveries: Sequence[int], statuses: Sequence[int]) -> dict[int, list[Input]]:
    """Where the function raised for batches: the list of each, still empty, by every delivery that was in it."""
    lists: dict[int, list[Input]] = {}
    of_batch: dict[int, list[Input]] = {}
    for delivery, status in zip(deliveries, statuses, strict=True):
        if status == wire.BATCH_RAISED:
            first = container.batch_of.get(delivery, delivery)
            lists[delivery] = of_batch.setdefault(first, [])
    return lists


def run_again(state: State, function: Function, batches: Iterable[list[Input]]) -> None:
    """Batches for which the function raised run again by halves. That is no retry of any of them.

    What is alone in the end raises for itself, and then has its retries, in whatever batch it is by then.
    """
    for batch in batches:
        left: list[Input] = []
        for one in batch:
            if is_claim(one):
                forget_claim(state, one)
                continue
            durable = one.call.durable
            one.move(REQUEUE)
            function.running[durable] -= 1
            function.pending[durable] += 1
            left.append(one)
        (function.queue.alone if left and left[0].suspect else function.queue.parts).extend(halves(left))
        batch.clear()  # `batches` has it once for each of its deliveries.


def put_parts_back(function: Function) -> None:
    """It is not batched any more: what was a part of a batch is first in line."""
    parts = function.queue.parts
    while parts:
        for one in reversed(parts.pop()):
            function.queue.put_back(one.call.caller, one.call.priority, [one])


def forget_arrivals(function: Function) -> None:
    """Whatever waits is due at once."""
    function.arrivals.clear()
    function.arrived = 0


def next_container(function: Function) -> Container | None:
    """The container with a free slot that is next to get a batch: below its target first, then the lowest index."""
    for heap, kind in ((function.idle_heap, 1), (function.roomy_heap, 2)):
        while heap:
            container = function.containers.get(heapq.heappop(heap)[1])
            if container is None or container.listed != kind:
                continue
            container.listed = 0
            if container.state == READY and not container.alone and container.used < container.slots:
                return container
    return None


def hand_over(state: State, now: float, function: Function, container: Container, inputs: list[Input]) -> None:
    """Make `inputs` one batch of the container."""
    if not container.held:
        container.progress = now
        container.late = False
    first = delivery = state.next_delivery
    part: DeliverBatch | None = None
    size = 0
    for one in inputs:
        one.move(DISPATCH)
        one.delivery = delivery
        container.held[delivery] = one
        container.batch_of[delivery] = first
        durable = one.call.kind >= wire.SPAWN
        function.pending[durable] -= 1
        function.running[durable] += 1
        size += len(one.payload)
        if part is None or size > wire.MAX_FRAME_BYTES:
            size = len(one.payload)
            part = DeliverBatch(container.id, [], [], [], [], [], last=False)
            state.effects.append(part)
        part.calls.append(one.call.id)
        part.deliveries.append(delivery)
        part.indexes.append(one.index)
        part.payloads.append(one.payload)
        part.codecs.append(one.codec | wire.DURABLE if durable else one.codec)
        delivery += 1
    assert part is not None
    part.last = True
    state.next_delivery = delivery
    container.batches[first] = len(inputs)
    container.begin(now, first)
    function.changed[container.id] = container
    state.look(container, now + min(LOOK_S, function.spec.timeout_s))


def halves(batch: list[Input]) -> list[list[Input]]:
    """What a batch is run as after its container was lost with it."""
    middle = (len(batch) + 1) // 2
    return [part for part in (batch[:middle], batch[middle:]) if part]
