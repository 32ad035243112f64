"""What a new leader does with the containers that the one before has left: they go on, and nothing runs twice.

A container that is found is adopted; its runner says what it holds and what it has just finished (`attach`). An
input of a spawn is known from the journal and is simply the container's from then on. One of a `.map` or `.remote`,
or of a spawn that was not durable yet, is known only to its client, which sends it again: until then a *claim* stands
for it, an input without a payload that counts as running. What a claim gives before its client is back is kept for
`EARLY_S`.

While `state.recovering`, nothing is handed out and nothing is scaled, so that what runs already is not run again.
"""

from __future__ import annotations

from . import streams
from .effects import Interrupt
from .model import PENDING, READY, RUNNING, STARTING, Call, Container, Function, Input
from .pool import list_container
from .state import LOOK_S, Claim, State, drop_blob, fail, finish, forget_claim, is_claim

EARLY_S = 60.0
"""How long a result is kept whose client has not come back."""
UNCLAIMED_S = 30.0
"""How long a stream runs on whose client has not come back: as long as a session may be away."""


def adopt(state: State, now: float, function: Function, id: str, index: int) -> Container:
    """Take a container as the function's own. It counts as starting until its runner is here."""
    container = Container(id, function, index, now)
    container.adopted = True
    function.containers[id] = container
    state.containers[id] = container
    function.changed[id] = container
    state.look(container, now + LOOK_S)
    state.touch(function)
    return container


def attach(
    state: State,
    now: float,
    container: Container,
    slots: int,
    deliveries: list[int],
    calls: list[str],
    indexes: list[int],
) -> None:
    """The runner of an adopted container is here. What it holds in vain it is told to let go."""
    if container.state != STARTING:
        return
    function = container.function
    container.state = READY
    container.adopted = False
    container.slots = slots
    container.progress = container.idle_since = now
    function.ready += 1
    refused = []
    for delivery, call, index in zip(deliveries, calls, indexes, strict=True):
        if not _hold(state, now, container, delivery, call, index):
            refused.append(delivery)
        elif container.counts_slots:
            _take_slot(container, now, delivery)
    if refused:
        state.effects.append(Interrupt(container.id, refused))
    function.changed[container.id] = container
    state.look(container, now)
    list_container(function, container, 0)
    state.touch(function)


def _take_slot(container: Container, now: float, delivery: int) -> None:
    """Which batch an input was in is not said: each counts as one of its own until it has its output."""
    if container.function.spec.max_batch_size:
        container.batches[delivery] = 1
        container.batch_of[delivery] = delivery
    container.begin(now, delivery)


def _hold(state: State, now: float, container: Container, delivery: int, call_id: str, index: int) -> bool:
    """Count one delivery as running in the container. False where it has a result, or runs elsewhere."""
    function = container.function
    call = state.calls.get(call_id)
    one = call.get(index) if call is not None else None
    if one is None:
        if (call_id, index) in state.claims or (call is not None and call.durable and call.total >= 0):
            return False
        # Not in `state.calls`: its client will make the call itself when it comes.
        claim = Input(Call(call_id, -1, function, "", created=now), index, b"", 0, state=RUNNING, delivery=delivery)
        state.claims[call_id, index] = Claim(container, claim)
        function.running[0] += 1
        container.held[delivery] = claim
        return True
    if one.state != PENDING or one.call.function is not function:
        return False
    _start(function, container, one, delivery)
    return True


def _start(function: Function, container: Container, one: Input, delivery: int) -> None:
    durable = one.call.durable
    one.state = RUNNING  # Its line in the queue passes over what does not wait.
    one.delivery = delivery
    container.held[delivery] = one
    function.pending[durable] -= 1
    function.running[durable] += 1


def settle_claims(state: State, now: float, inputs: list[Input]) -> None:
    """Inputs of a client that came back: those that a container has already are its, or have their results."""
    for one in inputs:
        key = (one.call.id, one.index)
        if (early := state.early.pop(key, None)) is not None:
            one.call.function.totals.count([early.status])
            streams.settle_claim(state, one)
            finish(state, now, one, early.status, early.payload)
            continue
        claim = state.claims.pop(key, None)
        if claim is None:
            continue
        function, delivery = one.call.function, claim.input.delivery
        if claim.container.held.get(delivery) is claim.input and claim.container.function is function:
            function.running[0] -= 1
            _start(function, claim.container, one, delivery)
            streams.settle_claim(state, one)


def drop_claims(state: State, container: Container) -> None:
    """The container is gone: its clients send those inputs anew, and then they run as any others."""
    for delivery, one in list(container.held.items()):
        if is_claim(one):
            del container.held[delivery]
            container.release(container.progress, delivery)
            forget_claim(state, one)


def give_up_streams(state: State, now: float) -> None:
    """Cancel streams whose client does not come back, such as a browser: they would wait for it until their timeout."""
    for claim in list(state.claims.values()):
        call = claim.input.call
        if call.function.spec.streams and now - call.created >= UNCLAIMED_S:
            state.effects.append(Interrupt(claim.container.id, [claim.input.delivery]))
            fail(state, now, claim.input, "InputCancellation", "its client has not come back")


def forget_early(state: State, now: float) -> None:
    """Drop results whose clients do not come back."""
    for key, early in list(state.early.items()):
        if now - early.at < EARLY_S:
            return
        del state.early[key]
        streams.drop(state, *key)
        drop_blob(state, early.status, early.payload)
