"""Streams: what running inputs give out in parts and are fed in parts. Most inputs have none.

Parts pass through and are kept until they are taken, at the most a window of them (the runner and whoever feeds see to
that), so that a client that comes back gets what it has not. An input whose stream has begun is never run again: nobody
shall get a part twice, or of two attempts. After a takeover the client says which attempt it has parts of, and goes on
with that one where its container has come back, else it is told.
"""

from __future__ import annotations

from collections.abc import Sequence

from nomadfn_agent import wire

from .effects import Consumed, DropBlob, FeedTaken, Notice, SendFeed, SendParts
from .model import PENDING, RUNNING, Container, Input, Session, Stream
from .state import State, drop_blob, fail

NOT_TWICE = "parts are not given twice, so it is not run again: call it again"


def begun(state: State, one: Input) -> bool:
    """Whether somebody may have seen something of this attempt."""
    stream = state.streams.get((one.call.id, one.index))
    return stream is not None and stream.begun


def take_parts(
    state: State, container: Container, delivery: int, number: int, statuses: list[int], payloads: list[bytes]
) -> None:
    """A container's input has given these out. What its container does not hold any more is of nobody."""
    one = container.held.get(delivery)
    if one is None or one.state != RUNNING or one.delivery != delivery:
        if delivery >= state.first_delivery:
            for status, payload in zip(statuses, payloads, strict=True):
                drop_blob(state, status, payload)
        return
    stream = _stream_of(state, one, container)
    twice = max(0, stream.number - (number - len(payloads))) if stream.number else 0
    if twice >= len(payloads):
        return
    if twice:
        statuses, payloads = statuses[twice:], payloads[twice:]
    stream.begun = True
    stream.number = number
    stream.parts.append((number, statuses, payloads))
    if stream.taken > number - len(payloads):
        _drop_taken(stream)  # They had come by way of an earlier leader.
        state.effects.append(Consumed(container.id, delivery, stream.taken))
    session = state.sessions.get(one.call.caller)
    if session is not None and session.attached and number > stream.taken:
        call = one.call.id
        state.effects.append(SendParts(session.id, call, one.index, delivery, number, statuses, payloads))


def taken(state: State, session: Session, call_id: str, index: int, number: int) -> None:
    """Whoever reads the stream has everything up to `number`."""
    call = state.calls.get(call_id)
    one = call.get(index) if call is not None else None
    if one is None or one.call.caller != session.id:
        return
    # The container that gives them may not be back yet.
    stream = state.streams.setdefault((call_id, index), Stream())
    stream.taken = max(stream.taken, number)
    _drop_taken(stream)
    if one.state == RUNNING and one.delivery == stream.attempt:
        state.effects.append(Consumed(stream.container, stream.attempt, stream.taken))


def _drop_taken(stream: Stream) -> None:
    while stream.parts and stream.parts[0][0] <= stream.taken:
        stream.parts.popleft()


def feed(state: State, call_id: str, index: int, payloads: list[bytes], *, last: bool) -> int:
    """Parts for an input that waits or runs; returns the number of the last of them."""
    call = state.calls.get(call_id)
    one = call.get(index) if call is not None else None
    if one is None or one.state not in (PENDING, RUNNING):
        return 0
    stream = state.streams.setdefault((call_id, index), Stream())
    stream.fed += len(payloads)
    stream.feed.append((stream.fed, payloads, last))
    if one.state == RUNNING:
        container = stream.container or _holder(one)
        state.effects.append(SendFeed(container, one.delivery, stream.fed, payloads, last))
    return stream.fed


def fed(state: State, container: Container, delivery: int, number: int) -> None:
    """User code has what its input was fed, up to `number`."""
    one = container.held.get(delivery)
    if one is None or one.state != RUNNING or one.delivery != delivery:
        return
    stream = _stream_of(state, one, container)
    stream.begun = True
    while stream.feed and stream.feed[0][0] <= number:
        stream.feed.popleft()
    state.effects.append(FeedTaken(one.call.caller, one.call.id, one.index, number))


def begin(state: State, container: Container, inputs: Sequence[Input]) -> None:
    """Inputs were handed to a container: what they have been fed follows them."""
    for one in inputs:
        stream = state.streams.get((one.call.id, one.index))
        if stream is not None:
            stream.attempt = one.delivery
            stream.container = container.id
            for number, payloads, last in stream.feed:
                state.effects.append(SendFeed(container.id, one.delivery, number, payloads, last))


def resend(state: State, session: Session) -> None:
    """A client is back: it is sent what it has not taken of its streams."""
    for (call_id, index), stream in state.streams.items():
        call = state.calls.get(call_id)
        if call is not None and call.caller == session.id:
            _send_all(state, session, call_id, index, stream)


def settle_claim(state: State, one: Input) -> None:
    """The client of an input that an earlier leader had handed out is back."""
    stream = state.streams.get((one.call.id, one.index))
    session = state.sessions.get(one.call.caller)
    if stream is not None and session is not None and session.attached:
        _send_all(state, session, one.call.id, one.index, stream)


def resume(state: State, now: float, inputs: Sequence[Input]) -> None:
    """Their client has parts of an attempt: that one may still come back with its container, or all is over."""
    for one in inputs:
        state.streams.setdefault((one.call.id, one.index), Stream()).begun = True
    waiting = [one for one in inputs if one.state == PENDING]
    if state.recovering:
        state.resuming.extend(waiting)
    else:
        _give_up(state, now, waiting)


def end_recovery(state: State, now: float) -> None:
    """Containers that are not back by now do not come back."""
    waiting, state.resuming = state.resuming, []
    _give_up(state, now, [one for one in waiting if one.state == PENDING])


def _give_up(state: State, now: float, inputs: Sequence[Input]) -> None:
    for one in inputs:
        name = one.call.function.spec.program_name
        text = (
            f"{name} had given a part of its result when its container was lost with the control service; {NOT_TWICE}"
        )
        fail(state, now, one, "InternalFailure", text)


def fail_begun(state: State, now: float, container: Container, inputs: list[Input], why: str) -> list[Input]:
    """The container is gone, `why` in words: inputs whose streams have begun fail; returns the others."""
    over = [one for one in inputs if begun(state, one)]
    if not over:
        return inputs
    function = container.function
    function.totals.lost += len(over)
    text = f"container {container.index} was lost with {len(over)} streams that had begun; they fail"
    state.effects.append(Notice(function.app, function.spec.name, text))
    for one in over:
        stream = state.streams[one.call.id, one.index]
        number = max(stream.number, stream.taken)
        given = f"{number:,} part{'s'[: number != 1]}" if number else "a part of its result"
        text = f"{function.spec.program_name} had given {given} when its container was lost; {NOT_TWICE}. {why}"
        fail(state, now, one, "InternalFailure", text)
    return [one for one in inputs if one.state == RUNNING]


def forget(state: State, call_id: str, indexes: Sequence[int]) -> None:
    """The client has these inputs' results, and so all of their parts: blobs among them are its own."""
    for index in indexes:
        state.streams.pop((call_id, index), None)


def drop(state: State, call_id: str, index: int) -> None:
    """Nobody will read what is left of the stream."""
    stream = state.streams.pop((call_id, index), None)
    if stream is not None:
        for reference in references(stream):
            state.effects.append(DropBlob(reference))


def drop_session(state: State, session: Session) -> None:
    for call_id, index in list(state.streams):
        call = state.calls.get(call_id)
        if call is not None and call.caller == session.id:
            drop(state, call_id, index)


def references(stream: Stream) -> list[bytes]:
    """The blobs among the parts that are kept."""
    return [
        payload
        for _, statuses, payloads in stream.parts
        for status, payload in zip(statuses, payloads, strict=True)
        if status & wire.REF
    ]


def _stream_of(state: State, one: Input, container: Container) -> Stream:
    stream = state.streams.setdefault((one.call.id, one.index), Stream())
    stream.attempt = one.delivery
    stream.container = container.id
    return stream


def _holder(one: Input) -> str:
    """The container that an input without a stream runs in."""
    containers = one.call.function.containers.values()
    return next((container.id for container in containers if one.delivery in container.held), "")


def _send_all(state: State, session: Session, call_id: str, index: int, stream: Stream) -> None:
    for number, statuses, payloads in stream.parts:
        state.effects.append(SendParts(session.id, call_id, index, stream.attempt, number, statuses, payloads))
