"""Large values are read from their file by two threads, and come out whole."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from nomadfn_agent.wire.wide import WIDE_BYTES, open_wide


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


@pytest.mark.parametrize("size", [10, WIDE_BYTES - 1, WIDE_BYTES, 2 * WIDE_BYTES + 7])
def test_a_pickle_with_large_buffers_is_read_whole(size: int, tmp_path: Path) -> None:
    value = {"first": os.urandom(size), "small": b"x" * 100, "second": bytearray(os.urandom(size)), "last": 7}
    path = tmp_path / "value"
    path.write_bytes(pickle.dumps(value, 5))
    with open_wide(str(path), path.stat().st_size) as file:
        assert pickle.load(file) == value
        assert not file.read()


def test_a_file_that_ends_too_early_is_an_error_and_no_wrong_value(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_bytes(pickle.dumps(os.urandom(2 * WIDE_BYTES), 5))
    os.truncate(path, path.stat().st_size - 100)
    with open_wide(str(path), path.stat().st_size) as file, pytest.raises(OSError, match="the file ends after"):
        pickle.load(file)
