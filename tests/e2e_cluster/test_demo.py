"""`make demo-cluster`: what it tells is true, and nothing of it is left, however it ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import real_nomad
from consul_server import consul_binary
from world import Running, World, eventually

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples/cluster/demo.py"
DEMO_S = 480.0


def needs_both(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.nomad(pytest.mark.consul(pytest.mark.timeout(600)(test)))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[World]:
    """Whose end says what was left running."""
    with closing(World(tmp_path)) as world:
        world.env["PATH"] = f"{tmp_path}/bin"
        (tmp_path / "bin").mkdir()
        yield world


@pytest.fixture
def both(bench: World) -> Iterator[World]:
    """With `nomad` and `consul` on PATH, and nothing else but the system's own."""
    path, why_not = real_nomad.find()
    if not path:
        pytest.skip(f"needs a real Nomad (1.6 or newer): {why_not}")
    programs = bench.folder.parent / "bin"
    (programs / "nomad").symlink_to(path)
    (programs / "consul").symlink_to(consul_binary())
    bench.env["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    # Nomad's sockets lie below it, and a socket's path has at most 107 characters.
    bench.temporary = Path(tempfile.mkdtemp(prefix="nf-"))
    bench.env["TMPDIR"] = str(bench.temporary)
    yield bench
    bench.temporary.rmdir()


def started(world: World) -> Running:
    return world.start(sys.executable, DEMO)


def left(world: World) -> list[str]:
    """The processes that anything of the demo's folder stands in the environment or the command line of."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if entry.name.isdigit() and any(
                str(world.temporary).encode() in (entry / name).read_bytes() for name in ("environ", "cmdline")
            ):
                found.append(f"{entry.name} {(entry / 'cmdline').read_text()}")
    return found


def nothing_is_left(world: World) -> None:
    eventually(lambda: not left(world), "every process has ended", 10)
    assert list(world.temporary.iterdir()) == []
    assert str(world.temporary) not in Path("/proc/self/mounts").read_text()


def test_without_the_programs_it_says_in_one_line_what_to_install(bench: World) -> None:
    done = bench.python(DEMO)
    assert (done.code, done.out) == (2, ""), done.report
    [line] = done.err.splitlines()
    assert "nomad 1.6 or newer on PATH" in line
    assert "https://" in line


def test_a_program_that_is_too_old_is_not_taken(bench: World) -> None:
    program = bench.folder.parent / "bin/nomad"
    program.write_text("#!/bin/sh\necho Nomad v1.5.17\n")
    program.chmod(0o755)
    done = bench.python(DEMO)
    assert done.code == 2, done.report
    assert "is Nomad v1.5.17" in done.err


@needs_both
def test_it_goes_from_zero_to_zero_over_a_kill_of_the_leader(both: World) -> None:
    done = started(both).wait(DEMO_S).ok()
    assert len(re.findall(r"0 → [1-9]\d* → 0 containers", done.out)) == 2, done.report
    for words in ("Another one stands by", "kill -9 of the leading", "The standby", "results are right"):
        assert words in done.out, done.report
    nothing_is_left(both)


@needs_both
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle_it_ends_everything_that_it_has_started(both: World, number: int) -> None:
    demo = started(both)
    eventually(lambda: re.search(r"containers: 0 → [1-9]", demo.out) or demo.ended, demo, DEMO_S)
    demo.process.send_signal(number)
    done = demo.wait()
    assert done.code == 130, done.report
    assert "Traceback" not in done.err, done.report
    nothing_is_left(both)


@needs_both
def test_when_an_agent_does_not_start_it_says_so_and_ends(both: World) -> None:
    program = both.folder.parent / "bin/consul"
    program.unlink()
    program.write_text('#!/bin/sh\n[ "$1" = version ] && echo Consul v1.20.6 || { echo no luck; exit 1; }\n')
    program.chmod(0o755)
    done = started(both).wait()
    assert done.code == 1, done.report
    assert "the dev agent of consul has ended" in done.err
    assert "no luck" in done.err
    nothing_is_left(both)
