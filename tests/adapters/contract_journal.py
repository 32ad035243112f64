"""What every journal must do. An adapter joins with one `JournalWorld` in `test_journal.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from nomadfn.ports import Journal, JournalFullError


class JournalWorld(Protocol):
    """Where an adapter's journals live."""

    def open(self, max_bytes: int | None = None) -> Journal:
        """A new, empty journal."""
        ...

    def reopen(self, journal: Journal) -> Journal:
        """The same journal, closed and opened again."""
        ...

    def crash(self, journal: Journal) -> Journal:
        """The same journal, as the next process finds it after this one was killed right now."""
        ...


class JournalMachine(RuleBasedStateMachine):
    """Any history of appends, compactions, restarts and crashes gives what a list would."""

    world: JournalWorld

    def __init__(self) -> None:
        super().__init__()
        self.upto = 0
        self.snapshot: list[bytes] = []
        self.segments: list[bytes] = []

    @initialize()
    def begin(self) -> None:
        self.journal = self.world.open()

    @rule(body=st.binary(max_size=40) | st.integers(1, 60).map(lambda n: bytes(n * 1024)))
    def append(self, body: bytes) -> None:
        self.segments.append(body)
        assert self.journal.append(body) == self.upto + len(self.segments)

    @rule(data=st.data(), snapshot=st.lists(st.binary(max_size=20), max_size=4))
    def compact(self, data: st.DataObject, snapshot: list[bytes]) -> None:
        count = data.draw(st.integers(0, len(self.segments)))
        self.journal.compact(iter(snapshot), self.upto + count)
        self.upto += count
        self.snapshot, self.segments = snapshot, self.segments[count:]

    @rule(at=st.integers(0, 3), count=st.integers(0, 2))
    def fail_to_compact(self, at: int, count: int) -> None:
        def broken() -> Iterator[bytes]:
            yield from [b"never seen"] * at
            raise LookupError

        with pytest.raises(LookupError):
            self.journal.compact(broken(), self.upto + min(count, len(self.segments)))

    @rule()
    def reopen(self) -> None:
        self.journal = self.world.reopen(self.journal)

    @rule()
    def crash(self) -> None:
        self.journal = self.world.crash(self.journal)

    @invariant()
    def replay_gives_the_snapshot_and_then_what_came_later(self) -> None:
        expected = [(self.upto, body) for body in self.snapshot]
        expected += enumerate(self.segments, self.upto + 1)
        assert list(self.journal.replay()) == expected
        assert self.journal.size_bytes() == sum(len(body) for _, body in expected)

    def teardown(self) -> None:
        self.journal.close()


class JournalContract:
    histories = 40
    """How many the model is compared over; fewer where each step goes over a network."""

    def test_a_new_journal_is_empty(self, world: JournalWorld) -> None:
        journal = world.open()
        assert list(journal.replay()) == []
        assert journal.size_bytes() == 0
        journal.close()

    def test_numbers_start_at_one_and_have_no_gaps(self, world: JournalWorld) -> None:
        journal = world.open()
        assert [journal.append(b"x") for _ in range(5)] == [1, 2, 3, 4, 5]
        journal.close()

    def test_numbers_go_on_after_everything_was_compacted_away(self, world: JournalWorld) -> None:
        journal = world.open()
        for _ in range(3):
            journal.append(b"x")
        journal.compact([], 3)
        journal = world.reopen(journal)
        assert journal.append(b"later") == 4
        assert list(journal.replay()) == [(4, b"later")]
        journal.close()

    def test_segments_after_the_compaction_stay_as_they_were(self, world: JournalWorld) -> None:
        journal = world.open()
        for body in (b"one", b"two", b"three"):
            journal.append(body)
        journal.compact([b"one and two"], 2)
        assert list(journal.replay()) == [(2, b"one and two"), (3, b"three")]
        journal.close()

    @pytest.mark.parametrize("upto", [1, 4])
    def test_a_compaction_goes_neither_back_nor_beyond_the_end(self, world: JournalWorld, upto: int) -> None:
        journal = world.open()
        for body in (b"one", b"two", b"three"):
            journal.append(body)
        journal.compact([b"s"], 2)
        with pytest.raises(ValueError, match=f"cannot compact up to {upto}"):
            journal.compact([], upto)
        assert list(journal.replay()) == [(2, b"s"), (3, b"three")]
        journal.close()

    def test_a_journal_can_be_written_while_it_is_replayed(self, world: JournalWorld) -> None:
        journal = world.open()
        for body in (b"one", b"two"):
            journal.append(body)
        replay = journal.replay()
        assert next(replay) == (1, b"one")
        assert journal.append(b"three") == 3
        assert next(replay) == (2, b"two")
        journal.close()

    def test_over_its_maximum_an_append_is_refused_and_changes_nothing(self, world: JournalWorld) -> None:
        journal = world.open(max_bytes=100)
        journal.append(bytes(60))
        with pytest.raises(JournalFullError, match="maximum of 100"):
            journal.append(bytes(60))
        assert list(journal.replay()) == [(1, bytes(60))]
        assert journal.append(bytes(40)) == 2
        journal.compact([b"small"], 2)
        assert journal.append(bytes(90)) == 3
        journal.close()

    def test_any_history_gives_what_a_list_would(self, world: JournalWorld) -> None:
        machine = type("Machine", (JournalMachine,), {"world": world})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=self.histories,
                stateful_step_count=15,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
