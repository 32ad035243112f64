"""What stands in the way of a control service: ports, folders, tokens, a full disk. Each is said, none hangs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from world import NOMADFN, World

WRONG = "nf_" + "0" * 43
JOBS = """
    import nomadfn

    app = nomadfn.App("jobs")

    @app.function()
    def size(text):
        return len(text)

    @app.local_entrypoint()
    def main():
        print(size.remote("four"))
"""
SPAWN = """
    import sys
    import nomadfn
    from nomadfn.sdk import client

    client.RECONNECT_S = 1.0
    size = nomadfn.Function.from_name("jobs", "size")
    for number in range(int(sys.argv[1])):
        # Large ones lie beside the journal.
        print(size.spawn("x" * (100_000 if number % 10 == 0 else 1_000)).object_id, flush=True)
"""
COLLECT = """
    import sys
    import nomadfn

    calls = [nomadfn.FunctionCall.from_id(id) for id in sys.argv[1:]]
    print(*nomadfn.FunctionCall.gather(*calls))
"""


@pytest.fixture
def jobs(world: World) -> World:
    for name, source in (("jobs.py", JOBS), ("spawn.py", SPAWN), ("collect.py", COLLECT)):
        world.write(name, source)
    return world


@pytest.mark.parametrize(
    ("command", "setting", "flag"), [("up", "port", "--port"), ("control", "data_port", "--data-port")]
)
def test_a_taken_port_is_named_with_its_setting(world: World, command: str, setting: str, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        world.nomadfn(command, flag, port).refused(3, f"127.0.0.1:{port}", f"setting {setting}")
    world.all_gone()
    assert not (world.data / "service.json").exists()


def test_a_second_service_on_the_same_folder_is_refused_and_the_first_goes_on(jobs: World) -> None:
    first = jobs.up()
    jobs.nomadfn("control").refused(3, f"pid {first['pid']}")
    done = jobs.python("-m", "nomadfn.control", "--data-dir", jobs.data)
    assert done.code == 3, done.report
    done.without_our_frames()
    assert jobs.up()["pid"] == first["pid"]
    assert jobs.nomadfn("run", "jobs.py").ok().out == "4\n"


def test_two_that_come_up_at_once_are_one_service(jobs: World) -> None:
    both = [jobs.start(NOMADFN, "up", "--json") for _ in range(2)]
    ends = sorted((one.wait() for one in both), key=lambda done: done.code)
    assert ends[0].code == 0, ends[0].report
    if ends[1].code != 0:
        ends[1].refused(3, str(ends[0].json["pid"]))
    services = [line for line in jobs.processes().values() if "-m nomadfn.control" in line]
    assert len(services) == 1, services


def test_no_token_and_a_wrong_one_are_refused_to_curl(jobs: World) -> None:
    url = jobs.up()["http_url"]
    jobs.deploy("jobs.py")
    call = ("curl", "-sS", "-w", "\n%{http_code}", "-X", "POST", f"{url}/v1/apps/jobs/functions/size/call")
    for header in ([], ["-H", f"Authorization: Bearer {WRONG}"], ["-H", "Authorization: Basic x"]):
        done = jobs.execute(*call, *header, "-d", '{"args": ["four"]}').ok()
        body, code = done.out.rsplit("\n", 1)
        assert code == "401", done.report
        assert json.loads(body)["error"]["kind"] == "AuthError", done.report
        assert "token" in json.loads(body)["error"]["message"], done.report
    assert WRONG not in jobs.log()


def test_a_wrong_token_is_refused_to_every_command_and_to_the_sdk(jobs: World) -> None:
    jobs.up()
    jobs.deploy("jobs.py")
    for words in (("run", "jobs.py"), ("deploy", "jobs.py"), ("status",), ("function", "call", "jobs", "size", "x")):
        done = jobs.nomadfn(*words, NOMADFN_TOKEN=WRONG).refused(3, "token")
        assert WRONG not in done.err, done.report
    done = jobs.python("spawn.py", 1, NOMADFN_TOKEN=WRONG)
    assert done.code == 1, done.report
    assert "AuthError" in done.err, done.report
    assert WRONG not in done.err, done.report
    (jobs.data / "token").unlink()
    jobs.nomadfn("status").refused(3, "token")
    jobs.nomadfn("run", "jobs.py").refused(3, "token")


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """`folder` on a disk of its own; skips the test where that cannot be had."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("a disk that fills up needs root on Linux, to mount a small tmpfs")
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_and_what_was_acknowledged_is_there_once_there_is_room(jobs: World) -> None:
    with small_disk(jobs.data, "4m"):
        try:
            jobs.up()
            jobs.deploy("jobs.py")
            done = jobs.python("spawn.py", 3000)
            assert done.code == 1, done.report
            assert any(word in done.err for word in ("No space left", "disk is full")), done.report
            acknowledged = done.out.split()
            assert 10 <= len(acknowledged) < 3000
            if not (jobs.data / "service.json").exists():
                jobs.nomadfn("up").refused(3, str(jobs.data))
            room = subprocess.run(["mount", "-o", "remount,size=64m", str(jobs.data)], capture_output=True)
            assert room.returncode == 0, room.stderr.decode()
            jobs.up()
            collected = jobs.python("collect.py", *acknowledged).ok().out.split()
            expected = ["1000" if number % 10 else "100000" for number in range(len(acknowledged))]
            assert collected == expected
        finally:
            jobs.stop_service()


def test_a_private_service_whose_disk_is_full_says_so(jobs: World) -> None:
    jobs.write(
        "full.py",
        """
        import nomadfn

        app = nomadfn.App("full")

        @app.function()
        def size(text):
            return len(text)

        @app.local_entrypoint()
        def spawn():
            while True:
                size.spawn("x" * 1_000)

        @app.local_entrypoint()
        def large():
            while True:
                size.spawn("x" * 300_000)
        """,
    )
    with small_disk(jobs.data, "2m"):
        jobs.nomadfn("run", "full.py::spawn", TMPDIR=str(jobs.data)).refused(3, "the disk is full")
        jobs.nomadfn("run", "full.py::large", TMPDIR=str(jobs.data)).refused(3, "No space left", "make room")
    jobs.all_gone()


def test_a_disk_that_is_full_from_the_start_is_said(jobs: World) -> None:
    with small_disk(jobs.data, "64k"):
        (jobs.data / "filler").write_bytes(b"x" * 60 * 1024)
        try:
            done = jobs.nomadfn("up")
            done.refused(3)
            assert any(word in done.err for word in ("space", "full")), done.report
        finally:
            jobs.stop_service()
    jobs.all_gone()


def test_a_folder_that_cannot_be_written_is_said(world: World) -> None:
    world.data.write_text("a file where the folder should be")
    world.nomadfn("up").refused(3, str(world.data))


def test_a_damaged_journal_is_said_and_left_alone(jobs: World) -> None:
    jobs.up()
    jobs.deploy("jobs.py")
    jobs.python("spawn.py", 50).ok()
    jobs.nomadfn("down").ok()
    journal = jobs.data / "journal.db"
    damaged = bytearray(journal.read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 4096] = os.urandom(4096)
    journal.write_bytes(damaged)
    done = jobs.nomadfn("up")
    if done.code == 0:
        pytest.skip("the damage hit a page that is in no use")
    done.refused(3, "journal")
    assert journal.read_bytes() == bytes(damaged)
    jobs.all_gone()
