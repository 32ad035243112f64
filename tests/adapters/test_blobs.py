"""Every blob store keeps the contract; the directory is also the one that SDK and containers write to."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from contract_blobs import BlobsContract
from nomadfn_agent.wire.payload import BlobRef, delete_blob, digest_of, read_blob, write_blob

from nomadfn.adapters.directory_blobs import DirectoryBlobs
from nomadfn.adapters.memory import MemoryBlobs
from nomadfn.exception import ServiceError
from nomadfn.ports import Blobs

ADAPTERS: dict[str, Callable[[Path], Blobs]] = {
    "memory": lambda folder: MemoryBlobs(),
    "directory": lambda folder: DirectoryBlobs(str(folder / "blobs")),
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


def files_in(directory: DirectoryBlobs) -> set[str]:
    return {path.name for path in Path(directory.folder).rglob("*") if path.is_file()}


def made_old(directory: DirectoryBlobs, name: str, age_s: float) -> None:
    path = next(Path(directory.folder).rglob(name))
    os.utime(path, (time.time() - age_s, time.time() - age_s))


def test_the_sdk_and_the_containers_see_the_same_files(directory: DirectoryBlobs) -> None:
    ref = write_blob(directory.folder, b"from a client")
    assert directory.get(ref.name) == b"from a client"
    directory.put("00ff", b"from the service")
    assert read_blob(directory.folder, BlobRef("00ff", digest_of(b"from the service"), 16)) == b"from the service"
    directory.delete(ref.name)
    assert [name for name, _ in directory.names()] == ["00ff"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_cannot_lead_out_of_the_folder(directory: DirectoryBlobs, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("not yours")
    with pytest.raises(ValueError, match="is not the name of a blob"):
        directory.put(name, b"x")
    with pytest.raises(KeyError):
        directory.get(name)
    assert not directory.has(name)
    directory.delete(name)
    with pytest.raises(ValueError, match="is not the name of a blob"):
        read_blob(directory.folder, BlobRef(name, "", 0))
    with pytest.raises(ValueError, match="is not the name of a blob"):
        delete_blob(directory.folder, BlobRef(name, "", 0))
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


def test_a_sweep_takes_old_blobs_that_nobody_needs_and_old_temporary_files(directory: DirectoryBlobs) -> None:
    for name in ("live", "young", "dead"):
        directory.put(name, b"x")
    for name in (".tmp-old", ".tmp-young"):
        (Path(directory.folder) / "li" / name).write_bytes(b"half")
    for name in ("live", "dead", ".tmp-old"):
        made_old(directory, name, 7200)
    assert directory.sweep({"live"}, min_age_s=600) == 2
    assert files_in(directory) == {"live", "young", ".tmp-young"}


def test_code_that_is_stored_again_counts_as_new(directory: DirectoryBlobs) -> None:
    ref = write_blob(directory.folder, b"an archive", by_digest=True)
    made_old(directory, ref.name, 7200)
    assert write_blob(directory.folder, b"an archive", by_digest=True) == ref
    assert directory.sweep(set(), min_age_s=600) == 0
    assert directory.get(ref.name) == b"an archive"
