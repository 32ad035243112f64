"""How much the journal of a cluster may hold, by where its bodies lie."""

from __future__ import annotations

import pytest

from nomadfn.control.clustered import RETENTION_S, journal_bounds
from nomadfn.core.limits import Limits

MIB = 1024 * 1024


def test_with_a_blob_store_nothing_bounds_it_but_the_number_of_its_segments() -> None:
    limits, pace, max_bytes = journal_bounds(Limits(), True)
    assert (limits, max_bytes, pace.room_bytes) == (Limits(), None, None)
    assert pace.compact_from_segments is not None
    assert 1000 * pace.compact_from_segments <= MIB


def test_without_one_consul_holds_no_more_than_64_mebibytes_and_results_for_an_hour() -> None:
    limits, pace, max_bytes = journal_bounds(Limits(), False)
    assert max_bytes == pace.room_bytes == 64 * MIB
    assert limits.spawn_bytes == 48 * MIB
    assert limits.retention_s == RETENTION_S


@pytest.mark.parametrize("live_mib", [0, 1, 24, 48])
def test_there_is_room_to_go_on_after_a_compaction_however_much_is_live(live_mib: int) -> None:
    _, pace, max_bytes = journal_bounds(Limits(), False)
    assert max_bytes is not None
    at = pace.compact_at(live_mib * MIB)
    assert live_mib * MIB + 8 * MIB <= at <= max_bytes - 8 * MIB


def test_what_was_set_holds() -> None:
    limits, pace, max_bytes = journal_bounds(Limits(spawn_bytes=96 * MIB, retention_s=60.0), False)
    assert (limits.spawn_bytes, limits.retention_s) == (96 * MIB, 60.0)
    assert max_bytes == pace.room_bytes == 128 * MIB
