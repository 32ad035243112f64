"""A journal in Consul that is read along: whoever does so knows at the end what the next leader would read."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nomadfn.adapters import consul_journal_reader
from nomadfn.adapters.consul_journal import ConsulJournal
from nomadfn.adapters.consul_journal_tail import ConsulJournalTail
from nomadfn.adapters.consul_lease import ConsulLease
from nomadfn.adapters.consul_store import ConsulStore, Shard
from nomadfn.adapters.fsspec_blobs import FsspecBlobs
from nomadfn.control import following
from nomadfn.control.following import Following
from nomadfn.core.limits import Limits
from nomadfn.core.records import Submitted, encode_segment
from nomadfn.ports import Blobs, JournalError

LeaseOf = Callable[..., ConsulLease]


def body(*numbers: int) -> bytes:
    """Numbers that a state gets; the first one decides whether it is large."""
    return json.dumps([numbers, "x" * (100_000 if numbers and numbers[0] % 7 == 0 else 10)]).encode()


class Reader:
    """What a standby makes of the bodies."""

    def __init__(self, tail: ConsulJournalTail) -> None:
        self.tail = tail
        self.known: set[int] = set()
        self.begun = 0
        self.taken = 0

    def begin(self) -> None:
        self.known = set()
        self.begun += 1

    def take(self, data: bytes) -> None:
        self.known |= set(json.loads(data)[0])
        self.taken += 1

    def advance(self) -> bool:
        return self.tail.advance(self.begin, self.take)

    def catch_up(self) -> None:
        while self.advance():
            pass

    def finish(self, journal: ConsulJournal) -> set[int]:
        """What it knows once it leads."""
        position = self.tail.position
        since = None if position is None else journal.carry(position)
        if since is None:
            self.begin()
        for _, data in journal.replay(since):
            self.take(data)
        return self.known


@pytest.fixture
def lease(lease_of: LeaseOf, shard: Shard) -> ConsulLease:
    lease = lease_of(shard)
    lease.acquire()
    return lease


@pytest.fixture(params=["in Consul", "with blobs"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs | None:
    return None if request.param == "in Consul" else FsspecBlobs(f"memory:/{tmp_path}")


@pytest.fixture
def journal(store: ConsulStore, lease: ConsulLease, blobs: Blobs | None) -> ConsulJournal:
    return ConsulJournal(store, lease.hold, blobs=blobs)


@pytest.fixture
def reader(store: ConsulStore, shard: Shard, blobs: Blobs | None) -> Reader:
    return Reader(ConsulJournalTail(store, shard, blobs))


@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_leaders_did_meanwhile_the_next_one_knows_all_of_it(
    monkeypatch: pytest.MonkeyPatch, store: ConsulStore, shard: Shard, lease_of: LeaseOf, tmp_path: Path, seed: int
) -> None:
    monkeypatch.setattr(consul_journal_reader, "REPLAY_KEYS", 10)
    chance = random.Random(seed)
    blobs = FsspecBlobs(f"memory:/{tmp_path}") if seed % 2 else None
    reader = Reader(ConsulJournalTail(store, shard, blobs))
    assert not reader.advance(), "no leader has begun the journal"
    written: set[int] = set()
    for _ in range(3):
        lease = lease_of(shard)
        lease.acquire()
        journal = ConsulJournal(store, lease.hold, blobs=blobs)
        for _ in range(chance.randint(0, 30)):
            match chance.choice(("append", "append", "append", "compact", "read")):
                case "append":
                    written.add(number := max(written, default=0) + 1)
                    assert journal.append(body(number)) == number
                case "compact":
                    upto, repeats = max(written, default=0), chance.random() < 0.7
                    journal.compact([body(*sorted(written))], upto, repeats=repeats)
                case "read":
                    reader.advance()
        lease.release()
    lease = lease_of(shard)
    lease.acquire()
    assert reader.finish(ConsulJournal(store, lease.hold, blobs=blobs)) == written


def test_only_what_came_since_is_read_at_a_takeover(journal: ConsulJournal, reader: Reader) -> None:
    for number in range(1, 131):
        journal.append(body(number))
    reader.catch_up()
    assert (reader.begun, reader.taken) == (1, 130)
    journal.append(body(131))
    journal.append(body(132))
    assert reader.finish(journal) == set(range(1, 133))
    assert (reader.begun, reader.taken) == (1, 132)


def test_a_compaction_that_says_nothing_new_is_passed_over(journal: ConsulJournal, reader: Reader) -> None:
    for number in range(1, 6):
        journal.append(body(number))
    reader.catch_up()
    journal.append(body(6))
    journal.compact([body(*range(1, 6))], 5, repeats=True)
    reader.catch_up()
    journal.compact([body(*range(1, 7))], 6, repeats=True)
    assert reader.finish(journal) == set(range(1, 7))
    assert reader.begun == 1


def test_a_compaction_that_stands_for_more_than_was_read_begins_anew(journal: ConsulJournal, reader: Reader) -> None:
    journal.append(body(1))
    reader.catch_up()
    journal.append(body(2))
    journal.compact([body(1, 2)], 2, repeats=True)
    reader.catch_up()
    assert (reader.known, reader.begun) == ({1, 2}, 2)


@pytest.mark.parametrize("reads_before_it_leads", [True, False])
def test_a_snapshot_with_more_than_the_segments_begins_anew(
    journal: ConsulJournal, reader: Reader, reads_before_it_leads: bool
) -> None:
    """The leader has died before it could write what its snapshot knew already."""
    journal.append(body(1))
    reader.catch_up()
    journal.compact([body(1, 2)], 1)
    if reads_before_it_leads:
        reader.catch_up()
    assert reader.finish(journal) == {1, 2}
    assert reader.begun == 2


@pytest.mark.parametrize("reads_before_it_leads", [True, False])
def test_a_journal_that_was_restored_from_a_backup_is_read_anew(
    store: ConsulStore, journal: ConsulJournal, reader: Reader, lease: ConsulLease, reads_before_it_leads: bool
) -> None:
    for number in range(1, 5):
        journal.append(body(number))
    reader.catch_up()
    for entry in store.below(f"{lease.shard.prefix}journal/segments/"):
        if int(entry.key[-12:]) > 2:
            store.transact([lease.hold.fence, {"KV": {"Verb": "delete", "Key": entry.key}}])
    restored = ConsulJournal(store, lease.hold, blobs=journal._blobs)
    for number in (33, 34, 35):
        restored.append(body(number))
    if reads_before_it_leads:
        with pytest.raises(JournalError, match="segment 5 does not follow segment 4"):
            reader.advance()
        reader.catch_up()
    assert reader.finish(ConsulJournal(store, lease.hold, blobs=journal._blobs)) == {1, 2, 33, 34, 35}


def test_a_standby_reads_along_and_says_so_once_when_it_cannot(
    monkeypatch: pytest.MonkeyPatch, store: ConsulStore, journal: ConsulJournal, lease: ConsulLease, blobs: Blobs | None
) -> None:
    monkeypatch.setattr(following, "FAULT_PAUSE_S", 0.01)
    said: list[str] = []
    told = threading.Event()

    def log(text: str) -> None:
        said.append(text)
        told.set()

    def spawn(number: int) -> bytes:
        call = f"fc-{number}"
        return encode_segment([Submitted(call, "ap-1/f", 3, "se-1", 0, 1.0, 0, [b"x"], [0])])

    journal.append(spawn(1))
    follower = Following(ConsulJournalTail(store, lease.shard, blobs), Limits(), log)
    follower.start()
    follower.start()
    journal.append(spawn(2))
    key = f"{lease.shard.prefix}journal/segments/{3:012}"
    store.put(key, b"{}")
    assert told.wait(30)
    core, position = follower.stop()
    assert set(core.state.calls) == {"fc-1", "fc-2"}
    assert position.number == 2
    assert len(said) == 1
    assert "cannot be read along" in said[0]
