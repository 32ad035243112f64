"""Queues: each value goes out once and in its turn, over crashes, compactions and what is sent twice."""

from __future__ import annotations

import random
from collections import deque

import pytest
from nomadfn_agent import wire
from nomadfn_agent.wire import outcome
from nomadfn_agent.wire.outcome import BlobRef

from nomadfn.core import effects, records
from nomadfn.core import shared_queues as queues
from nomadfn.core.core import Core
from nomadfn.core.limits import Limits
from nomadfn.core.shared import SharedQueue
from nomadfn.exception import AlreadyExistsError, InvalidError, NotFoundError, ResourceExhaustedError

ID = "qu-" + "1" * 22


class Leaders:
    """A Queue over several control services and their journal."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.now = 1_800_000_000.0
        self.limits = limits
        self.journal: list[records.Record] = []
        self.seen: list[effects.Effect] = []
        self.core = Core(limits)
        queues.make(self.core.state, self.now, ID, "line")

    @property
    def line(self) -> SharedQueue:
        return queues.find_named(self.core.state, "line")

    def put(self, *values: bytes, key: bytes = b"", token: str = "", ttl_s: float = 3600, codec: int = 0) -> None:
        queues.put(self.core.state, self.now, self.line, key, values, [codec] * len(values), ttl_s, token)

    def take(self, count: int = 1, key: bytes = b"", token: str = "") -> list[bytes]:
        return [value for value, _ in queues.take(self.core.state, self.now, self.line, key, count, token)]

    def all(self, key: bytes = b"") -> list[bytes]:
        partition = queues.live(self.core.state, self.now, self.line, key)
        return [] if partition is None else [one.value for one in partition.values]

    def write(self) -> None:
        taken, number = self.core.take_records()
        self.journal += taken
        self.core.durable(self.now, number)
        self.seen += self.core.settle(self.now)

    def crash(self) -> None:
        self.core = Core(self.limits)
        self.core.replay(records.decode_segment(records.encode_segment(self.journal)))
        self.core.end_replay(self.now)

    def compact(self) -> None:
        self.write()
        self.journal = list(self.core.snapshot())


def test_values_come_out_in_their_order_and_partitions_are_apart() -> None:
    leaders = Leaders()
    leaders.put(b"1", b"2", b"3")
    leaders.put(b"other", key=b"p")
    assert (leaders.take(2), leaders.take(5), leaders.take()) == ([b"1", b"2"], [b"3"], [])
    assert leaders.take(key=b"p") == [b"other"]
    assert leaders.line.partitions == {}


def test_a_queue_is_found_by_its_name_and_gone_once_it_is_dropped() -> None:
    leaders = Leaders()
    state = leaders.core.state
    assert queues.make(state, leaders.now, "qu-2", "line").id == ID
    with pytest.raises(AlreadyExistsError):
        queues.make(state, leaders.now, "qu-2", "line", allow_existing=False)
    leaders.put(b"1")
    queues.drop(state, leaders.line)
    with pytest.raises(NotFoundError, match="create_if_missing=True"):
        queues.find_named(state, "line")
    assert (state.dict_bytes, state.live_bytes) == (0, 0)


def test_what_is_taken_and_asked_for_again_at_the_next_leader_is_the_same() -> None:
    leaders = Leaders()
    leaders.put(b"1", b"2", b"3", token="put")
    assert leaders.take(2, token="take") == [b"1", b"2"]
    leaders.write()
    for passes in (leaders.crash, leaders.compact, leaders.crash):
        passes()
        leaders.put(b"1", b"2", b"3", token="put")
        assert leaders.take(2, token="take") == [b"1", b"2"]
        assert leaders.all() == [b"3"]


def test_a_partition_that_is_full_takes_nothing_of_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "ITEMS_MAX", 3)
    leaders = Leaders()
    leaders.put(b"1", b"2")
    with pytest.raises(ResourceExhaustedError, match="a partition of Queue 'line' has 2 values and may have 3"):
        leaders.put(b"3", b"4")
    assert leaders.all() == [b"1", b"2"]
    for wrong in ({"key": bytes(65)}, {"ttl_s": 0.5}, {"ttl_s": 90_000}):
        with pytest.raises(InvalidError):
            leaders.put(b"3", **wrong)  # type: ignore[arg-type]
    small = Leaders(Limits(dict_bytes=500))
    with pytest.raises(ResourceExhaustedError, match=r"limits.dict_bytes"):
        small.put(bytes(600))


def test_a_partition_ends_its_time_after_the_last_value_came() -> None:
    leaders = Leaders()
    leaders.put(b"1", ttl_s=10)
    leaders.now += 9
    leaders.put(b"2", ttl_s=10)
    leaders.now += 9
    leaders.write()
    leaders.compact()
    leaders.crash()
    assert leaders.all() == [b"1", b"2"]
    leaders.now += 2
    assert leaders.take() == []
    leaders.put(b"3", ttl_s=10)
    leaders.now += 3600
    leaders.core.tick(leaders.now)
    assert leaders.line.partitions == {}
    assert leaders.core.state.dict_bytes == 0


def test_large_values_lie_in_blobs_until_their_reader_has_them() -> None:
    leaders = Leaders()
    refs = [outcome.encode(BlobRef(name, "", 1000)) for name in ("one", "two", "three")]
    leaders.put(*refs, codec=wire.REF)
    assert leaders.take() == refs[:1]
    assert leaders.core.live_blobs() >= {"two", "three"}
    queues.clear(leaders.core.state, leaders.line, None)
    assert not [one for one in leaders.core.settle(leaders.now) if isinstance(one, effects.DropBlob)]
    leaders.write()
    dropped = [outcome.decode_ref(one.reference).name for one in leaders.seen if isinstance(one, effects.DropBlob)]
    assert dropped == ["two", "three"]


def test_one_without_a_name_ends_with_its_session() -> None:
    leaders = Leaders()
    leaders.core.open_session("se-1")
    queues.make(leaders.core.state, leaders.now, "qu-2", "", "se-1")
    leaders.write()
    leaders.crash()
    assert "qu-2" in leaders.core.state.queues
    leaders.core.tick(leaders.now + 40)
    assert list(leaders.core.state.queues) == [ID]


@pytest.mark.parametrize("seed", range(60))
def test_it_is_what_plain_queues_would_be_over_crashes_and_compactions(seed: int) -> None:
    rng = random.Random(seed)
    leaders = Leaders()
    leaders.write()
    model: dict[bytes, deque[bytes]] = {b"": deque(), b"p": deque()}
    durable: dict[bytes, deque[bytes]] = {b"": deque(), b"p": deque()}
    for step in range(300):
        key, token = rng.choice((b"", b"p")), f"token-{seed}-{step}"
        match rng.randrange(7):
            case 0 | 1:
                values = [b"%d-%d" % (step, n) for n in range(rng.randint(1, 3))]
                leaders.put(*values, key=key, token=token)
                model[key].extend(values)
            case 2 | 3:
                count = rng.randint(1, 4)
                expected = [model[key].popleft() for _ in range(min(count, len(model[key])))]
                assert leaders.take(count, key, token) == expected
                if expected:
                    assert leaders.take(count, key, token) == expected, "asked for again"
            case 4 if rng.random() < 0.1:
                queues.clear(leaders.core.state, leaders.line, key)
                model[key].clear()
            case 5:
                leaders.write()
                durable = {one: deque(values) for one, values in model.items()}
                if rng.random() < 0.3:
                    leaders.compact()
            case 6 if rng.random() < 0.5:
                leaders.crash()
                model = {one: deque(values) for one, values in durable.items()}
        assert {one: leaders.all(one) for one in model} == {one: list(values) for one, values in model.items()}
    assert leaders.core.state.dict_bytes == sum(128 + len(one) for values in model.values() for one in values)


@pytest.mark.parametrize("seed", range(20))
def test_a_snapshot_that_is_taken_while_the_service_goes_on_loses_and_doubles_nothing(seed: int) -> None:
    rng = random.Random(seed)
    leaders = Leaders()
    keys = [b"p%d" % n for n in range(6)]
    for key in keys:
        leaders.put(*(b"v" * rng.randrange(60_000) for _ in range(rng.randint(1, 10))), key=key)
    leaders.write()
    leaders.journal = []
    snapshot: list[records.Record] = []
    for n, record in enumerate(leaders.core.snapshot()):
        snapshot.append(record)
        for _ in range(3):
            leaders.take(rng.randint(1, 12), rng.choice(keys))
            leaders.put(b"new%d" % n, key=rng.choice(keys))
        leaders.write()
    expected = {key: leaders.all(key) for key in keys}
    leaders.journal = [*snapshot, *leaders.journal]
    leaders.crash()
    assert {key: leaders.all(key) for key in keys} == expected
