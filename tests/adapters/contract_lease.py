"""What every lease must do. An adapter joins with one entry in `test_lease.py`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nomadfn.ports import Lease, LeaseHeldError


class LeaseContract:
    """`rival` gives a further contender for the same lease each time that it is called."""

    def test_epochs_grow_from_holder_to_holder(self, rival: Callable[[], Lease]) -> None:
        epochs = []
        for _ in range(3):
            lease = rival()
            epochs.append(lease.acquire())
            lease.release()
        assert epochs[0] >= 1
        assert epochs == sorted(set(epochs))

    def test_only_one_holds_it_and_others_are_told_who(self, rival: Callable[[], Lease]) -> None:
        holder = rival()
        epoch = holder.acquire()
        holder.describe("serves http://127.0.0.1:4646")
        other = rival()
        for _ in range(2):
            with pytest.raises(LeaseHeldError, match=r"http://127\.0\.0\.1:4646"):
                other.acquire()
        holder.release()
        assert other.acquire() > epoch
        other.release()

    def test_its_holder_does_not_get_it_twice(self, rival: Callable[[], Lease]) -> None:
        lease = rival()
        epoch = lease.acquire()
        with pytest.raises(LeaseHeldError):
            lease.acquire()
        lease.release()
        assert lease.acquire() > epoch
        lease.release()

    def test_releasing_what_is_not_held_takes_it_from_nobody(self, rival: Callable[[], Lease]) -> None:
        holder, other = rival(), rival()
        holder.acquire()
        other.release()
        with pytest.raises(LeaseHeldError):
            other.acquire()
        holder.release()
        holder.release()
        other.acquire()
        holder.release()
        with pytest.raises(LeaseHeldError):
            holder.acquire()
        other.release()

    def test_a_note_of_one_holder_is_not_shown_for_the_next(self, rival: Callable[[], Lease]) -> None:
        first, second = rival(), rival()
        first.acquire()
        first.describe("the first one")
        first.release()
        second.acquire()
        with pytest.raises(LeaseHeldError) as caught:
            first.acquire()
        assert "the first one" not in str(caught.value)
        second.release()
