"""Large values lie in two files, are written and read by two threads, and come out whole."""

from __future__ import annotations

import array
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from nomadfn_agent.wire import bulk
from nomadfn_agent.wire.wide import SECOND, WIDE_BYTES, open_wide, unlink_wide, write_wide


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def written(path: Path, pieces: Sequence[bytes | memoryview]) -> int:
    size = bulk.size_of(pieces)
    write_wide(str(path), pieces, size)
    return size


@pytest.mark.parametrize("size", [10, WIDE_BYTES - 1, WIDE_BYTES, 2 * WIDE_BYTES + 7])
def test_a_pickle_with_large_buffers_is_read_whole(size: int, tmp_path: Path) -> None:
    value = {"first": os.urandom(size), "small": b"x" * 100, "second": bytearray(os.urandom(size)), "last": 7}
    path = tmp_path / "value"
    path.write_bytes(pickle.dumps(value, 5))
    with open_wide(str(path), path.stat().st_size) as file:
        assert pickle.load(file) == value
        assert not file.read()


@pytest.mark.parametrize("with_ctypes", [True, False])
@pytest.mark.parametrize("size", [10, WIDE_BYTES // 2, WIDE_BYTES, 3 * WIDE_BYTES + 7])
def test_what_was_written_is_read_whole(
    size: int, with_ctypes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    __import__("ctypes")
    if not with_ctypes:
        monkeypatch.delitem(sys.modules, "ctypes")
    value = [os.urandom(size), b"x" * 100, bytearray(os.urandom(size)), array.array("d", range(1000))]
    path = tmp_path / "value"
    written_bytes = written(path, bulk.Dumper().dump(value))
    assert (tmp_path / f"value{SECOND}").exists() == (written_bytes >= WIDE_BYTES)
    with open_wide(str(path), written_bytes) as file:
        assert pickle.load(file) == value
        assert not file.read()
    with open_wide(str(path), written_bytes) as file:
        assert pickle.loads(file.read()) == value
    unlink_wide(str(path))
    assert not list(tmp_path.iterdir())


def test_pieces_of_any_shape_are_divided_where_the_half_is(tmp_path: Path) -> None:
    numbers = memoryview(array.array("q", range(WIDE_BYTES // 8))).cast("B").cast("q", (8, WIDE_BYTES // 64))
    pieces = [b"begin", numbers, b"", b"between", os.urandom(WIDE_BYTES), b"end"]
    size = written(tmp_path / "value", pieces)
    sizes = [(tmp_path / name).stat().st_size for name in ("value", f"value{SECOND}")]
    assert sizes == [size // 2, size - size // 2]
    with open_wide(str(tmp_path / "value"), size) as file:
        assert file.read() == b"".join(pieces)


def test_with_one_core_it_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    size = written(tmp_path / "value", [b"x" * WIDE_BYTES])
    assert os.listdir(tmp_path) == ["value"]
    with open_wide(str(tmp_path / "value"), size) as file:
        assert file.read() == b"x" * WIDE_BYTES


@pytest.mark.parametrize("broken", [[b"x" * WIDE_BYTES, "no bytes"], ["no bytes", b"x" * WIDE_BYTES]])
def test_what_cannot_be_written_whole_leaves_nothing(broken: list[bytes], tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_wide(str(tmp_path / "value"), broken, WIDE_BYTES + 8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("half", ["value", f"value{SECOND}"])
def test_when_one_half_cannot_be_written_the_other_one_goes_too(half: str, tmp_path: Path) -> None:
    (tmp_path / half).mkdir()
    with pytest.raises(OSError, match="File exists"):
        write_wide(str(tmp_path / "value"), [b"x" * WIDE_BYTES], WIDE_BYTES)
    assert os.listdir(tmp_path) == [half]


def test_a_file_that_ends_too_early_is_an_error_and_no_wrong_value(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_bytes(pickle.dumps(os.urandom(2 * WIDE_BYTES), 5))
    size = path.stat().st_size
    os.truncate(path, size - 100)
    with pytest.raises(ValueError, match="bytes, not"):
        open_wide(str(path), size)
    with open_wide(str(path), size - 100) as file, pytest.raises(OSError, match="the file ends after"):
        pickle.load(file)


def test_a_half_that_is_missing_or_too_short_is_an_error(tmp_path: Path) -> None:
    size = written(tmp_path / "value", [b"x" * WIDE_BYTES])
    second = tmp_path / f"value{SECOND}"
    os.truncate(second, 100)
    with pytest.raises(ValueError, match="bytes, not"):
        open_wide(str(tmp_path / "value"), size)
    second.unlink()
    with pytest.raises(ValueError, match="bytes, not"):
        open_wide(str(tmp_path / "value"), size)
    (tmp_path / "value").unlink()
    with pytest.raises(FileNotFoundError):
        open_wide(str(tmp_path / "value"), size)
