"""Large payloads: pickled in pieces, written without a copy, kept in memory where there is room."""

from __future__ import annotations

import os
import pickle
import threading
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
from nomadfn_agent import wire
from nomadfn_agent.wire import bulk, store
from nomadfn_agent.wire.payload import DamagedBlobError, Unpicklable, blob_path
from shared_folder import SharedFolder

BIG = os.urandom(300_000)


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharedFolder:
    """A blob folder whose memory has room, however full the tests' own file system is."""
    monkeypatch.setattr(store, "MEMORY_SHARE", 0.0)
    made = SharedFolder(tmp_path / "blobs")
    (tmp_path / "memory").mkdir()
    (tmp_path / "blobs" / store.MEMORY).symlink_to(tmp_path / "memory")
    return made


@pytest.mark.parametrize("value", [None, 5, "x" * 10, BIG, bytearray(BIG), "é" * 200_000, [BIG, 1, BIG], {"a": [BIG]}])
def test_the_pieces_are_a_pickle_again_and_again(value: Any) -> None:
    dumper = bulk.Dumper()
    for one in (value, "between", value):
        pieces = dumper.dump(one)
        assert pickle.loads(b"".join(pieces)) == one
        assert bulk.size_of(pieces) == len(b"".join(pieces))


def test_large_bytes_are_not_copied() -> None:
    assert any(piece is BIG for piece in bulk.Dumper().dump(((BIG,),)))


def test_what_pickle_refuses_goes_by_cloudpickle_and_then_pickle_again() -> None:
    dumper = bulk.Dumper()
    double = pickle.loads(b"".join(dumper.dump(lambda x: 2 * x)))
    assert double(4) == 8
    with pytest.raises(Unpicklable, match="lock"):
        dumper.dump([1, threading.Lock()])
    assert dumper.dump("after") == [pickle.dumps("after", 5)]


def test_only_what_may_name_a_global_is_looked_through_for_main() -> None:
    assert bulk.names_main([b"c__main__\n"])
    assert not bulk.names_main([b"frame", b"__main__" * 100_000])


@pytest.mark.parametrize("durable", [True, False])
def test_a_payload_comes_back_as_it_was(blobs: SharedFolder, durable: bool) -> None:
    pieces = bulk.Dumper().dump([BIG, "text"])
    ref = blobs.write_pieces(pieces, bulk.size_of(pieces), "ap-1", durable=durable)
    assert bulk.load_payload(blobs, ref) == [BIG, "text"]
    assert (ref.name.startswith(store.MEMORY), bool(ref.digest)) == (not durable, durable)
    assert os.path.exists(blob_path(blobs.place.folder, ref.name))


def test_without_room_in_memory_it_lies_on_the_disk(blobs: SharedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MEMORY_SHARE", 1.0)
    ref = blobs.write(b"x" * 1000, "ap-1")
    assert not ref.name.startswith(store.MEMORY)
    assert os.listdir(blobs.place.folder + "/mm") == []
    assert blobs.read(ref) == b"x" * 1000


def test_a_write_that_fails_leaves_nothing_in_memory(blobs: SharedFolder) -> None:
    with pytest.raises(TypeError):
        blobs.write_pieces([b"one", "no bytes"], 11, "ap-1")  # type: ignore[list-item]
    assert os.listdir(blobs.place.folder + "/mm") == []


@pytest.mark.parametrize("durable", [True, False])
def test_a_damaged_payload_is_refused(blobs: SharedFolder, durable: bool) -> None:
    pieces = bulk.Dumper().dump(BIG)
    ref = blobs.write_pieces(pieces, bulk.size_of(pieces), "ap-1", durable=durable)
    path = blob_path(blobs.place.folder, ref.name)
    os.truncate(path, os.path.getsize(path) - 1)
    with pytest.raises(DamagedBlobError, match="damaged"):
        bulk.load_payload(blobs, ref)
    os.unlink(path)
    with pytest.raises(FileNotFoundError):
        bulk.load_payload(blobs, ref)


class Nested:
    """Pickling it pickles another value, as user code that makes a call there does."""

    def __init__(self, inner: object) -> None:
        self.inner = inner

    def __reduce__(self) -> tuple[object, ...]:
        return bytes, (b"".join(bulk.dump_once(self.inner)),)


def test_a_threads_dumper_may_be_needed_while_it_is_in_use() -> None:
    outer = pickle.loads(b"".join(bulk.dump_once([Nested([1, 2]), "after"])))
    assert (pickle.loads(outer[0]), outer[1]) == ([1, 2], "after")


def test_a_value_that_cannot_be_pickled_leaves_nothing_behind_for_the_next_one() -> None:
    shared = ["shared"]
    with pytest.raises(Unpicklable):
        bulk.dump_once([shared, shared, threading.Lock()])
    assert pickle.loads(b"".join(bulk.dump_once([shared, shared]))) == [shared, shared]
    large = b"x" * 100_000
    assert pickle.loads(b"".join(bulk.dump_once(large))) == large
    assert pickle.loads(b"".join(bulk.dump_once("small"))) == "small"


class Text(str):
    """What is of a type of one's own may pickle itself as it likes."""


class Level(IntEnum):
    LOW = 1


@pytest.mark.parametrize(
    "value",
    [None, True, 7, -7, 1 << 8_000, 0.5, b"x" * 16_000, "é" * 16_000, "\ud800", b""],
    ids=lambda value: type(value).__name__,
)
def test_short_values_of_plain_types_are_known_and_come_back(value: Any) -> None:
    assert bulk.is_short(value)
    assert pickle.loads(pickle.dumps(value, 5)) == value
    assert len(pickle.dumps(value, 5)) < wire.INLINE_PAYLOAD_BYTES / 2


@pytest.mark.parametrize(
    "value",
    [b"x" * 17_000, "x" * 17_000, 1 << 1_000_000, bytearray(b"x"), [1], (1,), Text("x"), Level.LOW, print],
    ids=lambda value: type(value).__name__,
)
def test_all_other_values_are_not_taken_for_short_ones(value: Any) -> None:
    assert not bulk.is_short(value)


@pytest.mark.parametrize("size", [0, 10, 5_000])
def test_a_name_of_main_is_found_in_a_pickle_of_any_size(size: int) -> None:
    assert bulk.names_main([b"x" * size + b"__main__"])
    assert not bulk.names_main([b"x" * size])
    assert not bulk.names_main([b"__main__" + b"x" * bulk.GLOBALS_PIECE_BYTES])
