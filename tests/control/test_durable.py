"""The journal's thread: groups, compaction while inputs go on coming, and faults that are told."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from nomadfn_agent import wire

from nomadfn.adapters.memory import MemoryJournal
from nomadfn.control import durable
from nomadfn.control.durable import DurableWriter, Pace
from nomadfn.core import calls, records
from nomadfn.core.core import Core
from nomadfn.ports import JournalError, JournalFullError

SPEC = wire.AppSpec(name="app", functions=[wire.FunctionSpec(name="f")])
WAIT_S = 20.0


class Told:
    """What the writer says, and a way to wait for it."""

    def __init__(self) -> None:
        self.number = 0
        self.error: JournalError | None = None
        self._changed = threading.Condition()

    def durable(self, number: int) -> None:
        with self._changed:
            self.number = number
            self._changed.notify_all()

    def failed(self, error: JournalError) -> None:
        with self._changed:
            self.error = error
            self._changed.notify_all()

    def wait(self, number: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.number >= number or self.error is not None, WAIT_S)


def spawn(core: Core, count: int, start: int = 0) -> None:
    for index in range(start, start + count):
        core.submit(1.0, "se-1", calls.Submission(f"fc-{index:032x}", "ap-1/f", wire.SPAWN, 0, [b"x" * 100]))


def new_core() -> Core:
    core = Core()
    core.open_session("se-1")
    core.start_app(1.0, "ap-1", SPEC, "se-1")
    return core


def replayed(journal: MemoryJournal) -> Core:
    core = Core()
    core.restore_app(1.0, "ap-1", SPEC, "", True, 1)
    for _, body in journal.replay():
        core.replay(records.decode_segment(body))
    core.end_replay(1.0)
    core.check_invariants()
    return core


def test_what_waits_together_is_one_segment() -> None:
    journal, told, core = MemoryJournal(), Told(), new_core()
    writer = DurableWriter(journal, told.durable, told.failed)
    spawn(core, 50)
    for record in core.take_records()[0]:
        writer.write([record], core.state.record_number)
    writer.start()
    told.wait(50)
    assert len(list(journal.replay())) == 1
    writer.close()


def test_a_segment_has_a_bound() -> None:
    journal, told, core = MemoryJournal(), Told(), new_core()
    writer = DurableWriter(journal, told.durable, told.failed, Pace(segment_bytes=1_000))
    for index in range(50):
        spawn(core, 1, index)
        writer.write(*core.take_records())
    writer.start()
    told.wait(50)
    assert len(list(journal.replay())) == 5
    writer.close()


async def spawn_while_compacting(core: Core, writer: DurableWriter) -> None:
    """Spawns go on between the slices of a snapshot."""
    task = asyncio.create_task(writer.compact(core.snapshot()))
    added = 1_000
    while not task.done():
        spawn(core, 1, added)
        added += 1
        writer.write(*core.take_records())
        await asyncio.sleep(0)
    await task


def test_nothing_is_lost_when_inputs_come_while_a_snapshot_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "SLICE_S", 0.0)
    journal, told, core = MemoryJournal(), Told(), new_core()
    writer = DurableWriter(journal, told.durable, told.failed)
    writer.start()
    spawn(core, 1_000)
    writer.write(*core.take_records())
    asyncio.run(spawn_while_compacting(core, writer))
    told.wait(core.state.record_number)
    writer.close()
    assert set(replayed(journal).state.calls) == set(core.state.calls)
    assert len(core.state.calls) > 1_500


def test_a_snapshot_is_wanted_when_little_of_the_journal_is_of_use() -> None:
    journal, told, core = MemoryJournal(), Told(), new_core()
    writer = DurableWriter(journal, told.durable, told.failed, Pace(compact_from_bytes=1_000))
    spawn(core, 100)
    writer.write(*core.take_records())
    writer.start()
    told.wait(100)
    assert not writer.wants_snapshot(core.live_bytes)
    assert writer.wants_snapshot(core.live_bytes // 100)
    writer.close()


class BrokenJournal(MemoryJournal):
    """Its disk has failed in a way that nobody thought of."""

    def append(self, body: bytes) -> int:
        raise ArithmeticError("unthinkable")


def test_a_journal_that_cannot_be_written_is_told() -> None:
    told, core = Told(), new_core()
    writer = DurableWriter(BrokenJournal(), told.durable, told.failed)
    writer.start()
    spawn(core, 1)
    writer.write(*core.take_records())
    told.wait(1)
    assert told.error is not None
    assert told.number == 0
    writer.close()


@pytest.mark.parametrize("pace", [Pace(compact_from_segments=3), Pace(room_bytes=1_000)])
def test_a_journal_with_little_room_is_compacted_whatever_is_of_use(pace: Pace) -> None:
    journal, told, core = MemoryJournal(), Told(), new_core()
    writer = DurableWriter(journal, told.durable, told.failed, pace)
    writer.start()
    for index in range(5):
        spawn(core, 5, 5 * index)
        writer.write(*core.take_records())
        told.wait(core.state.record_number)
    assert writer.wants_snapshot(core.live_bytes)
    writer.close()


class StuckJournal(MemoryJournal):
    """Its appends wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def append(self, body: bytes) -> int:
        self.begun.set()
        assert self.go.wait(WAIT_S)
        return super().append(body)


def test_a_write_that_does_not_come_to_an_end_is_trouble_and_then_none_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(durable, "STALLED_S", 0.0)
    told, journal, core = Told(), StuckJournal(), new_core()
    writer = DurableWriter(journal, told.durable, told.failed)
    writer.start()
    assert writer.trouble == ""
    spawn(core, 1)
    writer.write(*core.take_records())
    assert journal.begun.wait(WAIT_S)
    assert "waiting for a write" in writer.trouble
    journal.go.set()
    told.wait(1)
    assert writer.trouble == ""
    assert sum(writer.append_counts) == 1
    assert writer.append_s > 0
    writer.close()


async def compact_when_wanted(core: Core, writer: DurableWriter, told: Told) -> None:
    """What the service does at every turn, until everything is durable or has failed."""
    deadline = asyncio.get_running_loop().time() + WAIT_S
    while told.number < core.state.record_number and told.error is None:
        assert asyncio.get_running_loop().time() < deadline
        if writer.wants_snapshot(core.live_bytes):
            await writer.compact(core.snapshot())
        await asyncio.sleep(0.001)


def test_what_finds_no_room_waits_for_a_snapshot_that_makes_some() -> None:
    journal, told, core = MemoryJournal(max_bytes=40_000), Told(), new_core()
    writer = DurableWriter(journal, told.durable, told.failed, Pace(segment_bytes=2_000))
    writer.start()
    for first in range(0, 400, 40):
        spawn(core, 40, first)
        for index in range(first, first + 40):
            core.cancel_call(1.0, f"fc-{index:032x}")
        core.settle(1.0)
        writer.write(*core.take_records())
        told_up_to = core.state.record_number
        asyncio.run(compact_when_wanted(core, writer, told))
        assert (told.number, told.error) == (told_up_to, None)
        core.durable(1.0, told_up_to)
        core.tick(1.0 + first)
        forgotten = [id for id, call in core.state.calls.items() if call.finished]
        core.state.record(records.Forgotten(forgotten))
        calls.forget(core.state, forgotten)
    writer.close()
    assert journal.size_bytes() <= 40_000
    replayed(journal)


def test_a_journal_that_is_full_of_what_is_of_use_has_failed() -> None:
    journal, told, core = MemoryJournal(max_bytes=5_000), Told(), new_core()
    writer = DurableWriter(journal, told.durable, told.failed, Pace(segment_bytes=1_000))
    writer.start()
    spawn(core, 100)
    for number, record in enumerate(core.take_records()[0], 1):
        writer.write([record], number)
    asyncio.run(compact_when_wanted(core, writer, told))
    assert isinstance(told.error, JournalFullError)
    writer.close()


class AwayJournal(MemoryJournal):
    """Its store is away: an append waits until it is closed, or, when `ends` is not set, for ever."""

    def __init__(self, *, ends: bool) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.gone = threading.Event()
        self._end = self.gone if ends else threading.Event()

    def append(self, body: bytes) -> int:
        self.asked.set()
        self._end.wait(WAIT_S)
        raise JournalError("the store is away")

    def close(self) -> None:
        self.gone.set()


@pytest.mark.parametrize("ends", [True, False])
def test_the_end_does_not_wait_for_a_journal_whose_store_is_away(monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
    monkeypatch.setattr(durable, "CLOSE_S", 0.1)
    journal, told, core = AwayJournal(ends=ends), Told(), new_core()
    writer = DurableWriter(journal, told.durable, told.failed)
    writer.start()
    spawn(core, 3)
    writer.write(*core.take_records())
    assert journal.asked.wait(WAIT_S)
    assert writer.close() is False
    assert journal.gone.is_set()
    assert told.number == 0
    journal._end.set()


def test_the_end_waits_for_a_journal_that_goes_on_writing_however_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "CLOSE_S", 0.2)

    class SlowJournal(MemoryJournal):
        def append(self, body: bytes) -> int:
            time.sleep(0.02)
            return super().append(body)

    journal, told, core = SlowJournal(), Told(), new_core()
    writer = DurableWriter(journal, told.durable, told.failed, Pace(segment_bytes=100))
    spawn(core, 40)
    for number, record in enumerate(core.take_records()[0], 1):
        writer.write([record], number)
    writer.start()
    assert writer.close() is True
    assert told.number == 40


def test_segments_of_earlier_leaders_count_until_they_are_compacted() -> None:
    journal = MemoryJournal()
    for _ in range(3):
        journal.append(records.encode_segment([]))
    writer = DurableWriter(journal, Told().durable, Told().failed, Pace(compact_from_segments=3))
    assert writer.wants_snapshot(0)
    # A snapshot of so much would cost more than three small segments do.
    assert not writer.wants_snapshot(4 * durable.LIVE_PER_SEGMENT_BYTES)
