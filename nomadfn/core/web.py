"""Web requests on their way to a container: those that come together travel in one frame, though each is a call."""

from __future__ import annotations

from nomadfn_agent import wire

from . import streams
from .effects import DeliverBatch
from .model import DISPATCH, Container, Function, Input
from .state import State


def hand_over(state: State, now: float, function: Function, container: Container, inputs: list[Input]) -> None:
    """Give `inputs` to the container, each for a slot of its own."""
    if not container.held:
        container.progress = now
    held, counts_slots = container.held, container.slots > 1
    delivery = state.next_delivery
    part: DeliverBatch | None = None
    size = 0
    for one in inputs:
        one.move(DISPATCH)
        one.delivery = delivery
        held[delivery] = one
        size += len(one.payload)
        if part is None or size > wire.MAX_FRAME_BYTES:
            size = len(one.payload)
            part = DeliverBatch(container.id, [], [], [], [], [], last=True)
            state.effects.append(part)
        part.calls.append(one.call.id)
        part.deliveries.append(delivery)
        part.indexes.append(one.index)
        part.payloads.append(one.payload)
        part.codecs.append(one.codec)
        if counts_slots:
            container.begin(now, delivery)
        delivery += 1
    function.pending[0] -= len(inputs)
    function.running[0] += len(inputs)
    state.next_delivery = delivery
    if state.streams:
        streams.begin(state, container, inputs)
