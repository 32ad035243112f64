"""What every blob store must do. An adapter joins with one entry in `test_blobs.py`."""

from __future__ import annotations

import pytest

from nomadfn.ports import Blobs


class BlobsContract:
    def test_a_blob_that_was_never_put_is_unknown(self, blobs: Blobs) -> None:
        assert not blobs.has("abc123")
        with pytest.raises(KeyError, match="abc123"):
            blobs.get("abc123")
        blobs.delete("abc123")
        assert list(blobs.names()) == []

    @pytest.mark.parametrize("data", [b"", b"small", bytes(range(256)) * 10_000])
    def test_what_was_put_comes_back_until_it_is_deleted(self, blobs: Blobs, data: bytes) -> None:
        blobs.put("abc123", data)
        assert blobs.has("abc123")
        assert blobs.get("abc123") == data
        blobs.delete("abc123")
        assert not blobs.has("abc123")
        assert list(blobs.names()) == []

    def test_a_second_put_takes_the_place_of_the_first(self, blobs: Blobs) -> None:
        blobs.put("abc123", b"first and longer")
        blobs.put("abc123", b"second")
        assert blobs.get("abc123") == b"second"

    def test_a_blob_comes_in_parts_as_it_comes_whole(self, blobs: Blobs) -> None:
        data = bytes(range(256)) * 40_000
        with blobs.writing("abc123") as sink:
            for first in range(0, len(data), 3_000_000):
                sink.write(data[first : first + 3_000_000])
        parts = list(blobs.parts("abc123"))
        assert b"".join(parts) == blobs.get("abc123") == data
        with pytest.raises(KeyError, match="unknown"):
            next(blobs.parts("unknown"))

    def test_a_blob_that_is_not_written_to_its_end_is_not_there(self, blobs: Blobs) -> None:
        blobs.put("before", b"as it was")
        for name in ("before", "never"):
            writing = blobs.writing(name)
            writing.__enter__().write(b"half of it")
            assert not writing.__exit__(EOFError, EOFError(), None)
        assert blobs.get("before") == b"as it was"
        assert not blobs.has("never")
        assert {name for name, _ in blobs.names()} == {"before"}

    def test_the_names_are_those_of_all_blobs_with_an_age(self, blobs: Blobs) -> None:
        names = {f"{number:04x}" for number in range(300)}
        for name in names:
            blobs.put(name, b"x")
        ages = dict(blobs.names())
        assert set(ages) == names
        assert all(0 <= age_s < 3600 for age_s in ages.values())

    def test_blobs_may_be_deleted_while_their_names_are_listed(self, blobs: Blobs) -> None:
        for number in range(20):
            blobs.put(f"{number:04x}", b"x")
        for name, _ in blobs.names():
            blobs.delete(name)
        assert list(blobs.names()) == []
