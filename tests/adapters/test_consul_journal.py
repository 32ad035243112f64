"""The journal in a real Consul: what is acknowledged is there, once, whatever becomes of answers, leaders and keys."""

from __future__ import annotations

import itertools
import random
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from consul_server import ConsulServer, running_consul
from contract_journal import JournalContract
from lossy_proxy import Fate, LossyProxy, lossy_proxy

from nomadfn.adapters import consul_journal, consul_journal_reader
from nomadfn.adapters.consul_journal import INLINE_BYTES, ConsulJournal
from nomadfn.adapters.consul_lease import ConsulLease
from nomadfn.adapters.consul_store import POLICY, VALUE_BYTES, ConsulStore, Refusal, Shard, delete
from nomadfn.adapters.fsspec_blobs import FsspecBlobs
from nomadfn.adapters.memory import MemoryBlobs
from nomadfn.exception import ServiceError
from nomadfn.ports import Blobs, FencedError, Journal, JournalError, JournalFullError

pytestmark = pytest.mark.consul
LeaseOf = Callable[..., ConsulLease]


@dataclass
class ConsulWorld:
    """Each journal has a shard and a lease of its own; a crash is a takeover by another control service."""

    store: ConsulStore
    lease_of: LeaseOf
    blobs: Blobs | None = None
    leases: dict[int, ConsulLease] = field(default_factory=dict)

    def open(self, max_bytes: int | None = None) -> Journal:
        lease = self.lease_of(Shard(f"test-{uuid.uuid4()}"))
        lease.acquire()
        return self._open(lease, max_bytes)

    def reopen(self, journal: Journal) -> Journal:
        journal.close()
        lease = self.leases.pop(id(journal))
        lease.release()
        lease.acquire()
        return self._open(lease)

    def crash(self, journal: Journal) -> Journal:
        dead = self.leases.pop(id(journal))
        leader = dead.leader()
        assert leader is not None
        lease = self.lease_of(dead.shard)
        lease.take_over(leader)
        with pytest.raises(FencedError):
            journal.append(b"too late")
        return self._open(lease)

    def _open(self, lease: ConsulLease, max_bytes: int | None = None) -> Journal:
        journal = ConsulJournal(self.store, lease.hold, blobs=self.blobs, max_bytes=max_bytes)
        self.leases[id(journal)] = lease
        return journal


class TestConsulJournal(JournalContract):
    histories = 12

    @pytest.fixture
    def world(self, store: ConsulStore, lease_of: LeaseOf) -> ConsulWorld:
        return ConsulWorld(store, lease_of)


class TestConsulJournalInPieces(JournalContract):
    """Every body over 2 KiB is large."""

    histories = 12

    @pytest.fixture
    def world(self, store: ConsulStore, lease_of: LeaseOf, monkeypatch: pytest.MonkeyPatch) -> ConsulWorld:
        monkeypatch.setattr(consul_journal, "VALUE_BYTES", 20 * 1024)
        monkeypatch.setattr(consul_journal, "INLINE_BYTES", 2 * 1024)
        monkeypatch.setattr(consul_journal_reader, "REPLAY_KEYS", 10)
        return ConsulWorld(store, lease_of)


class TestConsulJournalWithBlobs(JournalContract):
    histories = 12

    @pytest.fixture
    def world(self, store: ConsulStore, lease_of: LeaseOf, tmp_path: Path) -> ConsulWorld:
        return ConsulWorld(store, lease_of, FsspecBlobs(f"memory:/{tmp_path}"))


@pytest.fixture
def lease(lease_of: LeaseOf, shard: Shard) -> ConsulLease:
    lease = lease_of(shard)
    lease.acquire()
    return lease


@pytest.fixture
def journal(store: ConsulStore, lease: ConsulLease) -> ConsulJournal:
    return ConsulJournal(store, lease.hold)


@pytest.fixture
def proxy(consul: ConsulServer) -> Iterator[LossyProxy]:
    with lossy_proxy(consul.http_port) as proxy:
        yield proxy


@pytest.fixture
def lossy_store(consul: ConsulServer, proxy: LossyProxy) -> Iterator[ConsulStore]:
    """Consul as it is seen through the proxy."""
    store = consul.store(address=proxy.address)
    yield store
    store.close()


def next_leader(lease: ConsulLease, lease_of: LeaseOf, store: ConsulStore, **options: Any) -> ConsulJournal:
    """The journal as it is opened by another control service that takes the lease."""
    leader = lease.leader()
    assert leader is not None
    successor = lease_of(lease.shard)
    successor.take_over(leader)
    return ConsulJournal(store, successor.hold, **options)


def keys_of(store: ConsulStore, shard: Shard) -> list[str]:
    return [key.removeprefix(f"{shard.prefix}journal/") for key in store.keys(f"{shard.prefix}journal/")]


# Answers that are lost, and requests that come twice


@pytest.mark.parametrize("fate", ["lose the answer", "lose the request"])
def test_an_append_whose_answer_is_lost_is_settled_and_made_once(
    lease: ConsulLease, store: ConsulStore, proxy: LossyProxy, lossy_store: ConsulStore, fate: Fate
) -> None:
    journal = ConsulJournal(lossy_store, lease.hold)
    fates = itertools.chain([fate] * 3, itertools.repeat("pass"))
    proxy.fate = lambda request: next(fates) if request.startswith(b"PUT /v1/txn") else "pass"  # type: ignore[return-value]
    assert [journal.append(body) for body in (b"one", b"two")] == [1, 2]
    assert list(ConsulJournal(store, lease.hold).replay()) == [(1, b"one"), (2, b"two")]


def test_however_often_the_network_fails_each_body_is_there_once_in_order(
    lease: ConsulLease, store: ConsulStore, proxy: LossyProxy, lossy_store: ConsulStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_journal, "INLINE_BYTES", 2 * 1024)
    chance = random.Random(11)
    journal = ConsulJournal(lossy_store, lease.hold)
    proxy.fate = lambda request: chance.choice([*["pass"] * 4, "lose the answer", "lose the request"])  # type: ignore[return-value]
    bodies = [f"{number} ".encode() * chance.choice([1, 100, 1000]) for number in range(60)]
    for number, body in enumerate(bodies, 1):
        assert journal.append(body) == number
        if number == 30:
            journal.compact(bodies[:number], number)
    found = [body for _, body in ConsulJournal(store, lease.hold).replay()]
    assert found == bodies


def test_a_duplicate_that_comes_after_its_segment_was_compacted_away_does_not_bring_it_back(
    lease: ConsulLease, store: ConsulStore, proxy: LossyProxy, lossy_store: ConsulStore, shard: Shard
) -> None:
    journal = ConsulJournal(lossy_store, lease.hold)
    journal.append(b"one")
    duplicate = proxy.requests[-1]
    assert b"segments/000000000001" in duplicate
    assert b" 409 " in proxy.repeat(duplicate).splitlines()[0]
    journal.compact([], 1)
    assert not any(key.startswith("segments/") for key in keys_of(store, shard))
    assert b" 409 " in proxy.repeat(duplicate).splitlines()[0]
    assert not any(key.startswith("segments/") for key in keys_of(store, shard))
    assert journal.append(b"two") == 2


def test_a_duplicate_of_a_compaction_or_of_its_deletions_changes_nothing(
    lease: ConsulLease, proxy: LossyProxy, lossy_store: ConsulStore
) -> None:
    journal = ConsulJournal(lossy_store, lease.hold)
    for body in (b"one", b"two"):
        journal.append(body)
    before = len(proxy.requests)
    journal.compact([b"snapshot"], 1)
    duplicates = proxy.requests[before:]
    journal.append(b"three")
    journal.compact([b"later snapshot"], 2)
    for duplicate in duplicates:
        proxy.repeat(duplicate)
    assert list(ConsulJournal(lossy_store, lease.hold).replay()) == [(2, b"later snapshot"), (3, b"three")]


# Leaders of old


def test_a_leader_of_old_can_write_nothing(
    lease: ConsulLease, journal: ConsulJournal, lease_of: LeaseOf, store: ConsulStore
) -> None:
    journal.append(b"one")
    successor = next_leader(lease, lease_of, store)
    successor.append(b"two")
    for write in (lambda: journal.append(b"lost"), lambda: journal.compact([], 1)):
        with pytest.raises(FencedError, match="is not led from here any more; epoch 1 is over"):
            write()
    assert list(successor.replay()) == [(1, b"one"), (2, b"two")]


class Interrupted(ConsulStore):
    """Lets something happen right before the first transaction that deletes."""

    happens: Callable[[], None] | None = None

    def transact(self, operations: Any) -> list[Refusal]:
        if self.happens is not None and operations[-1]["KV"]["Verb"].startswith("delete"):
            happens, self.happens = self.happens, None
            happens()
        return super().transact(operations)


@pytest.mark.parametrize("blobs", [None, MemoryBlobs()])
def test_a_leader_that_slept_in_the_middle_of_a_compaction_deletes_nothing_of_the_next_one(
    consul: ConsulServer, lease: ConsulLease, lease_of: LeaseOf, store: ConsulStore, blobs: Blobs | None
) -> None:
    large = bytes(3000)
    sleepy = Interrupted(consul.settings)
    journal = ConsulJournal(sleepy, lease.hold, blobs=blobs)
    for _ in range(3):
        journal.append(large)
    successors: list[ConsulJournal] = []

    def meanwhile() -> None:
        successor = next_leader(lease, lease_of, store, blobs=blobs)
        successor.append(large)
        successor.compact([b"of the next one" * 1000], 4)
        successor.append(large)
        successors.append(successor)

    sleepy.happens = meanwhile
    journal.compact([b"of the old one" * 1000], 2)
    sleepy.close()
    assert list(successors[0].replay()) == [(4, b"of the next one" * 1000), (5, large)]


# What Consul refuses, and why


def test_a_right_that_is_missing_is_told_from_a_fence(
    consul: ConsulServer, lease: ConsulLease, journal: ConsulJournal
) -> None:
    journal.append(b"one")
    store = consul.store(
        token=consul.make_token(
            POLICY.replace('key_prefix "nomadfn/" { policy = "write" }', 'key_prefix "nomadfn/" { policy = "read" }')
        )
    )
    reader = ConsulJournal(store, lease.hold)
    with pytest.raises(
        JournalError, match=r'Permission denied.* needs: key_prefix "nomadfn/" \{ policy = "write" \}'
    ) as caught:
        reader.append(b"two")
    assert not isinstance(caught.value, FencedError)
    store.close()
    assert journal.append(b"two") == 2


def test_an_append_goes_on_when_somebody_has_touched_the_meta_key(
    journal: ConsulJournal, store: ConsulStore, shard: Shard
) -> None:
    journal.append(b"one")
    meta = store.get(f"{shard.prefix}journal/meta")
    assert meta is not None
    store.put(meta.key, meta.value + b"\n")
    assert journal.append(b"two") == 2


def test_a_number_that_is_taken_is_not_written_over(journal: ConsulJournal, store: ConsulStore, shard: Shard) -> None:
    journal.append(b"one")
    store.put(f"{shard.prefix}journal/segments/000000000002", b"somebody else's")
    with pytest.raises(JournalError, match="segment 2 was not written: another one stands in its place"):
        journal.append(b"two")


# Damage


DAMAGE: list[tuple[str, Callable[[bytes], bytes | None], str]] = [
    ("segments/000000000003", lambda value: value.replace(b"body 3", b"body X"), "segment 3 does not match its sha256"),
    ("segments/000000000003", lambda value: value[:-1], "segment 3 does not match its sha256"),
    ("segments/000000000003", lambda value: b"rubbish", "segment 3 has no header that can be read"),
    ("segments/000000000003", lambda value: value.replace(b'"number":3', b'"number":2'), "says that it is number 2"),
    ("segments/000000000003", lambda value: value.replace(b'"epoch":1', b'"epoch":9'), "segment 3 is of epoch 9"),
    ("segments/000000000003", lambda value: None, "segment 3 is missing, and segment 4 is there"),
    ("snapshots/", lambda value: value.replace(b"the snapshot", b"the snap-hot"), "part 1 of 1 of the snapshot does"),
    ("snapshots/", lambda value: None, "part 1 of 1 of the snapshot is missing"),
    ("meta", lambda value: b"{", "meta key is gone or cannot be read"),
    ("meta", lambda value: None, "segment 1 is missing, and segment 2 is there"),
    ("segments/rubbish", lambda value: b"", "is not of nomadfn"),
]


@pytest.mark.parametrize(("key", "change", "what"), DAMAGE)
def test_damage_is_named_with_its_place_and_what_to_do(
    journal: ConsulJournal,
    store: ConsulStore,
    lease: ConsulLease,
    key: str,
    change: Callable[[bytes], bytes | None],
    what: str,
) -> None:
    for number in range(1, 5):
        journal.append(b"body %d" % number)
    journal.compact([b"the snapshot"], 1)
    root = f"{lease.shard.prefix}journal/"
    entry = next(iter(store.below(root + key)), None)
    changed = change(entry.value if entry else b"")
    assert entry is None or changed != entry.value
    if changed is None:
        assert entry is not None
        store.transact([delete(entry.key)])
    else:
        store.put(entry.key if entry else root + key, changed)
    with pytest.raises(JournalError, match=re.escape(what)) as caught:
        list(ConsulJournal(store, lease.hold).replay())
    assert root in str(caught.value)
    assert "backup" in str(caught.value)


# Sizes


def test_a_large_segment_is_split_over_keys_that_consul_takes(
    journal: ConsulJournal, store: ConsulStore, lease: ConsulLease, shard: Shard
) -> None:
    body = random.Random(3).randbytes(4 * 1024 * 1024)
    for size in (INLINE_BYTES, INLINE_BYTES + 1, VALUE_BYTES, VALUE_BYTES + 1, len(body)):
        journal.append(body[:size])
    again = ConsulJournal(store, lease.hold)
    assert [found == body[: len(found)] for _, found in again.replay()] == [True] * 5
    assert again.size_bytes() == sum(len(found) for _, found in again.replay())
    assert max(len(entry.value) for entry in store.below(shard.prefix)) <= VALUE_BYTES
    parts = store.below(f"{shard.prefix}journal/parts/")
    store.transact([delete(parts[-1].key)])
    with pytest.raises(JournalError, match="segment 5 does not match its sha256"):
        list(again.replay())


def test_the_default_bound_is_64_mebibytes_and_the_error_names_the_setting(
    journal: ConsulJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert journal.max_bytes == 64 * 1024 * 1024
    journal.max_bytes = 10
    with pytest.raises(JournalFullError, match=r"limits\.spawn_bytes") as caught:
        journal.append(bytes(11))
    assert "blobs" in str(caught.value)


def test_with_a_blob_store_consul_holds_little_and_the_bound_is_gone(store: ConsulStore, lease: ConsulLease) -> None:
    blobs = MemoryBlobs()
    journal = ConsulJournal(store, lease.hold, blobs=blobs)
    assert journal.max_bytes is None
    for number in range(15):
        journal.append(bytes([number]) * 4_000_000)
    journal.compact((bytes([number]) * 4_000_000 for number in range(10)), 10)
    assert journal.size_bytes() == 15 * 4_000_000
    assert journal.segment_count() == 5
    assert len(list(blobs.names())) == 15
    assert sum(len(entry.value) for entry in store.below(lease.shard.prefix)) < 10_000
    again = ConsulJournal(store, lease.hold, blobs=blobs)
    assert [body[0] for _, body in again.replay()] == list(range(15))


def test_blobs_that_are_gone_changed_or_not_set_are_named(store: ConsulStore, lease: ConsulLease) -> None:
    blobs = MemoryBlobs()
    ConsulJournal(store, lease.hold, blobs=blobs).append(bytes(10_000))
    with pytest.raises(JournalError, match="segment 1 lies in a blob store, and none is set"):
        list(ConsulJournal(store, lease.hold).replay())
    [(name, _)] = blobs.names()
    blobs.put(name, bytes(9_999) + b"x")
    with pytest.raises(JournalError, match="segment 1 does not match its sha256"):
        list(ConsulJournal(store, lease.hold, blobs=blobs).replay())
    blobs.delete(name)
    with pytest.raises(JournalError, match=f"the blob {name} of segment 1 is missing"):
        list(ConsulJournal(store, lease.hold, blobs=blobs).replay())


class MoodyBlobs(MemoryBlobs):
    """Fails now and then, as an object store does."""

    moods = itertools.cycle([ServiceError("503 Slow Down"), OSError("connection reset"), None])

    def put(self, name: str, data: bytes) -> None:
        if (mood := next(self.moods)) is not None:
            raise mood
        super().put(name, data)


def test_a_blob_store_that_fails_now_and_then_is_asked_again(store: ConsulStore, lease: ConsulLease) -> None:
    journal = ConsulJournal(store, lease.hold, blobs=MoodyBlobs())
    assert [journal.append(bytes(10_000)) for _ in range(5)] == [1, 2, 3, 4, 5]


# Compaction


@pytest.mark.parametrize("blobs", [None, MemoryBlobs()])
def test_a_compaction_leaves_nothing_behind_that_is_not_needed(
    store: ConsulStore, lease: ConsulLease, shard: Shard, blobs: MemoryBlobs | None
) -> None:
    """More keys than one transaction takes, large bodies among them, and what failed compactions have left."""
    journal = ConsulJournal(store, lease.hold, blobs=blobs)
    for number in range(150):
        journal.append(bytes(400_000) if number % 50 == 0 else b"small")

    def broken() -> Iterator[bytes]:
        yield bytes(400_000)
        raise LookupError

    for upto in (10, 100):
        with pytest.raises(LookupError):
            journal.compact(broken(), upto)
    journal.compact([bytes(400_000), b"small"], 120)
    journal.compact([bytes(400_000), b"small"], 149)
    left = keys_of(store, shard)
    assert left[:1] + left[-1:] == ["meta", left[-1]]
    assert [key for key in left if key.startswith("segments/")] == ["segments/000000000150"]
    assert [key for key in left if key.startswith("parts/")] == []
    assert {key.split("/")[1].split("-")[0] for key in left if key.startswith("snapshots/")} == {"149"}
    if blobs is not None:
        assert len(list(blobs.names())) == 1
    assert [len(body) for _, body in journal.replay()] == [400_000, 5, 5]


def test_many_segments_are_deleted_bit_by_bit_while_the_journal_goes_on(
    store: ConsulStore, lease: ConsulLease, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_journal, "SWEEPS_AT_ONCE", 2)
    journal = ConsulJournal(store, lease.hold)
    for _ in range(200):
        journal.append(b"small")
    store.put(f"{shard.prefix}journal/parts/of somebody else", b"")
    journal.compact([b"snapshot"], 200)
    left = []
    for _ in range(3):
        left.append(sum(key.startswith("segments/") for key in keys_of(store, shard)))
        journal.append(b"x")
    assert left == [200 - 2 * 63, 200 - 3 * 63 + 1, 2]
    assert list(ConsulJournal(store, lease.hold).replay()) == [
        (200, b"snapshot"),
        *((n, b"x") for n in (201, 202, 203)),
    ]
    assert "parts/of somebody else" in keys_of(store, shard)


# Consul away


@pytest.fixture
def own_consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    """A Consul that a test may stop."""
    with running_consul(tmp_path_factory.mktemp("own")) as server:
        yield server


@pytest.fixture
def impatient(own_consul: ConsulServer) -> Iterator[ConsulStore]:
    store = own_consul.store(timeout_s=0.5)
    yield store
    store.close()


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_appends_wait_while_consul_is_away_say_so_and_go_on_when_it_is_back(
    own_consul: ConsulServer, impatient: ConsulStore, lease_of: LeaseOf, shard: Shard, how: str
) -> None:
    told: list[str] = []
    delayed = threading.Event()

    def on_delay(text: str) -> None:
        told.append(text)
        delayed.set()

    lost: list[str] = []
    lease = lease_of(shard, impatient, on_lost=lost.append)
    lease.acquire()
    journal = ConsulJournal(impatient, lease.hold, on_delay=on_delay)
    journal.append(b"before")
    away, back = {
        "stopped": (own_consul.pause, own_consul.resume),
        "killed": (own_consul.kill, own_consul.restart),
    }[how]
    with ThreadPoolExecutor(1) as pool:
        away()
        waiting = pool.submit(journal.append, b"meanwhile")
        assert delayed.wait(30)
        assert not waiting.done()
        back()
        assert waiting.result(timeout=60) == 2
    assert told[0].startswith("Consul at http://127.0.0.1:")
    assert told[1:] == [""]
    assert journal.append(b"after") == 3
    assert [body for _, body in ConsulJournal(impatient, lease.hold).replay()] == [b"before", b"meanwhile", b"after"]
    assert lost == []


def test_an_append_that_waits_ends_with_its_patience_or_when_the_journal_is_closed(
    own_consul: ConsulServer, impatient: ConsulStore, lease_of: LeaseOf, shard: Shard
) -> None:
    lease = lease_of(shard, impatient)
    lease.acquire()
    short = ConsulJournal(impatient, lease.hold, patience_s=1.0)
    delayed = threading.Event()
    journal = ConsulJournal(impatient, lease.hold, on_delay=lambda text: delayed.set())
    own_consul.kill()
    with pytest.raises(JournalError, match=r"did not answer .*Connection refused.*check that it runs"):
        short.append(b"lost")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(journal.append, b"lost")
        assert delayed.wait(30)
        journal.close()
        with pytest.raises(JournalError):
            waiting.result(timeout=30)


# Everything at once, against a model


@dataclass
class Model:
    """What must be there: every acknowledged body, and perhaps the one whose append failed last."""

    acknowledged: list[bytes] = field(default_factory=list)
    maybe: bytes | None = None

    def check(self, journal: ConsulJournal) -> None:
        found = [line for _, body in journal.replay() for line in body.splitlines()]
        assert found in (self.acknowledged, [*self.acknowledged, self.maybe])
        self.acknowledged, self.maybe = found, None


@pytest.mark.parametrize("seed", range(4))
def test_leaders_that_come_and_go_over_a_failing_network_lose_and_repeat_nothing(
    seed: int,
    consul: ConsulServer,
    store: ConsulStore,
    proxy: LossyProxy,
    lossy_store: ConsulStore,
    lease_of: LeaseOf,
    shard: Shard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consul_journal, "INLINE_BYTES", 2 * 1024)
    chance = random.Random(seed)
    fates: list[Fate] = ["pass"] * 6 + ["lose the answer", "lose the request"]
    proxy.fate = lambda request: chance.choice(fates)
    model, count = Model(), itertools.count()
    lease = lease_of(shard)
    lease.acquire()
    journal = ConsulJournal(lossy_store, lease.hold)
    retired: list[ConsulJournal] = []
    for _ in range(80):
        match chance.choices(["append", "compact", "take over", "old one", "duplicate"], [12, 2, 1, 2, 3])[0]:
            case "append":
                body = (b"%d" % next(count)).ljust(chance.choice([1, 100, 5000]), b".")
                journal.append(body)
                model.acknowledged.append(body)
            case "compact":
                upto = journal._last - chance.randint(0, min(3, journal.segment_count()))
                kept = [body for number, body in journal.replay() if number <= upto]
                journal.compact([b"\n".join(kept)] if kept else [], upto)
            case "take over":
                if chance.random() < 0.5:
                    # Its last words: perhaps they are there, perhaps not.
                    model.maybe = b"%d" % next(count)
                    journal.close()
                    try:
                        journal.append(model.maybe)
                    except JournalError:
                        pass
                    else:
                        model.acknowledged.append(model.maybe)
                retired.append(journal)
                leader = lease.leader()
                assert leader is not None
                lease = lease_of(shard)
                lease.take_over(leader)
                journal = ConsulJournal(lossy_store, lease.hold)
                model.check(journal)
            case "old one" if retired:
                with pytest.raises(JournalError):
                    chance.choice(retired).append(b"of an old leader")
            case "duplicate" if proxy.requests:
                writes = [one for one in proxy.requests if one.startswith(b"PUT /v1/txn")]
                proxy.repeat(chance.choice(writes))
    model.check(ConsulJournal(store, lease.hold))
