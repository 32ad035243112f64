"""Every blob store keeps the contract; the directory is also the one that SDK and containers write to."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from contract_blobs import BlobsContract
from nomadfn_agent.wire import store
from nomadfn_agent.wire.payload import BlobRef, digest_of
from nomadfn_agent.wire.store import MEMORY, BlobStore, Place
from nomadfn_agent.wire.wide import SECOND, WIDE_BYTES

from nomadfn.adapters.directory_blobs import DirectoryBlobs, link_memory, unlink_memory
from nomadfn.adapters.fsspec_blobs import FsspecBlobs
from nomadfn.adapters.memory import MemoryBlobs
from nomadfn.exception import InvalidError, ServiceError
from nomadfn.ports import Blobs

ADAPTERS: dict[str, Callable[[Path], Blobs]] = {
    "memory": lambda folder: MemoryBlobs(),
    "directory": lambda folder: DirectoryBlobs(str(folder / "blobs")),
    "fsspec memory": lambda folder: FsspecBlobs(f"memory:/{folder}/blobs"),
    "fsspec file": lambda folder: FsspecBlobs(f"file://{folder}/blobs"),
}
OUTSIDE = ["../outside", "..", "", "/etc/passwd", "a/../../b", "ab\0c", ".tmp-abc"]


@pytest.fixture(params=ADAPTERS)
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return ADAPTERS[request.param](tmp_path)


class TestBlobs(BlobsContract):
    pass


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryBlobs:
    return DirectoryBlobs(str(tmp_path / "blobs"))


def shared(directory: DirectoryBlobs) -> BlobStore:
    return BlobStore(lambda: Place(directory.folder, directory.mark))


def files_in(directory: DirectoryBlobs) -> set[str]:
    return {path.name for path in Path(directory.folder).rglob("*") if path.is_file()}


def made_old(directory: DirectoryBlobs, name: str, age_s: float) -> None:
    path = next(Path(directory.folder).rglob(name))
    os.utime(path, (time.time() - age_s, time.time() - age_s))


def test_the_sdk_and_the_containers_see_the_same_files(directory: DirectoryBlobs) -> None:
    store = BlobStore(lambda: Place(directory.folder, directory.mark))
    assert store.is_here()
    ref = store.write(b"from a client", "ap-1")
    assert directory.get(ref.name) == b"from a client"
    directory.put("00ff", b"from the service")
    assert store.read(BlobRef("00ff", digest_of(b"from the service"), 16)) == b"from the service"
    store.delete(ref)
    assert [name for name, _ in directory.names()] == ["00ff"]


def test_a_folder_of_the_same_name_on_another_machine_is_not_used(directory: DirectoryBlobs, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for folder in (tmp_path / "elsewhere", tmp_path / "nowhere"):
        store = BlobStore(lambda folder=folder: Place(str(folder), directory.mark))
        assert not store.is_here()
        with pytest.raises(OSError, match="has no HTTP address"):
            store.write(b"lost", "ap-1")
        assert not list(folder.rglob("*"))
    assert not (tmp_path / "nowhere").exists()


def test_a_blob_folder_that_goes_away_is_not_made_anew(directory: DirectoryBlobs) -> None:
    shutil.rmtree(directory.folder)
    with pytest.raises(ServiceError, match="cannot take blob abcd: No such file or directory"):
        directory.put("abcd", b"x")
    assert not os.path.exists(directory.folder)


def test_the_mark_of_an_earlier_control_service_is_none_any_more(directory: DirectoryBlobs) -> None:
    former = directory.mark
    later = DirectoryBlobs(directory.folder)
    assert BlobStore(lambda: Place(later.folder, later.mark)).is_here()
    assert not BlobStore(lambda: Place(later.folder, former)).is_here()


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("adapter", ["directory", "fsspec file"])
def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path, adapter: str, name: str) -> None:
    blobs = ADAPTERS[adapter](tmp_path)
    (tmp_path / "outside").write_text("not yours")
    with pytest.raises(ValueError, match="is not the name of a blob"):
        blobs.put(name, b"x")
    with pytest.raises(KeyError):
        blobs.get(name)
    assert not blobs.has(name)
    blobs.delete(name)
    assert (tmp_path / "outside").read_text() == "not yours"


def test_a_blob_that_cannot_be_written_whole_leaves_nothing(
    directory: DirectoryBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.put("abcd", b"before")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ServiceError, match="cannot take blob abcd: No space left on device"):
            directory.put("abcd", b"after")
    assert directory.get("abcd") == b"before"
    assert files_in(directory) == {"abcd"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ServiceError, match="file/blobs cannot be made: Not a directory"):
        DirectoryBlobs(str(tmp_path / "file/blobs"))


def test_files_that_were_left_half_written_go_away_with_a_listing(directory: DirectoryBlobs) -> None:
    directory.put("live", b"x")
    for name in (".tmp-old", ".tmp-young"):
        (Path(directory.folder) / "li" / name).write_bytes(b"half")
    made_old(directory, ".tmp-old", 7200)
    assert [name for name, _ in directory.names()] == ["live"]
    assert files_in(directory) == {"live", ".tmp-young"}


def test_code_that_is_stored_again_counts_as_new(directory: DirectoryBlobs) -> None:
    store = BlobStore(lambda: Place(directory.folder, directory.mark))
    digest = store.write_code(b"an archive")
    made_old(directory, digest, 7200)
    assert store.write_code(b"an archive") == digest
    assert dict(directory.names())[digest] < 3600
    assert directory.get(digest) == b"an archive"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nosuch://bucket/prefix", "nosuch://bucket/prefix is not accepted: Protocol not known: nosuch"),
        ("gs://bucket/prefix", "needs another package where the control service runs: .*gcsfs"),
        ("sftp://ada:secret@host/prefix", "sftp://host/prefix needs another package .*paramiko"),
    ],
)
def test_an_address_that_nothing_here_speaks_names_what_is_missing(url: str, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        FsspecBlobs(url)


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(InvalidError, match=r"pip install 'nomadfn\[blobs\]'"):
        FsspecBlobs("memory://x")


def test_a_store_that_fails_is_named_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = FsspecBlobs("memory://ada:secret@here/prefix")

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("nobody answers")

    for method in ("pipe_file", "info", "cat_file", "rm_file", "ls"):
        monkeypatch.setattr(blobs._fs, method, fail)
    for work in (
        lambda: blobs.put("abc", b"x"),
        lambda: blobs.get("abc"),
        lambda: list(blobs.parts("abc")),
        lambda: blobs.has("abc"),
        lambda: blobs.delete("abc"),
        lambda: list(blobs.names()),
        blobs.check,
    ):
        with pytest.raises(ServiceError, match=r"memory://here/prefix cannot .* nobody answers") as caught:
            work()
        assert "secret" not in str(caught.value)


def test_what_other_writers_put_is_seen_and_the_journal_has_its_own(tmp_path: Path) -> None:
    first, second = (FsspecBlobs(f"memory:/{tmp_path}/shared") for _ in range(2))
    assert list(first.names()) == []
    second.put("abc123", b"x")
    assert [name for name, _ in first.names()] == ["abc123"]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own file system may be as full as it likes."""
    monkeypatch.setattr(store, "MEMORY_SHARE", 0.0)


@pytest.mark.usefixtures("room")
def test_a_part_in_memory_is_linked_kept_over_a_restart_and_removed_when_it_is_empty(
    directory: DirectoryBlobs, tmp_path: Path
) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    link_memory(directory.folder, str(memory))
    ref = shared(directory).write(b"x", "ap-1")
    assert directory.get(ref.name) == b"x"
    assert [name for name, _ in directory.names()] == [ref.name]
    unlink_memory(directory.folder, with_content=False)
    link_memory(directory.folder, str(memory))
    assert directory.get(ref.name) == b"x", "its client may come back for it"
    directory.delete(ref.name)
    unlink_memory(directory.folder, with_content=False)
    assert list(memory.iterdir()) == []
    assert not (Path(directory.folder) / MEMORY).is_symlink()


@pytest.mark.usefixtures("room")
def test_a_large_value_in_memory_is_one_blob_though_it_is_two_files(
    directory: DirectoryBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    link_memory(directory.folder, str(tmp_path))
    data = os.urandom(WIDE_BYTES)
    for forget in (shared(directory).delete, lambda ref: directory.delete(ref.name)):
        ref = shared(directory).write(data, "ap-1")
        assert len(list((Path(directory.folder) / MEMORY).iterdir())) == 2
        assert {name for name, _ in directory.names()} == {ref.name}
        assert directory.has(ref.name)
        assert shared(directory).read(ref) == directory.get(ref.name) == data
        forget(ref)
        for thread in threading.enumerate():
            if thread.name == "nomadfn-unlink":
                thread.join()
        assert list(directory.names()) == []


@pytest.mark.usefixtures("room")
def test_a_half_that_was_left_is_listed_and_deleted_by_the_name_of_the_whole(
    directory: DirectoryBlobs, tmp_path: Path
) -> None:
    link_memory(directory.folder, str(tmp_path))
    (Path(directory.folder) / MEMORY / f"{MEMORY}0123-ap-1{SECOND}").write_bytes(b"x")
    [(name, _)] = directory.names()
    directory.delete(name)
    assert list(directory.names()) == []


@pytest.mark.usefixtures("room")
def test_a_part_in_memory_that_went_with_the_machine_is_made_anew(directory: DirectoryBlobs, tmp_path: Path) -> None:
    (Path(directory.folder) / MEMORY).symlink_to(tmp_path / "gone")
    link_memory(directory.folder, str(tmp_path))
    ref = shared(directory).write(b"x", "ap-1")
    assert ref.name.startswith(MEMORY)
    unlink_memory(directory.folder, with_content=True)
    with pytest.raises(KeyError):
        directory.get(ref.name)


def test_where_there_is_no_memory_file_system_all_of_it_lies_on_the_disk(
    directory: DirectoryBlobs, tmp_path: Path
) -> None:
    link_memory(directory.folder, str(tmp_path / "none"))
    ref = shared(directory).write(b"x", "ap-1")
    assert not ref.name.startswith(MEMORY)
    unlink_memory(directory.folder, with_content=True)
    assert directory.get(ref.name) == b"x"
