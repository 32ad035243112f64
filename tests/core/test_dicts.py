"""Dicts: what was written is there, over crashes, takeovers and compactions, and what is sent twice happens once."""

from __future__ import annotations

import random

import pytest
from nomadfn_agent import wire
from nomadfn_agent.wire import outcome
from nomadfn_agent.wire.outcome import BlobRef

from nomadfn.core import dicts, effects, records
from nomadfn.core.core import Core
from nomadfn.core.limits import Limits
from nomadfn.core.shared import ANSWERS_MAX, SharedDict
from nomadfn.exception import AlreadyExistsError, InvalidError, NotFoundError, ResourceExhaustedError

ID = "di-" + "1" * 22
DAY = 86_400.0


class Leaders:
    """A Dict over several control services and their journal."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.now = 1_800_000_000.0
        self.limits = limits
        self.journal: list[records.Record] = []
        self.seen: list[effects.Effect] = []
        self.core = Core(limits)
        dicts.make(self.core.state, self.now, ID, "kv")

    @property
    def state(self) -> dicts.State:
        return self.core.state

    @property
    def kv(self) -> SharedDict:
        return dicts.find_named(self.state, "kv")

    def put(self, key: bytes, value: bytes, token: str = "", *, absent: bool = False, codec: int = wire.PICKLE) -> bool:
        return dicts.put(self.state, self.now, self.kv, [key], [value], [codec], token, absent=absent)

    def pop(self, key: bytes, token: str = "") -> bytes | None:
        taken = dicts.remove(self.state, self.now, self.kv, key, token)
        return None if taken is None else taken[0]

    def get(self, key: bytes) -> bytes | None:
        [entry] = dicts.get(self.state, self.now, self.kv, [key])
        return None if entry is None else entry.value

    def all(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        after = None
        while keys := dicts.page(self.kv, after, 3):
            assert all(key not in found for key in keys)
            found |= {key: self.kv.entries[key].value for key in keys}
            after = keys[-1]
        return found

    def write(self) -> None:
        taken, number = self.core.take_records()
        self.journal += taken
        self.core.durable(self.now, number)
        self.seen += self.core.settle(self.now)

    def crash(self) -> None:
        """What was not durable is lost; the next one leads."""
        self.core = Core(self.limits)
        self.core.replay(records.decode_segment(records.encode_segment(self.journal)))
        self.core.end_replay(self.now)

    def compact(self) -> None:
        self.write()
        self.journal = list(self.core.snapshot())

    def dropped_blobs(self) -> list[str]:
        return [outcome.decode_ref(one.reference).name for one in self.seen if isinstance(one, effects.DropBlob)]


def ref(name: str, size: int = 1000) -> bytes:
    return outcome.encode(BlobRef(name, "", size))


def test_a_dict_is_made_once_and_found_by_its_name() -> None:
    leaders = Leaders()
    assert dicts.make(leaders.state, leaders.now, "di-" + "2" * 22, "kv").id == ID
    with pytest.raises(AlreadyExistsError, match=r"there is a Dict 'kv' already; Dict.from_name\('kv'\) is it"):
        dicts.make(leaders.state, leaders.now, "di-" + "2" * 22, "kv", allow_existing=False)
    with pytest.raises(NotFoundError, match="create_if_missing=True"):
        dicts.find_named(leaders.state, "other")
    dicts.drop(leaders.state, leaders.kv)
    leaders.write()
    leaders.crash()
    with pytest.raises(NotFoundError):
        dicts.find(leaders.state, ID)
    assert (leaders.state.dict_bytes, leaders.state.live_bytes) == (0, 0)


def test_a_put_that_is_sent_again_to_the_next_leader_has_taken_the_lock_once() -> None:
    leaders = Leaders()
    assert leaders.put(b"lock", b"mine", "token-1", absent=True)
    leaders.write()
    for passes in (leaders.crash, leaders.compact, leaders.crash):
        passes()
        assert leaders.put(b"lock", b"mine", "token-1", absent=True), "the answer of that time"
        assert not leaders.put(b"lock", b"theirs", "token-2", absent=True)
        assert leaders.get(b"lock") == b"mine"


def test_a_pop_that_is_sent_again_to_the_next_leader_gives_what_it_took() -> None:
    leaders = Leaders()
    leaders.put(b"job", b"first")
    assert leaders.pop(b"job", "token-1") == b"first"
    leaders.put(b"job", b"second")
    leaders.write()
    for passes in (leaders.crash, leaders.compact, leaders.crash):
        passes()
        assert leaders.pop(b"job", "token-1") == b"first"
        assert leaders.get(b"job") == b"second"


def test_a_put_that_comes_again_late_does_not_undo_what_came_after_it() -> None:
    leaders = Leaders()
    leaders.put(b"k", b"1", "token-1")
    leaders.put(b"k", b"2", "token-2")
    leaders.write()
    leaders.crash()
    leaders.put(b"k", b"1", "token-1")
    assert leaders.get(b"k") == b"2"


def test_answers_are_kept_in_a_bounded_number() -> None:
    leaders = Leaders()
    for n in range(ANSWERS_MAX + 10):
        leaders.put(b"k", b"%d" % n, f"token-{n}")
    assert len(leaders.state.answers.kept) == ANSWERS_MAX
    leaders.now += 1000
    leaders.put(b"k", b"", "late")
    assert list(leaders.state.answers.kept) == ["late"]


def test_several_entries_are_written_all_or_none() -> None:
    leaders = Leaders(Limits(dict_bytes=1000))
    kv, now = leaders.kv, leaders.now
    dicts.put(leaders.state, now, kv, [b"a", b"b"], [b"1", b"2"], [0, 0])
    with pytest.raises(ResourceExhaustedError, match=r"Queues together hold 260 bytes .* limits.dict_bytes"):
        dicts.put(leaders.state, now, kv, [b"c", b"d"], [b"3", bytes(1000)], [0, 0])
    with pytest.raises(InvalidError, match="as many keys as values"):
        dicts.put(leaders.state, now, kv, [b"c", b"d"], [b"3"], [0])
    with pytest.raises(InvalidError, match="a key of Dict 'kv' has more than 16,384 bytes"):
        dicts.put(leaders.state, now, kv, [bytes(20_000)], [b"3"], [0])
    assert leaders.all() == {b"a": b"1", b"b": b"2"}


def test_what_makes_room_is_taken_over_the_limit_too() -> None:
    leaders = Leaders(Limits(dict_bytes=1000))
    leaders.put(b"a", bytes(800))
    leaders.put(b"a", bytes(100))
    leaders.put(b"b", bytes(500))
    assert leaders.state.dict_bytes == leaders.state.live_bytes == 100 + 500 + 2 * 129


def test_large_values_have_a_limit_of_their_own() -> None:
    leaders = Leaders(Limits(dict_blob_bytes=2500))
    for name in ("one", "two"):
        leaders.put(name.encode(), ref(name), codec=wire.REF)
    with pytest.raises(ResourceExhaustedError, match=r"2,000 bytes of large values, .* limits.dict_blob_bytes"):
        leaders.put(b"three", ref("three"), codec=wire.REF)
    leaders.put(b"two", ref("three"), codec=wire.REF)
    with pytest.raises(InvalidError, match="does not say where"):
        leaders.put(b"x", b"no reference", codec=wire.REF)


def test_dicts_and_spawns_share_a_journal_that_is_bounded() -> None:
    leaders = Leaders(Limits(spawn_bytes=4000))
    leaders.state.live_bytes += 1500  # what is kept of spawns
    leaders.put(b"a", bytes(300))
    with pytest.raises(ResourceExhaustedError):
        leaders.put(b"b", bytes(300))


def test_a_blob_goes_once_the_journal_says_that_it_is_needed_no_more() -> None:
    leaders = Leaders()
    leaders.put(b"a", ref("one"), codec=wire.REF)
    leaders.put(b"b", ref("two"), codec=wire.REF)
    leaders.put(b"c", ref("three"), codec=wire.REF)
    leaders.write()
    leaders.put(b"a", ref("four"), codec=wire.REF)
    leaders.core.settle(leaders.now)
    assert leaders.dropped_blobs() == []
    leaders.write()
    assert leaders.dropped_blobs() == ["one"]
    assert leaders.core.live_blobs() >= {"two", "three", "four"}
    assert leaders.pop(b"b") == ref("two")
    leaders.write()
    assert leaders.dropped_blobs() == ["one"], "who took it reads it first"
    dicts.drop(leaders.state, leaders.kv)
    leaders.write()
    assert sorted(leaders.dropped_blobs()) == ["four", "one", "three"]


def test_an_entry_that_nobody_uses_goes_after_a_week_and_one_that_is_read_stays() -> None:
    leaders = Leaders()
    leaders.put(b"idle", b"1")
    leaders.put(b"read", b"2")
    for _ in range(20):
        leaders.now += DAY / 2
        leaders.get(b"read")
        leaders.core.tick(leaders.now)
        leaders.write()
        leaders.crash()
        if leaders.now < 1_800_000_000.0 + 7 * DAY:
            assert b"idle" in leaders.kv.entries
    assert leaders.all() == {b"read": b"2"}
    touched = [one for one in leaders.journal if isinstance(one, records.DictTouched)]
    assert 4 <= len(touched) <= 10, "reads are noted once a day, not each time"


def test_one_without_a_name_ends_with_its_session_also_under_the_next_leader() -> None:
    leaders = Leaders()
    leaders.core.open_session("se-1")
    other = "di-" + "2" * 22
    dicts.make(leaders.state, leaders.now, other, "", "se-1")
    leaders.write()
    leaders.crash()
    assert dicts.find(leaders.state, other).session == "se-1"
    leaders.core.tick(leaders.now + 10)
    assert other in leaders.state.dicts, "its client may come back"
    leaders.core.tick(leaders.now + 40)
    assert list(leaders.state.dicts) == [ID]


@pytest.mark.parametrize("seed", range(60))
def test_it_is_what_a_plain_dict_would_be_over_crashes_and_compactions(seed: int) -> None:
    rng = random.Random(seed)
    leaders = Leaders()
    leaders.write()
    durable: dict[bytes, bytes] = {}
    model: dict[bytes, bytes] = {}
    for step in range(300):
        key, token = b"k%d" % rng.randrange(8), f"token-{seed}-{step}"
        leaders.now += rng.random()
        match rng.randrange(8):
            case 0 | 1:
                leaders.put(key, value := b"v%d" % step, token)
                model[key] = value
            case 2:
                written = leaders.put(key, b"w%d" % step, token, absent=True)
                assert written == (key not in model)
                model.setdefault(key, b"w%d" % step)
            case 3:
                assert leaders.pop(key, token) == model.pop(key, None)
            case 4:
                assert leaders.get(key) == model.get(key)
            case 5 if rng.random() < 0.1:
                dicts.clear(leaders.state, leaders.now, leaders.kv)
                model.clear()
            case 6:
                leaders.write()
                durable = dict(model)
                if rng.random() < 0.3:
                    leaders.compact()
            case 7 if rng.random() < 0.5:
                leaders.crash()
                model = dict(durable)
        assert leaders.all() == model
        assert len(leaders.kv.entries) == len(model)
    held = sum(dicts.ENTRY_BYTES + len(key) + len(value) for key, value in model.items())
    assert leaders.state.dict_bytes == leaders.state.live_bytes == held


@pytest.mark.parametrize("seed", range(20))
def test_a_snapshot_that_is_taken_while_the_service_goes_on_loses_nothing(seed: int) -> None:
    rng = random.Random(seed)
    leaders = Leaders()
    for n in range(40):
        leaders.put(b"k%d" % n, b"v" * rng.randrange(20_000))
    leaders.write()
    leaders.journal = []
    snapshot: list[records.Record] = []
    popped: dict[str, bytes | None] = {}
    for n, record in enumerate(leaders.core.snapshot()):
        snapshot.append(record)
        leaders.put(b"k%d" % rng.randrange(50), b"new%d" % n)
        popped[f"token-{n}"] = leaders.pop(b"k%d" % rng.randrange(50), f"token-{n}")
        leaders.write()
    expected = leaders.all()
    leaders.journal = [*snapshot, *leaders.journal]
    leaders.crash()
    assert leaders.all() == expected
    for token, value in popped.items():
        if value is not None:
            assert leaders.pop(b"any", token) == value
