"""The warm parent: what it tells about containers, and that nothing of them outlives it."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
from agent_harness import WAIT_S, Machine, Runner, is_running, wait_until
from nomadfn_agent import wire

CRASH = """
import ctypes, os, signal, sys, threading
def f(how):
    if how == "exit":
        os._exit(3)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "abort":
        os.abort()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "group":
        os.killpg(0, signal.SIGTERM)
    return how
"""
WAITER = """
import os, time
def f(mark=""):
    if mark:
        open(mark, "w").close()
    time.sleep(600)
"""
FAMILY = """
import os, subprocess, sys, time
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
def f(escape):
    child = subprocess.Popen(SLEEP, start_new_session=escape)
    if not escape:
        return child.pid
    daemon = subprocess.run(
        [sys.executable, "-c", "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], start_new_session=True,"
        " stdout=2).pid)", *SLEEP], capture_output=False, stdout=subprocess.PIPE, text=True)
    return child.pid, int(daemon.stdout)
def g():
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("how", "exit_code"), [("exit", 3), ("segfault", -11), ("abort", -6), ("kill", -9), ("group", -15)]
)
def test_a_container_that_ends_itself_takes_nobody_with_it(machine: Machine, how: str, exit_code: int) -> None:
    bystander, runner = machine.run(CRASH), machine.run(CRASH)
    runner.deliver([(how,)])
    assert machine.end(runner).exit_code == exit_code
    assert bystander.call("still here") == "still here"
    assert machine.run(CRASH).call("also") == "also"


def test_the_tail_of_a_crash_shows_where_it_happened(machine: Machine) -> None:
    runner = machine.run(CRASH)
    runner.deliver([("segfault",)])
    tail = machine.end(runner).tail
    assert "Segmentation fault" in tail
    assert "hello.py" in tail


def test_a_container_is_a_process_group_of_its_own_with_nothing_inherited(machine: Machine) -> None:
    source = """
import os, signal, sys
def f():
    with open("/proc/self/oom_score_adj") as file:
        score = int(file.read())
    handles = []
    for one in os.listdir("/proc/self/fd"):
        try:
            handles.append(os.readlink("/proc/self/fd/" + one))
        except OSError:
            pass
    signals = signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(0, [])
    return os.getpid(), os.getpgrp(), score, sys.stdin.read(), handles, *signals
"""
    others = [machine.run(source) for _ in range(2)]
    runner = machine.run(source)
    pid, group, score, stdin, handles, on_term, mask = runner.call()
    assert pid == group == machine.pid(runner)
    assert score >= 500
    assert stdin == ""
    assert (on_term, mask) == (signal.SIG_DFL, set())
    sockets = [one for one in handles if one.startswith("socket:")]
    assert len(sockets) == 1
    assert len([one for one in handles if one.startswith("pipe:")]) <= 4
    assert others[0].call()[1] != group


def test_stop_with_no_grace_kills_and_with_grace_terminates_first(machine: Machine, tmp_path: Path) -> None:
    source = """
import os, signal, time
def f(mark):
    def end(*_):
        print("asked", flush=True)
        if mark.endswith("polite"):
            os._exit(7)
    signal.signal(signal.SIGTERM, end)
    open(mark, "w").close()
    while True:
        time.sleep(600)
"""
    exits = {}
    for name, grace_s in (("polite", 600.0), ("stubborn", 0.2), ("killed", 0.0)):
        runner = machine.run(source)
        runner.deliver([(str(tmp_path / name),)])
        wait_until((tmp_path / name).exists, "the function runs")
        machine.supervisor.send(wire.Stop(runner.hello.session, grace_s))
        exits[name] = machine.end(runner).exit_code, machine.output(runner)
    assert exits == {"polite": (7, "asked\n"), "stubborn": (-9, "asked\n"), "killed": (-9, "")}


def test_a_stop_right_behind_its_start_is_not_lost(machine: Machine) -> None:
    for grace_s in (0.0, 600.0) * 5:
        name = machine.start()
        machine.supervisor.send(wire.Stop(name, grace_s))
        assert machine.supervisor.end(name).exit_code < 0


def test_a_stop_of_nobody_and_a_second_start_change_nothing(machine: Machine) -> None:
    runner = machine.run(CRASH)
    machine.supervisor.send(wire.Stop("ct-unknown", 0.0))
    machine.supervisor.send(wire.Start(runner.hello.session, {}))
    assert runner.call("well") == "well"


def test_a_containers_own_children_end_with_it_also_those_that_escaped(machine: Machine) -> None:
    runner = machine.run(FAMILY)
    pids = [runner.call(False), *runner.call(True)]
    assert all(is_running(pid) for pid in pids)
    machine.kill(runner)
    machine.end(runner)
    for pid in pids:
        wait_until(lambda pid=pid: not is_running(pid), "the container's children are gone")


def test_an_escaped_process_that_holds_the_pipe_does_not_hold_up_the_end(machine: Machine) -> None:
    source = """
import os, subprocess, sys
def f():
    env = {"PATH": os.environ["PATH"]}
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=env, start_new_session=True)
    print("before", child.pid)
    return child.pid
"""
    runner = machine.run(source)
    pid = runner.call()
    machine.kill(runner)
    assert machine.end(runner).exit_code == -9
    assert machine.output(runner) == f"before {pid}\n"
    machine.supervisor.shut()
    machine.supervisor.parent.process.wait(WAIT_S)
    assert not is_running(pid)


def busy_family(machine: Machine, tmp_path: Path) -> list[int]:
    """A waiting container, one with a child in its group, one with a child outside: all their process ids."""
    waiter = machine.run(WAITER)
    waiter.deliver([(str(tmp_path / "mark"),)])
    wait_until((tmp_path / "mark").exists, "the function runs")
    parents = [machine.run(FAMILY), machine.run(FAMILY)]
    pids = [parents[0].call(False), *parents[1].call(True), *(machine.pid(one) for one in (waiter, *parents))]
    assert all(is_running(pid) for pid in pids)
    return pids


def test_when_the_control_service_is_gone_nothing_is_left(machine: Machine, tmp_path: Path) -> None:
    pids = busy_family(machine, tmp_path)
    machine.supervisor.shut()
    assert machine.supervisor.parent.process.wait(WAIT_S) == 0
    assert [pid for pid in pids if is_running(pid)] == []
    assert len(machine.supervisor.ends) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_supervisor_that_is_asked_to_end_leaves_nothing(machine: Machine, tmp_path: Path, number: int) -> None:
    pids = busy_family(machine, tmp_path)
    machine.supervisor.parent.process.send_signal(number)
    assert machine.supervisor.parent.process.wait(WAIT_S) == 0
    assert [pid for pid in pids if is_running(pid)] == []


def test_containers_end_with_a_supervisor_that_is_killed(machine: Machine, tmp_path: Path) -> None:
    runner = machine.run(WAITER)
    runner.deliver([(str(tmp_path / "mark"),)])
    wait_until((tmp_path / "mark").exists, "the function runs")
    pid = machine.pid(runner)
    machine.supervisor.parent.process.kill()
    wait_until(lambda: not is_running(pid), "the container is gone")


def printed(machine: Machine, body: str, **options: object) -> tuple[Runner, wire.Ended]:
    """A container that has run a function of this body and then ended."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    runner = machine.run(f"import os, sys\ndef f():\n{lines}", **options)
    runner.deliver([()])
    runner.send(wire.Drain())
    return runner, machine.end(runner)


def test_both_streams_are_heard_by_line_and_before_the_result(machine: Machine) -> None:
    body = "    print('out')\n    print('err', file=sys.stderr)\n    print('rest', end='')\n"
    runner = machine.run("import sys\ndef f():\n" + body)
    runner.call()
    machine.supervisor.wait(lambda: (runner.hello.session, 2) in machine.supervisor.texts, "it is heard")
    runner.send(wire.Drain())
    machine.end(runner)
    assert machine.output(runner, 1) == "out\nrest"
    assert machine.output(runner, 2) == "err\n"


def test_characters_that_are_split_over_writes_come_out_whole_and_garbage_is_replaced(machine: Machine) -> None:
    body = """for byte in "grün 日本 🎈\\n".encode():
    os.write(1, bytes([byte]))
os.write(1, b"\\xff\\x00\\xfe\\n")
os.write(2, "日".encode()[:2])"""
    runner, end = printed(machine, body)
    assert machine.output(runner) == "grün 日本 🎈\n�\0�\n"
    assert machine.output(runner, 2) == "�"
    assert end.exit_code == 0


def test_a_flood_of_lines_is_heard_whole_and_stops_at_a_reader_that_does_not_read(machine: Machine) -> None:
    supervisor = machine.supervisor
    runner = machine.run("def f(n):\n    for number in range(n):\n        print(f'line {number} {\"x\" * 90}')\n")
    quiet = machine.run("def f(x):\n    return x\n")
    supervisor.may_read.clear()
    [flood] = runner.deliver([(300_000,)])
    parent = supervisor.parent.process.pid
    used = memory_mib(parent)
    assert [quiet.call(number) for number in range(200)] == list(range(200))
    assert flood not in runner.statuses
    assert memory_mib(parent) - used < 16
    supervisor.may_read.set()
    runner.value(flood)
    runner.send(wire.Drain())
    machine.end(runner)
    lines = machine.output(runner).splitlines()
    assert len(lines) == 300_000
    assert all(line.startswith(f"line {number} x") for number, line in enumerate(lines))
    assert all(text.endswith("\n") for text in supervisor.texts[runner.hello.session, 1])


def memory_mib(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


def test_start_and_end_are_told_while_a_flood_waits(machine: Machine) -> None:
    flooding = machine.run("def f():\n    while True:\n        print('y' * 200)\n")
    machine.supervisor.may_read.clear()
    flooding.deliver([()])
    second = machine.run(CRASH)
    second.deliver([("exit",)])
    third = machine.run(CRASH)
    assert third.call(1) == 1
    machine.supervisor.may_read.set()
    assert machine.end(second).exit_code == 3
    machine.supervisor.send(wire.Stop(flooding.hello.session, 0.0))
    assert machine.end(flooding).exit_code == -9


def test_a_line_without_an_end_comes_in_pieces_and_in_bounded_memory(machine: Machine) -> None:
    machine.run(CRASH)
    before = memory_mib(machine.supervisor.parent.process.pid)
    runner, end = printed(machine, "for _ in range(300):\n    os.write(1, b'z' * 100_000)")
    assert machine.output(runner) == "z" * 30_000_000
    assert memory_mib(machine.supervisor.parent.process.pid) - before < 16
    assert len(end.tail) <= 8 * 1024


def test_the_tail_is_the_last_lines_of_both_streams(machine: Machine) -> None:
    body = (
        "for number in range(100):\n    print(number)\nsys.stdout.flush()\nos.write(2, b'last words\\n')\nos._exit(9)"
    )
    _, end = printed(machine, body)
    assert end.exit_code == 9
    assert end.tail.splitlines()[-1] in ("last words", "99")
    assert len(end.tail.splitlines()) == 30


def test_a_container_that_cannot_be_forked_is_told_like_one_that_ended(machine: Machine) -> None:
    machine.run(CRASH)
    parent = machine.supervisor.parent.process.pid
    limits = resource.prlimit(parent, resource.RLIMIT_NOFILE)
    resource.prlimit(parent, resource.RLIMIT_NOFILE, (4, limits[1]))
    name = machine.start()
    end = machine.supervisor.end(name)
    assert end.exit_code == 1
    assert "could not be started" in end.tail
    resource.prlimit(parent, resource.RLIMIT_NOFILE, limits)
    assert machine.run(CRASH).call("on") == "on"
