"""What the SQLite journal has acknowledged outlives kill -9, full disks and failing ones, in real processes."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nomadfn.adapters.sqlite_journal import SqliteJournal
from nomadfn.ports import JournalFullError

WRITER = """
import json, random, sys
from nomadfn.adapters.sqlite_journal import SqliteJournal

def body_of(number):
    return json.dumps([number, "x" * (10, 5_000, 300_000)[number % 3]]).encode()

journal = SqliteJournal(sys.argv[1])
number = max((json.loads(body)[0] for _, body in journal.replay()), default=0)
while True:
    number += 1
    assert journal.append(body_of(number)) == number
    print(number, flush=True)
    if random.random() < 0.2:
        upto = number - random.randint(0, 1)
        journal.compact(map(body_of, range(1, upto + 1)), upto)
"""


def run_python(program: str, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def numbers_in(path: str) -> list[int]:
    journal = SqliteJournal(path)
    try:
        return [json.loads(body)[0] for _, body in journal.replay()]
    finally:
        journal.close()


def test_every_acknowledged_segment_is_there_after_kill_9_at_any_moment(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    chance = random.Random(7)
    for _ in range(12):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            try:
                lines = [writer.stdout.readline() for _ in range(chance.randint(1, 12))]
            finally:
                writer.kill()
            acknowledged = int([*lines, *writer.stdout][-1])
        found = numbers_in(path)
        assert found == list(range(1, len(found) + 1))
        assert acknowledged <= len(found) <= acknowledged + 1


APPEND_FIVE = """
import os, sys
from nomadfn.adapters.sqlite_journal import SqliteJournal
journal = SqliteJournal(sys.argv[1])
for _ in range(5):
    os.write(1, b"acknowledged %d" % journal.append(bytes(1 << 20)))
os._exit(0)
"""


def test_each_append_of_a_mebibyte_is_synced_once_before_it_is_acknowledged(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    prefix = ("strace", "-f", "-y", "-s", "40", "-e", "trace=fsync,fdatasync,pwrite64,write", "-o", str(trace))
    if shutil.which("strace") is None or run_python("", prefix=prefix).returncode != 0:
        pytest.skip("strace is not here or may not trace")
    done = run_python(APPEND_FIVE, str(tmp_path / "journal.db"), prefix=prefix)
    assert done.returncode == 0, done.stderr
    appends = re.split(r".*acknowledged \d.*\n", trace.read_text())[1:5]
    for calls in appends:
        into_log = [line for line in calls.splitlines() if "journal.db-wal>" in line]
        assert sum("pwrite64" in line for line in into_log) > 60
        assert [line for line in into_log if "sync" in line] == into_log[-1:]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 4 MiB of room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root on Linux may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=30)


def test_a_really_full_disk_refuses_in_words_and_keeps_what_was_acknowledged(small_disk: Path) -> None:
    path = str(small_disk / "journal.db")
    journal = SqliteJournal(path)
    bodies: list[bytes] = []

    def fill() -> None:
        for number in range(100):
            body = bytes([number]) * 100_000
            journal.append(body)
            bodies.append(body)

    with pytest.raises(JournalFullError, match="the disk is full"):
        fill()
    assert len(bodies) > 10
    assert [body for _, body in journal.replay()] == bodies
    with pytest.raises(JournalFullError, match="the disk is full"):
        journal.compact([bytes(3_000_000)], len(bodies))
    assert [body for _, body in journal.replay()] == bodies
    journal.close()

    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True, timeout=30)
    journal = SqliteJournal(path)
    assert [body for _, body in journal.replay()] == bodies
    assert journal.append(b"there is room again") == len(bodies) + 1
    journal.close()


FAIL_TO_WRITE = """
import resource, signal, sys
from nomadfn.adapters.sqlite_journal import SqliteJournal
from nomadfn.ports import JournalError
journal = SqliteJournal(sys.argv[1])
journal.append(b"first")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
for body in (bytes(1_000_000), b"small"):
    try:
        journal.append(body)
    except JournalError as error:
        print(error)
"""


def test_after_an_input_output_error_the_journal_takes_nothing_more_until_it_is_opened_again(tmp_path: Path) -> None:
    """Whether the failed segment is in the file is not known then, so no other may take its number."""
    path = str(tmp_path / "journal.db")
    done = run_python(FAIL_TO_WRITE, path)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "had an input/output error" in first
    assert "Check the disk" in first
    assert second == first
    journal = SqliteJournal(path)
    assert list(journal.replay()) == [(1, b"first")]
    journal.close()
