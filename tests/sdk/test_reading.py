"""Who reads the link: callers that wait read for themselves, and whatever they leave or break off is not lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from nomadfn_agent import wire
from nomadfn_agent.wire.link import Link

from nomadfn import App
from nomadfn.sdk import reading
from nomadfn.sdk.calls import SingleCall
from nomadfn.sdk.reading import Reader

from .conftest import Double, Recorder


@pytest.fixture
def verb(app: App) -> Any:
    return app.registered_functions["square"]


@pytest.fixture
def reader(app: App) -> Reader:
    assert app._running is not None
    return app._running.client._reader


@pytest.fixture
def takers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The thread that took each result."""
    names: list[str] = []
    take = SingleCall.take

    def note(self: SingleCall, frame: wire.Results) -> None:
        names.append(threading.current_thread().name)
        take(self, frame)

    monkeypatch.setattr(SingleCall, "take", note)
    return names


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is given up for the time that it takes: what happens has another cause."""
    monkeypatch.setattr(reading, "DIRECT_S", 20.0)
    monkeypatch.setattr(reading, "ASIDE_S", 5.0)


def until_direct(verb: Any, takers: list[str]) -> None:
    """Call until the reader thread stands aside."""
    for number in range(1_000):
        assert verb.remote(20 + number) == (20 + number) ** 2
        if takers[-1] == "MainThread":
            return
    raise AssertionError("the reader thread has read everything")


@contextmanager
def calling(verb: Any, double: Double, got: list[Any], *numbers: int) -> Iterator[None]:
    """Threads that are in a call each while the block runs, whose inputs the service holds back; all end after it."""
    double.hold = True
    before = double.inputs()
    threads = [threading.Thread(target=lambda x=x: got.append(verb.remote(x)), name=f"caller-{x}") for x in numbers]
    for thread in threads:
        thread.start()
    double.wait_until(lambda: double.inputs() == before + len(numbers))
    yield
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_a_program_that_calls_and_waits_reads_its_results_itself(verb: Any, takers: list[str], patient: None) -> None:
    until_direct(verb, takers)
    takers.clear()
    assert [verb.remote(x) for x in range(20, 320)] == [x * x for x in range(20, 320)]
    assert set(takers) == {"MainThread"}


def test_results_that_callers_read_are_acknowledged(
    verb: Any, takers: list[str], double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "ACK_EVERY_RESULTS", 10)
    until_direct(verb, takers)
    for x in range(20, 120):
        verb.remote(x)
    assert len(takers) - double.acked <= 20
    double.wait_until(lambda: double.acked == len(takers))  # the rest once nobody calls


def test_when_nobody_calls_for_a_while_the_reader_thread_reads_again(
    verb: Any, takers: list[str], double: Double, recorder: Recorder
) -> None:
    until_direct(verb, takers)
    double.connections[-1].send(wire.encode(wire.Log("ct-1", 1, "hello\n", "app", "square", 0)))
    wait_for(lambda: bool(recorder.lines))
    until_direct(verb, takers)


def test_a_line_that_came_before_the_result_is_shown_before_it(
    verb: Any, takers: list[str], double: Double, recorder: Recorder, patient: None
) -> None:
    until_direct(verb, takers)
    for number in range(20, 40):
        double.connections[-1].send(wire.encode(wire.Log("ct-1", 1, f"{number}\n", "app", "square", 0)))
        verb.remote(number)
        assert recorder.lines[-1].text == f"{number}\n"
        assert takers[-1] == "MainThread"


def test_what_is_not_for_the_caller_that_reads_reaches_its_own(
    verb: Any, takers: list[str], double: Double, recorder: Recorder, patient: None
) -> None:
    until_direct(verb, takers)
    got: list[Any] = []
    with calling(verb, double, got, 7):
        double.connections[-1].send(wire.encode(wire.Log("ct-1", 1, "hello\n", "app", "square", 0)))
        wait_for(lambda: bool(recorder.lines))
        double.release()
    assert got == [49]
    assert takers[-1] == "caller-7"


def test_a_result_among_those_of_others_is_not_waited_for(
    verb: Any, takers: list[str], double: Double, patient: None
) -> None:
    until_direct(verb, takers)
    got: list[Any] = []
    with calling(verb, double, got, 7, 8):
        calls = [submit.call for submit, _ in double.held]
        results = [double._compute(submit, place) for submit, place in double.held]
        double.held.clear()
        double.hold = False
        many = wire.ManyResults(10_000, calls, [0, 0], [wire.OK, wire.OK], [data for _, data in results], [0, 0])
        double.connections[-1].send(wire.encode(many))
    assert sorted(got) == [49, 64]


def test_a_call_that_takes_long_is_left_to_the_reader_thread(
    verb: Any, takers: list[str], double: Double, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "ASIDE_S", 5.0)
    until_direct(verb, takers)
    got: list[Any] = []
    with calling(verb, double, got, 7):
        wait_for(lambda: not reader._aside)
        double.release()
    assert got == [49]
    assert takers[-1] == "nomadfn-reader"


def test_a_connection_that_is_lost_under_a_caller_comes_back(
    verb: Any, takers: list[str], double: Double, patient: None
) -> None:
    until_direct(verb, takers)
    got: list[Any] = []
    with calling(verb, double, got, 7):
        double.held.clear()  # the input is lost with the connection
        double.hold = False
        double.cut()
    assert got == [49]


def test_an_async_call_and_a_map_find_the_reader_thread(verb: Any, takers: list[str], patient: None) -> None:
    import asyncio

    until_direct(verb, takers)
    assert asyncio.run(verb.remote.aio(9)) == 81
    assert takers[-1] == "nomadfn-reader"
    until_direct(verb, takers)
    assert list(verb.map(range(20, 320))) == [x * x for x in range(20, 320)]


def test_a_signal_handler_may_call_while_its_thread_waits_for_a_result(
    verb: Any, takers: list[str], double: Double, reader: Reader
) -> None:
    until_direct(verb, takers)
    inner: list[int] = []
    double.hold = True

    def handle(number: int, frame: Any) -> None:
        double.held.clear()  # the outer input comes again with the next connection
        double.hold = False
        inner.append(verb.remote(9))

    before = signal.signal(signal.SIGUSR1, handle)
    main = threading.get_ident()
    inputs = double.inputs()

    def strike() -> None:
        double.wait_until(lambda: double.inputs() == inputs + 1)
        wait_for(reader._right.locked)  # It waits by now, and does not send any more.
        signal.pthread_kill(main, signal.SIGUSR1)

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        assert verb.remote(8) == 64
    finally:
        striker.join(20)
        signal.signal(signal.SIGUSR1, before)
    assert inner == [81]


def test_a_caller_stays_awake_only_while_calls_are_short(
    verb: Any, takers: list[str], double: Double, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spins: list[float] = []
    spin = Link.spin

    def note(self: Link, until: float) -> bool:
        spins.append(until)
        return spin(self, until)

    monkeypatch.setattr(Link, "spin", note)
    monkeypatch.setattr(reading, "SEVERAL_PROCESSORS", True)
    monkeypatch.setattr(reading, "SPIN_S", 20.0)
    until_direct(verb, takers)
    for x in range(20, 40):
        verb.remote(x)
    assert spins
    monkeypatch.setattr(reading, "SPIN_S", 0.0)
    verb.remote(20)
    while spins:
        spins.clear()
        verb.remote(20)
    monkeypatch.setattr(reading, "SPIN_S", 20.0)
    verb.remote(20)
    assert not spins


STORM = """
import random, signal
import nomadfn

app = nomadfn.App("storm")

@app.function(max_containers=1)
def add(x):
    return x + 1

class Now(BaseException):
    pass

def strike(number, frame):
    raise Now

if __name__ == "__main__":
    random.seed(3)
    done = cut = 0
    with app.run():
        add.remote(0)
        signal.signal(signal.SIGALRM, strike)
        for x in range(2_000):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00005, 0.0015))
                    got = add.remote(x)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                assert got == x + 1, (got, x)
                done += 1
            except Now:
                cut += 1
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        assert [add.remote(x) for x in range(100)] == list(range(1, 101))
    assert cut and done + cut == 2_000, (done, cut)
    print("all right")
"""


def test_calls_that_are_interrupted_anywhere_lose_nothing_and_mix_up_nothing(tmp_path: Path) -> None:
    (tmp_path / "storm.py").write_text(STORM)
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "storm.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all right\n")


def wait_for(condition: Any) -> None:
    """Look again until it holds, which another thread sees to."""
    turn = threading.Event()
    for _ in range(2_000):
        if condition():
            return
        turn.wait(0.01)
    raise AssertionError("waited in vain")
