"""`Queue`: values in line that programs and containers share, first in, first out, in partitions apart from each other.

As with a `Dict` every change is a record and carries a token (`dicts`): who takes values and loses the answer gets the
same ones when it asks again. Values are numbered, so that a record which a snapshot has brought already changes
nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import msgspec
from nomadfn_agent import wire

from ..exception import AlreadyExistsError, InvalidError, NotFoundError, ResourceExhaustedError
from . import records
from .dicts import admit_bytes, blob_bytes
from .shared import ENTRY_BYTES, LIST, MADE, Partition, SharedQueue, Value
from .state import State, withhold_drop

ITEMS_MAX = 5_000
"""Of one partition."""
PARTITIONS_MAX = 100_000
PARTITION_BYTES = 64
TTL_S = (1, 86_400)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[bytes, int]]).decode


def find(state: State, id: str) -> SharedQueue:
    found = state.queues.get(id)
    if found is None:
        raise NotFoundError(f"there is no Queue {id} any more, or never was; its with block may be over")
    return found


def find_named(state: State, name: str) -> SharedQueue:
    id = state.queue_names.get(name)
    if id is None:
        raise NotFoundError(f"there is no Queue {name!r}; Queue.from_name({name!r}, create_if_missing=True) makes it")
    return state.queues[id]


def make(
    state: State, now: float, id: str, name: str = "", session: str = "", *, allow_existing: bool = True
) -> SharedQueue:
    """A new one; the one of that name where it is there already. Raises AlreadyExistsError."""
    if name and name in state.queue_names:
        there = state.queues[state.queue_names[name]]
        if there.id != id and not allow_existing:
            raise AlreadyExistsError(f"there is a Queue {name!r} already; Queue.from_name({name!r}) is it")
        return there
    if id not in state.queues:
        number = state.record(made := records.QueueMade(id, name, session, now))
        apply(state, made)
        state.queues[id].number = number
    return state.queues[id]


def drop(state: State, found: SharedQueue) -> None:
    state.record(dropped := records.QueueDropped(found.id))
    apply(state, dropped)


def drop_session(state: State, session: str) -> None:
    for found in [one for one in state.queues.values() if one.session == session]:
        drop(state, found)


def put(
    state: State,
    now: float,
    found: SharedQueue,
    key: bytes,
    values: Sequence[bytes],
    codecs: Sequence[int],
    ttl_s: float,
    token: str,
) -> None:
    """Add values at the end of a partition, all or none. Raises ResourceExhaustedError where it is full."""
    if state.answers.get(token) is not None:
        return
    if len(values) != len(codecs) or len(key) > PARTITION_BYTES or not TTL_S[0] <= ttl_s <= TTL_S[1]:
        raise InvalidError("a queue takes as many codecs as values, a partition's name of 64 bytes, and a day at most")
    partition = live(state, now, found, key)
    length = 0 if partition is None else len(partition.values)
    if partition is None and len(found.partitions) >= PARTITIONS_MAX:
        raise _full(f"{found} has {PARTITIONS_MAX:,} partitions", PARTITIONS_MAX)
    if length + len(values) > ITEMS_MAX:
        raise _full(f"a partition of {found} has {length:,} values and may have {ITEMS_MAX:,}", ITEMS_MAX)
    size = sum(ENTRY_BYTES + len(value) for value in values)
    admit_bytes(state, size, sum(map(blob_bytes, values, codecs)))
    numbers = list(range(found.next, found.next + len(values)))
    change = records.QueuePut(found.id, key, numbers, list(values), list(codecs), ttl_s, now, token)
    found.number = state.record(change)
    apply(state, change)


def _full(text: str, maximum: int) -> ResourceExhaustedError:
    return ResourceExhaustedError(f"{text}; take some out first", limit="queue", value=maximum, maximum=maximum)


def take(state: State, now: float, found: SharedQueue, key: bytes, count: int, token: str) -> list[tuple[bytes, int]]:
    """Up to `count` values from the front. Where they lie in blobs, those are their reader's now."""
    known = state.answers.get(token)
    if isinstance(known, tuple):
        return _decode(known[0])
    partition = live(state, now, found, key)
    if partition is None or not partition.values:
        return []
    taken = list(islice(partition.values, count))
    change = records.QueueTaken(found.id, key, taken[-1].number, now, token)
    found.number = state.record(change)
    apply(state, change)
    return [(one.value, one.codec) for one in taken]


def clear(state: State, found: SharedQueue, key: bytes | None) -> None:
    """Empty a partition, or all of them."""
    for one in list(found.partitions) if key is None else [key]:
        partition = found.partitions.get(one)
        if partition is not None:
            change = records.QueueTaken(found.id, one, found.next, 0.0)
            found.number = state.record(change)
            for value in partition.values:
                withhold_drop(state, value.codec, value.value)
            apply(state, change)


def live(state: State, now: float, found: SharedQueue, key: bytes) -> Partition | None:
    """A partition, unless its time is over."""
    partition = found.partitions.get(key)
    if partition is not None and partition.ends_at <= now:
        clear(state, found, key)
        return None
    return partition


def expire(state: State, now: float) -> None:
    for found in list(state.queues.values()):
        for key in [key for key, one in found.partitions.items() if one.ends_at <= now]:
            clear(state, found, key)


def apply(state: State, record: records.QueueRecord) -> None:
    """What a record does: at once when it is made, and again at replay."""
    if isinstance(record, records.QueueMade):
        if record.queue not in state.queues:
            state.queues[record.queue] = SharedQueue(record.queue, record.name, record.session, record.at)
            if record.name:
                state.queue_names[record.name] = record.queue
        return
    found = state.queues.get(record.queue)
    if found is None:
        return
    match record:
        case records.QueuePut():
            _apply_put(state, found, record)
        case records.QueueTaken():
            _apply_taken(state, found, record)
        case records.QueueDropped():
            for partition in found.partitions.values():
                for one in partition.values:
                    _count(state, one, -1)
                    withhold_drop(state, one.codec, one.value)
            del state.queues[found.id]
            if state.queue_names.get(found.name) == found.id:
                del state.queue_names[found.name]


def _apply_put(state: State, found: SharedQueue, record: records.QueuePut) -> None:
    partition = found.partitions.get(record.partition)
    if partition is None:
        partition = found.partitions[record.partition] = Partition()
    last = partition.values[-1].number if partition.values else -1
    for one in map(Value, record.numbers, record.values, record.codecs):
        if one.number > last:
            partition.values.append(one)
            _count(state, one, 1)
        found.next = max(found.next, one.number + 1)
    partition.ttl_s, partition.ends_at = record.ttl_s, record.at + record.ttl_s
    state.answers.add(record.token, record.at, MADE)


def _apply_taken(state: State, found: SharedQueue, record: records.QueueTaken) -> None:
    partition = found.partitions.get(record.partition)
    if partition is None:
        return
    taken: deque[tuple[bytes, int]] = deque()
    while partition.values and partition.values[0].number <= record.upto:
        one = partition.values.popleft()
        _count(state, one, -1)
        taken.append((one.value, one.codec))
    if not partition.values:
        del found.partitions[record.partition]
    if taken:
        state.answers.add(record.token, record.at, (_encode(list(taken)), LIST))


def _count(state: State, one: Value, sign: int) -> None:
    size = sign * (ENTRY_BYTES + len(one.value))
    state.dict_bytes += size
    state.live_bytes += size
    state.dict_blob_bytes += sign * blob_bytes(one.value, one.codec)


def records_of(state: State) -> Iterator[records.QueueRecord]:
    """What brings them back as they are. Taken while the service goes on."""
    for found in list(state.queues.values()):
        yield records.QueueMade(found.id, found.name, found.session, found.created)
        for key, partition in list(found.partitions.items()):
            values = list(partition.values)
            at = partition.ends_at - partition.ttl_s
            while values:
                some, size = 0, 0
                while some < len(values) and size < wire.MAX_FRAME_BYTES:
                    size += ENTRY_BYTES + len(values[some].value)
                    some += 1
                part, values = values[:some], values[some:]
                columns = [one.number for one in part], [one.value for one in part], [one.codec for one in part]
                yield records.QueuePut(found.id, key, *columns, partition.ttl_s, at)


def blobs(state: State) -> Iterator[bytes]:
    """References of all values that lie in the blob store."""
    for found in state.queues.values():
        for partition in found.partitions.values():
            yield from (one.value for one in partition.values if one.codec & wire.REF)
