"""Every lease keeps the contract; the lock file also outlives its holders, however they end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from contract_lease import LeaseContract

from nomadfn.adapters.lockfile import FileLease
from nomadfn.adapters.memory import MemoryLease, MemoryLock
from nomadfn.exception import ServiceError
from nomadfn.ports import Lease, LeaseHeldError


def in_memory(folder: Path) -> Callable[[], Lease]:
    lock = MemoryLock()
    return lambda: MemoryLease(lock)


def in_a_file(folder: Path) -> Callable[[], Lease]:
    return lambda: FileLease(str(folder / "control.lock"))


ADAPTERS: dict[str, Callable[[Path], Callable[[], Lease]]] = {"memory": in_memory, "file": in_a_file}


@pytest.fixture(params=ADAPTERS)
def rival(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Lease]:
    return ADAPTERS[request.param](tmp_path)


class TestLease(LeaseContract):
    pass


HOLDER = """
import sys
from nomadfn.adapters.lockfile import FileLease
lease = FileLease(sys.argv[1])
print(lease.acquire(), flush=True)
lease.describe("the one that is killed")
print("described", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "control.lock")


def test_the_lease_is_free_and_the_epoch_kept_after_kill_9(path: str) -> None:
    epochs = []
    for _ in range(3):
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert holder.stdout is not None
            epochs.append(int(holder.stdout.readline()))
            assert holder.stdout.readline() == "described\n"
            with pytest.raises(LeaseHeldError) as caught:
                FileLease(path).acquire()
            assert f"held by process {holder.pid} since 20" in str(caught.value)
            assert "(the one that is killed)" in str(caught.value)
            assert "nomadfn down" in str(caught.value)
        finally:
            holder.kill()
            holder.communicate(timeout=30)
    lease = FileLease(path)
    assert [*epochs, lease.acquire()] == [1, 2, 3, 4]
    lease.release()


def test_children_of_the_holder_do_not_keep_the_lease(path: str) -> None:
    lease = FileLease(path)
    lease.acquire()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        lease.release()
        again = FileLease(path)
        assert again.acquire() == 2
        again.release()
    finally:
        child.kill()
        child.communicate(timeout=30)


def test_a_holder_that_has_not_said_who_it_is_is_not_taken_for_the_one_before(path: str) -> None:
    lease = FileLease(path)
    lease.acquire()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(timeout=30)
    Path(path).write_text(f'{{"epoch": 1, "pid": {gone.pid}, "since": 0, "note": "long ago"}}\n')
    with pytest.raises(LeaseHeldError, match=r"is held by another process\. End it first"):
        FileLease(path).acquire()
    lease.release()


def test_a_record_that_was_cut_short_by_the_next_one_is_still_read(path: str) -> None:
    Path(path).write_text('{"epoch": 7, "pid": 1, "since": 0, "note": ""}\nrest of a longer record"}\n')
    lease = FileLease(path)
    assert lease.acquire() == 8
    lease.release()


@pytest.mark.parametrize("content", ["rubbish\n", '{"epoch": "one"}\n', "[]\n", "\x00\x00\x00\x00"])
def test_a_damaged_lock_file_is_refused_and_left_alone(path: str, content: str) -> None:
    Path(path).write_text(content)
    with pytest.raises(ServiceError, match=f"the lock file {path} is damaged"):
        FileLease(path).acquire()
    assert Path(path).read_text() == content


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"missing/control.lock cannot be used: No such file or directory"):
        FileLease(str(tmp_path / "missing/control.lock")).acquire()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ServiceError, match="Permission denied"):
            FileLease(str(tmp_path / "control.lock")).acquire()
    finally:
        tmp_path.chmod(0o700)


def test_a_long_note_is_cut(path: str) -> None:
    lease = FileLease(path)
    lease.acquire()
    lease.describe("ö" * 100_000)
    with pytest.raises(LeaseHeldError, match="ööö") as caught:
        FileLease(path).acquire()
    assert len(str(caught.value)) < 1000 + len(path)
    lease.release()
