"""The journal's thread: groups, compaction while inputs go on coming, and faults that are told."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from nomadfn_agent import wire

from nomadfn.adapters.memory import MemoryJournal
from nomadfn.control import durable
from nomadfn.control.durable import DurableWriter, Pace
from nomadfn.core import calls, records
from nomadfn.core.core import Core
from nomadfn.ports import JournalError

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


@pytest.mark.parametrize("journal", [MemoryJournal(max_bytes=10), BrokenJournal()])
def test_a_journal_that_cannot_be_written_is_told(journal: Any) -> None:
    told, core = Told(), new_core()
    writer = DurableWriter(journal, told.durable, told.failed)
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
