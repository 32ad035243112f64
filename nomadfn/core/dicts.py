"""`Dict`: values by key that programs and containers share. Keys and values are bytes that nobody looks into here.

Every change is a record, so a Dict is as durable as a spawn, and whoever leads next has it. A change carries a token
that its client has made: what is sent again after a takeover has happened once, and gets the answer of that time.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

import msgspec
from nomadfn_agent import wire
from nomadfn_agent.wire import outcome

from ..exception import AlreadyExistsError, InvalidError, NotFoundError, ResourceExhaustedError
from . import records
from .shared import ENTRY_BYTES, MADE, TAKEN, WROTE, Entry, SharedDict
from .state import State, withhold_drop

EXPIRE_S = 8 * 86_400.0
"""An entry that was not read or written for 7 days is dropped; reads are noted once in `TOUCH_S`."""
TOUCH_S = 86_400.0
SWEEP_S = 3600.0
KEY_BYTES = 16 * 1024
PAGE_BYTES = wire.MAX_FRAME_BYTES * 3 // 4


# Which there are.


def find(state: State, id: str) -> SharedDict:
    found = state.dicts.get(id)
    if found is None:
        raise NotFoundError(f"there is no Dict {id} any more, or never was; its with block may be over")
    return found


def find_named(state: State, name: str) -> SharedDict:
    id = state.dict_names.get(name)
    if id is None:
        raise NotFoundError(f"there is no Dict {name!r}; Dict.from_name({name!r}, create_if_missing=True) makes it")
    return state.dicts[id]


def make(
    state: State, now: float, id: str, name: str = "", session: str = "", *, allow_existing: bool = True
) -> SharedDict:
    """A new one; the one of that name where it is there already. Raises AlreadyExistsError."""
    if name and name in state.dict_names:
        there = state.dicts[state.dict_names[name]]
        if there.id != id and not allow_existing:
            raise AlreadyExistsError(f"there is a Dict {name!r} already; Dict.from_name({name!r}) is it")
        return there
    if id not in state.dicts:
        state.record(made := records.DictMade(id, name, session, now))
        apply_made(state, made)
        state.dicts[id].number = state.record_number
    return state.dicts[id]


def drop(state: State, found: SharedDict) -> None:
    state.record(dropped := records.DictDropped(found.id))
    apply_dropped(state, dropped)


def drop_session(state: State, session: str) -> None:
    """The client of these is gone."""
    for found in [one for one in state.dicts.values() if one.session == session]:
        drop(state, found)


# What is in one.


def put(
    state: State,
    now: float,
    found: SharedDict,
    keys: Sequence[bytes],
    values: Sequence[bytes],
    codecs: Sequence[int],
    token: str = "",
    *,
    absent: bool = False,
) -> bool:
    """Write entries, all or none; with `absent` only if the (one) key is not there. Says whether that was done."""
    if (known := state.answers.get(token)) is not None:
        return known is MADE
    if not len(keys) == len(values) == len(codecs) or (absent and len(keys) != 1):
        raise InvalidError("as many keys as values, and one of each with skip_if_exists")
    if any(len(key) > KEY_BYTES for key in keys):
        raise InvalidError(f"a key of {found} has more than {KEY_BYTES:,} bytes; put what is large into the value")
    if absent and keys[0] in found.entries:
        return TAKEN
    _admit(state, found, dict(zip(keys, zip(values, codecs, strict=True), strict=True)))
    change = records.DictPut(found.id, list(keys), list(values), list(codecs), now, token)
    found.number = state.record(change)
    apply_put(state, change)
    return MADE


def get(state: State, now: float, found: SharedDict, keys: Sequence[bytes]) -> list[Entry | None]:
    """The entries of these keys, None for one that is not there. They count as used now."""
    entries = [found.entries.get(key) for key in keys]
    used = [key for key, one in zip(keys, entries, strict=True) if one is not None and now - one.at > TOUCH_S]
    if used:
        state.record(touched := records.DictTouched(found.id, used, now))
        apply_touched(state, touched)
    return entries


def remove(state: State, now: float, found: SharedDict, key: bytes, token: str = "") -> tuple[bytes, int] | None:
    """Take an entry out: its value and codec. Where it lies in a blob, that is its reader's now."""
    known = state.answers.get(token)
    if isinstance(known, tuple):
        return known
    entry = found.entries.get(key)
    if entry is None:
        return None
    change = records.DictRemoved(found.id, [key], now, token)
    found.number = state.record(change)
    apply_removed(state, change)
    return entry.value, entry.codec


def clear(state: State, now: float, found: SharedDict) -> None:
    if found.entries:
        _drop_entries(state, now, found, list(found.entries))


def _drop_entries(state: State, now: float, found: SharedDict, keys: list[bytes]) -> None:
    gone = [found.entries[key] for key in keys]
    change = records.DictRemoved(found.id, keys, now)
    found.number = state.record(change)
    apply_removed(state, change)
    for entry in gone:
        withhold_drop(state, entry.codec, entry.value)


def page(found: SharedDict, after: bytes | None, count: int) -> list[bytes]:
    """The next keys in their order, at most `count` of them and about `PAGE_BYTES` with their values."""
    if found.in_order is None:
        found.in_order = sorted(found.entries)
    first = 0 if after is None else bisect.bisect_right(found.in_order, after)
    keys: list[bytes] = []
    size = 0
    for key in found.in_order[first : first + count]:
        size += len(key) + len(found.entries[key].value)
        if keys and size > PAGE_BYTES:
            break
        keys.append(key)
    return keys


def expire(state: State, now: float) -> None:
    """Drop what nobody has used for its time; looked for every now and then."""
    if now < state.dicts_expire_at:
        return
    state.dicts_expire_at = now + SWEEP_S
    for found in list(state.dicts.values()):
        old = [key for key, entry in found.entries.items() if entry.at + EXPIRE_S <= now]
        if old:
            _drop_entries(state, now, found, old)


def _admit(state: State, found: SharedDict, new: dict[bytes, tuple[bytes, int]]) -> None:
    """Raises ResourceExhaustedError where there is no room for these entries."""
    old = [found.entries[key] for key in new if key in found.entries]
    grown = sum(ENTRY_BYTES + len(key) + len(value) for key, (value, _) in new.items())
    grown -= sum(ENTRY_BYTES + len(key) + len(found.entries[key].value) for key in new if key in found.entries)
    blobs = sum(blob_bytes(value, codec) for value, codec in new.values())
    admit_bytes(state, grown, blobs - sum(blob_bytes(one.value, one.codec) for one in old))


def admit_bytes(state: State, grown: int, blobs: int) -> None:
    """Raises ResourceExhaustedError where so many bytes more, and so many in the blob store, are too many."""
    limits = state.limits
    room = limits.dict_bytes
    if limits.spawn_bytes is not None:
        room = min(room, state.dict_bytes + limits.spawn_bytes // 2 - state.live_bytes)
    if grown > 0 and state.dict_bytes + grown > room:
        raise _full("dict_bytes", state.dict_bytes, limits.dict_bytes, "keys, small values and what each entry takes")
    if blobs > 0 and state.dict_blob_bytes + blobs > limits.dict_blob_bytes:
        raise _full("dict_blob_bytes", state.dict_blob_bytes, limits.dict_blob_bytes, "large values")


def _full(limit: str, value: int, maximum: int, what: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"all Dicts and Queues together hold {value:,} bytes of {what}, and the limit is {maximum:,}; remove entries, "
        f"keep large things in files, or raise the setting limits.{limit}",
        limit=limit,
        value=value,
        maximum=maximum,
        retry_after_s=10.0,
    )


def blob_bytes(value: bytes, codec: int) -> int:
    if not codec & wire.REF:
        return 0
    try:
        return outcome.decode_ref(value).size
    except msgspec.DecodeError:
        raise InvalidError("a value that is said to lie in the blob store does not say where") from None


# What the records do: at once when they are made, and again at replay.


def apply(state: State, record: records.DictRecord) -> None:
    """At replay. What a snapshot has brought already is passed over."""
    match record:
        case records.DictMade():
            apply_made(state, record)
        case records.DictPut():
            apply_put(state, record)
        case records.DictTouched():
            apply_touched(state, record)
        case records.DictRemoved():
            apply_removed(state, record)
        case records.DictDropped():
            apply_dropped(state, record)
        case records.DictAnswered():
            answer = MADE if record.codec == WROTE else (record.value, record.codec)
            state.answers.add(record.token, record.at, answer)


def apply_made(state: State, record: records.DictMade) -> None:
    if record.dict not in state.dicts:
        state.dicts[record.dict] = SharedDict(record.dict, record.name, record.session, record.at)
        if record.name:
            state.dict_names[record.name] = record.dict


def apply_put(state: State, record: records.DictPut) -> None:
    found = state.dicts.get(record.dict)
    if found is None:
        return
    times = record.ats or [record.at] * len(record.keys)
    for key, value, codec, at in zip(record.keys, record.values, record.codecs, times, strict=True):
        former = found.entries.get(key)
        if former is not None:
            _count(state, key, former, -1)
            if former.value != value:
                withhold_drop(state, former.codec, former.value)
        else:
            found.in_order = None
        entry = found.entries[key] = Entry(value, codec, at)
        _count(state, key, entry, 1)
    state.answers.add(record.token, record.at, MADE)


def apply_touched(state: State, record: records.DictTouched) -> None:
    found = state.dicts.get(record.dict)
    for key in record.keys:
        if found is not None and (entry := found.entries.get(key)) is not None:
            entry.at = max(entry.at, record.at)


def apply_removed(state: State, record: records.DictRemoved) -> None:
    found = state.dicts.get(record.dict)
    for key in record.keys:
        entry = found.entries.pop(key, None) if found is not None else None
        if found is not None and entry is not None:
            found.in_order = None
            _count(state, key, entry, -1)
            state.answers.add(record.token, record.at, (entry.value, entry.codec))


def apply_dropped(state: State, record: records.DictDropped) -> None:
    found = state.dicts.pop(record.dict, None)
    if found is None:
        return
    if state.dict_names.get(found.name) == found.id:
        del state.dict_names[found.name]
    for key, entry in found.entries.items():
        _count(state, key, entry, -1)
        withhold_drop(state, entry.codec, entry.value)


def _count(state: State, key: bytes, entry: Entry, sign: int) -> None:
    size = sign * (ENTRY_BYTES + len(key) + len(entry.value))
    state.dict_bytes += size
    state.live_bytes += size
    state.dict_blob_bytes += sign * blob_bytes(entry.value, entry.codec)


def records_of(state: State) -> Iterator[records.DictRecord]:
    """What brings them back as they are. Taken while the service goes on: answers come last, see `apply_removed`."""
    for found in list(state.dicts.values()):
        yield records.DictMade(found.id, found.name, found.session, found.created)
        after: bytes | None = None
        while keys := page(found, after, wire.MAX_INPUTS_PER_FRAME):
            entries = [found.entries[key] for key in keys]
            values, codecs = [one.value for one in entries], [one.codec for one in entries]
            yield records.DictPut(found.id, keys, values, codecs, 0.0, ats=[one.at for one in entries])
            after = keys[-1]
    for token, (at, answer) in list(state.answers.kept.items()):
        value, codec = answer if isinstance(answer, tuple) else (b"", WROTE)
        yield records.DictAnswered(token, at, value, codec)


def blobs(state: State) -> Iterator[bytes]:
    """References of all values that lie in the blob store."""
    for found in state.dicts.values():
        yield from (one.value for one in found.entries.values() if one.codec & wire.REF)
