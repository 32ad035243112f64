"""One container at its work: what it runs, in which order, and what it gives back."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_harness import Machine, Runner, wait_until
from nomadfn_agent import wire
from nomadfn_agent.wire import payload


@pytest.fixture
def machine(lasting_machine: Machine) -> Iterator[Machine]:
    yield lasting_machine
    lasting_machine.end_all()


ECHO = "def f(*args):\n    return args[0] if len(args) == 1 else args\n"
SLOW = """
import os, time
def f(seconds, mark=""):
    if mark:
        open(mark, "w").close()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)
    return seconds
"""


def begun(runner: Runner, path: str, seconds: float) -> int:
    """Start an input that takes so long, and wait until it runs."""
    [delivery] = runner.deliver([(seconds, path)])
    wait_until(lambda: os.path.exists(path), "the function runs")
    return delivery


def test_a_runner_says_who_it_is_runs_inputs_and_ends_when_it_is_drained(machine: Machine) -> None:
    runner = machine.run(ECHO)
    assert (runner.hello.role, runner.hello.version) == ("runner", wire.VERSION)
    assert runner.hello.python == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert [runner.call(value) for value in (1, "two", None, [3.0])] == [1, "two", None, [3.0]]
    runner.send(wire.Drain())
    assert machine.end(runner).exit_code == 0


def test_inputs_run_in_order_and_each_gives_one_output(machine: Machine) -> None:
    runner = machine.run("seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen), x\n")
    deliveries = runner.deliver([(number,) for number in range(3000)])
    assert [runner.value(one) for one in deliveries] == [(number + 1, number) for number in range(3000)]


def test_a_drain_behind_inputs_lets_them_finish(machine: Machine) -> None:
    runner = machine.run("import time\ndef f(x):\n    time.sleep(0.02)\n    return x\n")
    deliveries = runner.deliver([(number,) for number in range(10)])
    runner.send(wire.Drain())
    assert [runner.value(one) for one in deliveries] == list(range(10))
    assert machine.end(runner).exit_code == 0


def test_the_time_that_user_code_takes_is_told(machine: Machine) -> None:
    runner = machine.run("import time\ndef f(x):\n    time.sleep(x)\n")
    runner.deliver([(0.05,)])
    assert runner.frames.get(timeout=30).run_ns >= 50_000_000


def test_a_recall_takes_back_what_has_not_started_and_it_never_runs(machine: Machine, tmp_path: Path) -> None:
    runner = machine.run(SLOW)
    running = begun(runner, str(tmp_path / "mark"), 600.0)
    waiting = runner.deliver([(0.0, str(tmp_path / "ran")), (1.0, str(tmp_path / "ran"))])
    found = machine.recall(runner, waiting[-1])
    assert (found.after, found.up_to, found.deliveries) == (running, waiting[-1], [])
    [later] = runner.deliver([(0.0,)])
    runner.send(wire.Interrupt([running]))
    assert runner.failure(running).error == "InputCancellation"
    assert [runner.value(later), runner.call(0.0)] == [0.0, 0.0]
    assert runner.returned == set(waiting), "the runner says so, too: what the supervisor said may have been lost"
    assert not os.path.exists(tmp_path / "ran")


def test_what_was_recalled_before_it_came_is_passed_over(machine: Machine) -> None:
    runner = machine.run(ECHO)
    assert machine.recall(runner, 2).after == 0
    deliveries = runner.deliver([(number,) for number in range(4)])
    assert [runner.value(one) for one in deliveries[2:]] == [2, 3]
    assert runner.call(4) == 4
    assert runner.returned == set(deliveries[:2])


def test_outputs_that_are_done_do_not_wait_for_a_long_input_behind_them(machine: Machine) -> None:
    runner = machine.run(SLOW)
    quick, *_ = runner.deliver([(0.0,), (600.0,)])
    assert runner.value(quick) == 0.0


def test_recalls_among_tiny_inputs_lose_none_and_run_none_twice(machine: Machine, tmp_path: Path) -> None:
    log = tmp_path / "ran"
    runner = machine.run(f"log = open({str(log)!r}, 'a')\ndef f(x):\n    log.write(f'{{x}}\\n')\n    log.flush()\n")
    withdrawn: set[int] = set()
    shown: set[int] = set()
    deliveries: list[int] = []
    for _ in range(200):
        deliveries += runner.deliver([(len(deliveries) + number,) for number in range(200)])
        found = machine.recall(runner, deliveries[-random.randrange(1, 200)])
        withdrawn.update(range(found.after + 1, found.up_to + 1))
        shown.update(found.deliveries)
    for one in deliveries:
        if one not in withdrawn:
            runner.outcome(one)
    ran = [int(line) + 1 for line in log.read_text().split()]
    assert len(ran) == len(set(ran)), "an input ran twice"
    assert set(ran) | withdrawn >= set(deliveries), "an input was lost"
    assert not set(ran) & withdrawn, "an input ran that was withdrawn"
    assert shown <= set(ran)
    assert withdrawn


def test_an_interrupt_raises_in_the_input_that_runs_and_only_there(machine: Machine, tmp_path: Path) -> None:
    runner = machine.run(SLOW)
    running = begun(runner, str(tmp_path / "mark"), 600.0)
    later, dropped, last = runner.deliver([(0.0,), (5.0,), (0.1,)])
    runner.send(wire.Interrupt([running, dropped]))
    assert runner.expect(wire.Returned).deliveries == [dropped]
    assert runner.failure(running).error == "InputCancellation"
    assert (runner.value(later), runner.value(last)) == (0.0, 0.1)
    assert dropped not in runner.statuses


def test_an_interrupt_that_comes_too_late_hits_nothing(machine: Machine) -> None:
    runner = machine.run("import time\ndef f(x):\n    time.sleep(0.006)\n    return x\n")
    deliveries = runner.deliver([(number,) for number in range(60)])
    for one in deliveries[::3]:
        runner.send(wire.Interrupt([one]))
    untouched = [one for one in deliveries if one not in deliveries[::3]]
    assert [runner.value(one) for one in untouched] == [one - 1 for one in untouched]
    assert runner.call(7) == 7
    assert runner.returned <= set(deliveries[::3])


def test_a_cancelled_function_may_clean_up_and_sees_the_class_of_nomadfn(machine: Machine, tmp_path: Path) -> None:
    source = """
import time, nomadfn.exception
def f(mark):
    try:
        open(mark, "w").close()
        time.sleep(600)
    except nomadfn.exception.InputCancellation:
        return "cleaned up"
"""
    runner = machine.run(source)
    [delivery] = runner.deliver([(str(tmp_path / "mark"),)])
    wait_until(lambda: os.path.exists(tmp_path / "mark"), "the function runs")
    runner.send(wire.Interrupt([delivery]))
    assert runner.value(delivery) == "cleaned up"


def test_an_interrupt_cancels_an_async_function(machine: Machine, tmp_path: Path) -> None:
    source = "import asyncio\nasync def f(seconds, mark=''):\n    open(mark or '/dev/null', 'w').close()\n"
    runner = machine.run(source + "    await asyncio.sleep(seconds)\n    return seconds\n", is_async=True)
    running = begun(runner, str(tmp_path / "mark"), 600.0)
    [next_one] = runner.deliver([(0.0,)])
    runner.send(wire.Interrupt([running]))
    assert runner.failure(running).error == "InputCancellation"
    assert runner.value(next_one) == 0.0


def test_async_functions_share_one_loop_for_the_container(machine: Machine) -> None:
    source = """
import asyncio
tasks = {}
async def later(x):
    await asyncio.sleep(0)
    return x
async def f(x):
    if x:
        tasks[x] = asyncio.create_task(later(x))
        return id(asyncio.get_running_loop())
    return [await one for one in tasks.values()], id(asyncio.get_running_loop())
"""
    runner = machine.run(source, is_async=True)
    loops = {runner.call(1), runner.call(2)}
    values, last = runner.call(0)
    assert (values, loops) == ([1, 2], {last})


HOLDS_THE_GIL = """
import ctypes, os
lib = ctypes.PyDLL(None)
def f(path):
    if path:
        handle = os.open(path, os.O_RDWR)
        open(path + ".begun", "w").close()
        lib.read(handle, ctypes.create_string_buffer(1), 1)
    return path
"""
"""With a path it reads from that fifo, and lets no other thread run until something comes."""


def test_what_waits_behind_a_function_that_holds_the_gil_is_taken_back(machine: Machine, tmp_path: Path) -> None:
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    runner = machine.run(HOLDS_THE_GIL)
    handle = os.open(fifo, os.O_RDWR)
    try:
        quick, also_quick, long, *waiting = runner.deliver([("",), ("",), (fifo,), ("",), ("",)])
        wait_until(lambda: os.path.exists(fifo + ".begun"), "the function runs")
        unread = runner.deliver([("",), ("",)])
        found = machine.recall(runner, unread[-1])
        assert (found.after, found.up_to) == (long, unread[-1])
        for one in (quick, also_quick):
            if one in found.deliveries:
                at = found.deliveries.index(one)
                assert (found.statuses[at], payload.loads(found.payloads[at])) == (wire.OK, "")
            else:
                assert runner.value(one) == "", "it was sent before"
        assert runner.statuses.keys() <= {quick, also_quick}
    finally:
        os.write(handle, b"\0")
        os.close(handle)
    assert runner.value(long) == fifo
    assert [runner.call(""), runner.call("")] == ["", ""]
    assert runner.returned == {*waiting, *unread}


def test_json_in_gives_json_out(machine: Machine) -> None:
    runner = machine.run("def f(a, b=1):\n    return {'sum': a + b} if b else {1, 2}\n")
    bodies = [{"args": [2]}, {"args": [2], "kwargs": {"b": 5}}, {"kwargs": {"a": 1, "b": 0}}]
    first, second, third = runner.deliver_raw([json.dumps(body).encode() for body in bodies], [wire.JSON])
    assert json.loads(runner.outcome(first)[1]) == {"sum": 3}
    assert json.loads(runner.outcome(second)[1]) == {"sum": 7}
    failure = runner.failure(third)
    assert failure.error == "SerializationError"
    assert "f" in failure.message
    assert "set" in failure.message


def test_one_frame_may_mix_codecs(machine: Machine) -> None:
    runner = machine.run(ECHO)
    json_one, pickle_one = runner.deliver_raw(
        [b'{"args": ["j"]}', payload.dump_arguments(("p",), {})], [wire.JSON, wire.PICKLE]
    )
    assert runner.outcome(json_one) == (wire.OK, b'"j"')
    assert runner.value(pickle_one) == "p"


def test_large_payloads_travel_as_blobs_both_ways(machine: Machine) -> None:
    runner = machine.run(ECHO)
    big = os.urandom(300_000)
    ref = machine.blobs.write(payload.dump_arguments((big,), {}), "ap-1")
    [delivery] = runner.deliver_raw([payload.encode(ref)], [wire.PICKLE | wire.REF])
    status, data = runner.outcome(delivery)
    assert status == wire.OK | wire.REF
    assert payload.loads(machine.blobs.read(payload.decode_ref(data))) == big


def test_a_large_exception_travels_as_a_blob(machine: Machine) -> None:
    runner = machine.run("def f():\n    raise ValueError('x' * 300_000)\n")
    status, data = runner.outcome(runner.deliver([()])[0])
    assert status == wire.EXCEPTION | wire.REF
    raised = payload.decode_raised(machine.blobs.read(payload.decode_ref(data)))
    assert len(payload.loads(raised.pickled).args[0]) == 300_000


def test_a_missing_or_damaged_blob_fails_its_input_alone(machine: Machine) -> None:
    runner = machine.run(ECHO)
    ref = machine.blobs.write(payload.dump_arguments(("x" * 200_000,), {}), "ap-1")
    machine.blobs.delete(ref)
    [delivery] = runner.deliver_raw([payload.encode(ref)], [wire.PICKLE | wire.REF])
    assert runner.failure(delivery).error == "DeserializationError"
    assert runner.call(1) == 1


def test_a_result_over_the_limit_is_refused_with_both_numbers(machine: Machine) -> None:
    runner = machine.run("def f(n):\n    return b'x' * n\n", env={"NOMADFN_MAX_PAYLOAD_BYTES": "200000"})
    failure = runner.failure(runner.deliver([(250_000,)])[0])
    assert failure.error == "RequestSizeError"
    assert "200,000" in failure.message
    assert len(machine.blobs.read(payload.decode_ref(runner.outcome(runner.deliver([(150_000,)])[0])[1])))


def test_an_exception_comes_back_with_the_users_frames_and_paths_only(machine: Machine) -> None:
    source = "import helper\ndef f(x):\n    return helper.divide(x)\n"
    helper = "def divide(x):\n    try:\n        return 1 / x\n    except ZeroDivisionError as error:\n"
    helper += "        raise ValueError('no division') from error\n"
    for is_async in (False, True):
        text = source.replace("def f", "async def f") if is_async else source
        runner = machine.run({"hello.py": text, "helper.py": helper}, is_async=is_async)
        raised = runner.raised(runner.deliver([(0,)])[0])
        assert isinstance(payload.loads(raised.pickled), ValueError)
        assert (raised.type_name, raised.text) == ("ValueError", "no division")
        assert 'File "/home/ada/thumbs/hello.py", line 3, in f' in raised.traceback
        assert 'File "/home/ada/thumbs/helper.py", line 3, in divide' in raised.traceback
        assert "return helper.divide(x)" in raised.traceback
        for hidden in ("nomadfn_agent", "asyncio", machine.code_cache):
            assert hidden not in raised.traceback


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("what", ["SystemExit(3)", "KeyboardInterrupt()", "GeneratorExit()", "Odd('x')"])
def test_what_is_no_exception_fails_its_input_and_not_the_container(
    machine: Machine, what: str, is_async: bool
) -> None:
    source = f"class Odd(BaseException):\n    pass\nasync def f(x):\n    if x:\n        raise {what}\n    return x\n"
    runner = machine.run(source if is_async else source.replace("async ", ""), is_async=is_async)
    raised = runner.raised(runner.deliver([(1,)])[0])
    assert raised.type_name == what.partition("(")[0]
    assert raised.pickled == b""
    assert runner.call(0) == 0
    assert machine.output(runner, 2) == ""


def test_values_that_cannot_be_pickled_fail_with_the_type_and_the_function(machine: Machine) -> None:
    source = """
import threading
class Awkward(Exception):
    def __init__(self, a, b):
        super().__init__(threading.Lock())
    def __str__(self):
        raise RuntimeError("no text")
def f(what):
    if what == "result":
        return threading.Lock()
    raise Awkward(1, 2)
"""
    runner = machine.run(source)
    failure = runner.failure(runner.deliver([("result",)])[0])
    assert failure.error == "SerializationError"
    assert "result of f" in failure.message
    assert "lock" in failure.message
    raised = runner.raised(runner.deliver([("raise",)])[0])
    assert (raised.pickled, raised.type_name) == (b"", "Awkward")
    assert "hello.py" in raised.traceback


def test_arguments_that_cannot_be_read_fail_with_the_reason(machine: Machine) -> None:
    runner = machine.run(ECHO)
    missing = b"\x80\x04cno_such_module\nthing\n."
    for data, codec in ((b"rubbish", wire.PICKLE), (missing, wire.PICKLE), (b"{", wire.JSON), (b"[1]", wire.JSON)):
        failure = runner.failure(runner.deliver_raw([data], [codec])[0])
        assert failure.error == "DeserializationError"
        assert "arguments of f" in failure.message
    assert "no_such_module" in runner.failure(runner.deliver_raw([missing], [wire.PICKLE])[0]).message


def test_wrong_arguments_are_the_users_own_error(machine: Machine) -> None:
    runner = machine.run("def f(a):\n    return a\n")
    raised = runner.raised(runner.deliver([(1, 2)])[0])
    assert raised.type_name == "TypeError"
    assert "nomadfn_agent" not in raised.traceback


def test_user_code_knows_its_input_and_its_call(machine: Machine) -> None:
    source = """
from nomadfn_agent.context import current_function_call_id, current_input_id, is_container
at_import = current_input_id(), current_function_call_id()
def f():
    return current_input_id(), current_function_call_id(), is_container(), at_import
"""
    runner = machine.run(source)
    first, second = runner.deliver([(), ()], call="fc-abc123")
    assert runner.value(first) == ("in-abc123-0", "fc-abc123", True, (None, None))
    assert runner.value(second)[0] == "in-abc123-1"


def test_a_fork_inside_user_code_does_not_speak_for_the_container(machine: Machine) -> None:
    source = """
import multiprocessing, os, signal, time
def sleeper():
    time.sleep(600)
def double(queue, x):
    queue.put(2 * x)
def f(how):
    if how == "return":
        pid = os.fork()
        return os.waitpid(pid, 0)[1] if pid else "the child"
    context = multiprocessing.get_context("fork")
    if how == "terminate":
        process = context.Process(target=sleeper)
        process.start()
        process.terminate()
        process.join()
        return process.exitcode
    queue = context.Queue()
    process = context.Process(target=double, args=(queue, 21))
    process.start()
    try:
        return queue.get(timeout=20)
    finally:
        process.join()
"""
    runner = machine.run(source)
    assert runner.call("return") == 0
    assert runner.call("queue") == 42
    assert runner.call("terminate") == -15
    assert runner.call("return") == 0


def test_user_code_may_do_what_it_likes_with_its_own_process(machine: Machine, tmp_path: Path) -> None:
    source = """
import os, sys, gc, signal, threading
def f(how, arg=None):
    if how == "chdir":
        os.chdir(arg)
    elif how == "stdout":
        class Broken:
            def write(self, text): raise RuntimeError("broken")
            def flush(self): raise RuntimeError("broken")
        sys.stdout = Broken()
        sys.__stdout__.close()
    elif how == "close":
        os.close(1)
    elif how == "signal":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    elif how == "thread":
        threading.Thread(target=threading.Event().wait).start()
    elif how == "environ":
        os.environ.clear()
    return how
"""
    runner = machine.run(source)
    for how in (("chdir", str(tmp_path)), ("stdout",), ("close",), ("signal",), ("thread",), ("environ",)):
        assert runner.call(*how) == how[0]
    runner.send(wire.Drain())
    assert machine.end(runner).exit_code == 0


def test_a_runner_whose_control_service_is_gone_ends_at_once_also_while_a_function_runs(
    machine: Machine, tmp_path: Path
) -> None:
    idle, busy = machine.run(ECHO), machine.run(SLOW)
    begun(busy, str(tmp_path / "mark"), 600.0)
    for runner in (idle, busy):
        runner.connection.close()
        end = machine.end(runner)
        assert end.exit_code == 1
        assert "control service is gone" in end.tail


def test_a_runner_with_a_wrong_token_or_no_listener_says_so_and_ends(machine: Machine) -> None:
    refused = machine.start(NOMADFN_TOKEN="nf_wrong")
    assert "401" in machine.supervisor.end(refused).tail
    alone = machine.start(NOMADFN_DATA_URL="ws://127.0.0.1:1/v1/connect")
    end = machine.supervisor.end(alone)
    assert end.exit_code == 1
    assert "could not join" in end.tail
    assert "Traceback" not in end.tail


def test_random_numbers_differ_between_containers(machine: Machine) -> None:
    source = "import random\nat_import = random.random()\ndef f():\n    return at_import, random.random()\n"
    drawn = [number for _ in range(2) for number in machine.run(source).call()]
    assert len(set(drawn)) == 4


def test_long_and_short_inputs_in_turn_all_come_back(machine: Machine) -> None:
    """The reading changes hands again and again; every input sent meanwhile must still be seen."""
    runner = machine.run("import time\ndef f(x):\n    time.sleep(0.008 if x % 2 else 0)\n    return x\n")
    deliveries: list[int] = []
    for number in range(0, 120, 4):
        deliveries += runner.deliver([(number + step,) for step in range(4)])
        if number % 3 == 0:
            runner.outcome(deliveries[-1])
    assert [runner.value(one) for one in deliveries] == list(range(120))
