"""Leaders that come and go under load, and what becomes of what they have accepted."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_world import ClusterWorld, made_on_double
from consul_server import running_consul
from load import Load, is_alive
from world import Running, eventually

from nomadfn.adapters.consul_store import Shard
from nomadfn.sdk.leader import Leader

AWAY_S = float(os.environ.get("NOMADFN_TEST_AWAY_S", "3"))
KILLS = int(os.environ.get("NOMADFN_TEST_KILLS", "1"))
BACKLOG_INPUTS = int(os.environ.get("NOMADFN_TEST_BACKLOG", "10000"))
"""More, and longer, are for a trial: 10 kills, 30 s, 200,000 inputs."""
pytestmark = [pytest.mark.consul, pytest.mark.timeout(240 + 60 * KILLS)]


@pytest.fixture
def load(any_world: ClusterWorld, tmp_path: Path) -> Load:
    """A leader, a standby, and a function."""
    return prepared(any_world, tmp_path)


@pytest.fixture
def away_load(tmp_path: Path) -> Iterator[Load]:
    """The same, on the double and a Consul of its own, which the test may take away."""
    with running_consul(tmp_path / "consul") as consul, made_on_double(tmp_path, consul) as world:
        yield prepared(world, tmp_path)


def prepared(world: ClusterWorld, folder: Path) -> Load:
    world.start_control()
    world.led()
    add_standby(world)
    load = Load(world, folder / "marks")
    load.deploy()
    return load


def add_standby(world: ClusterWorld) -> None:
    """One more control service that stands by; returns when the agents know where, should it lead."""
    standby = world.start_control()
    eventually(lambda: "standing by at " in standby.out, standby)
    url = standby.out.partition("standing by at ")[2].partition(";")[0]
    leading = world.leading()
    eventually(lambda: f"{url} stands by" in leading.out, leading)


def another_leads(world: ClusterWorld, before: Leader) -> None:
    eventually(lambda: (found := world.leader()) is not None and found != before, "another leader", 90)


def test_leaders_are_killed_under_load_and_nothing_is_lost_or_runs_twice(load: Load) -> None:
    world = load.world
    load.start("spawn", "remote", "map")
    led_s, served_s, killed = [], [], []
    for _ in range(KILLS):
        before, leading = world.led(), world.leading()
        killed_at = time.monotonic()
        leading.process.send_signal(signal.SIGKILL)
        killed.append(killed_at)
        another_leads(world, before)
        led_s.append(time.monotonic() - killed_at)
        load.goes_on("remote", "result", killed_at)
        load.goes_on("spawn", "acknowledged", killed_at)
        served_s.append(min(end for began, end in load.times("spawn", "acknowledged") if began > killed_at) - killed_at)
        add_standby(world)
    counts = load.finish()
    for what, times_s in (("announced", led_s), ("a spawn made after the kill acknowledged", served_s)):
        print(f"{what} after {statistics.median(times_s):.3f} s in the middle, {max(times_s):.3f} s at most: {times_s}")
    print(f"{counts}, killed at {killed}, load {os.getloadavg()}, run again {load.run_again()}")
    assert load.run_again() == {}
    assert len(load.runs()) == sum(counts.values())


@pytest.mark.parametrize("wakes", ["as soon as another one leads", "when all goes on without it"])
def test_a_leader_frozen_beyond_its_lease_is_refused_and_steps_down(load: Load, wakes: str) -> None:
    """What it took and had not written when it was frozen is written by nobody but the next leader."""
    world = load.world
    load.start("spawn", "map")
    leading, before = world.leading(), world.led()
    containers = load.processes()
    leading.process.send_signal(signal.SIGSTOP)
    frozen_at = time.monotonic()
    try:
        another_leads(world, before)
        led_at = time.monotonic()
        # Nobody has closed a connection, and yet everybody finds the new one.
        load.goes_on("spawn", "acknowledged", frozen_at)
        if wakes.startswith("when"):
            eventually(lambda: sum(at > led_at for _, at in load.times("map", "result")) > 300, "maps go on", 90)
    finally:
        leading.process.send_signal(signal.SIGCONT)
    ended = leading.wait()
    assert ended.code == 5, ended
    assert "stepping down" in ended.err
    counts = load.finish()
    print(f"another leader after {led_at - frozen_at:.1f} s; {counts}; run again {load.run_again()}")
    assert load.run_again_in_vain() == {}
    assert [one for one in containers if not is_alive(one)] == [], "no container had a reason to end"
    epochs = [epoch for epoch, _ in segments(world)]
    assert epochs == sorted(epochs)


def segments(world: ClusterWorld) -> list[tuple[int, str]]:
    """Epoch and key of each segment of the world's journal, in the order of their numbers."""
    store = world.consul.store()
    try:
        entries = store.below(f"{Shard(world.name).prefix}journal/segments/")
        return [(json.loads(one.value.partition(b"\n")[0])["epoch"], one.key) for one in entries]
    finally:
        store.close()


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_calls_and_maps_go_on_while_consul_is_away_and_spawns_wait(away_load: Load, how: str) -> None:
    load, consul = away_load, away_load.world.consul
    load.start("spawn", "remote", "map")
    leading = load.world.leading()
    away, back = {"killed": (consul.kill, consul.restart), "frozen": (consul.pause, consul.resume)}[how]
    away()
    away_at = time.monotonic()
    load.goes_on("remote", "result", away_at)
    eventually(lambda: sum(at > away_at for _, at in load.times("map", "result")) > 100, "maps go on")
    eventually(lambda: "spawns wait until they are durable" in leading.out, "the leader says that spawns wait", 60)
    eventually(lambda: time.monotonic() - away_at > AWAY_S, "the time is over", AWAY_S + 10)
    # One may have been on its way when Consul went away.
    assert load.answered("spawn", "acknowledged", away_at) <= 1
    back()
    back_at = time.monotonic()
    load.goes_on("spawn", "acknowledged", back_at)
    assert not leading.ended
    assert "Consul answers again" in leading.out
    counts = load.finish()
    print(f"Consul was away for {back_at - away_at:.1f} s; {counts}")
    assert load.run_again() == {}
    assert len(load.runs()) == sum(counts.values())


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_nothing_hangs_at_the_end_when_consul_never_comes_back(away_load: Load, how: str) -> None:
    world = away_load.world
    away_load.start("spawn", "map")
    leading = world.leading()
    {"killed": world.consul.kill, "frozen": world.consul.pause}[how]()
    eventually(lambda: "spawns wait until they are durable" in leading.out, "a spawn waits", 60)
    told_at = time.monotonic()
    for control in world.controls:
        control.process.terminate()
    for control in world.controls:
        control.wait(60).without_our_frames()
        print(f"ended {time.monotonic() - told_at:.1f} s after it was told to, with code {control.process.returncode}")
    for program in away_load.programs.values():
        program.process.kill()


def test_settings_in_consul_are_live_and_wrong_ones_change_nothing(load: Load) -> None:
    world = load.world
    client = world.consul.client()
    key = f"nomadfn/{world.name}/overrides/load/mark"

    def setting(name: str) -> object:
        return world.explain("load", "mark")["settings"][name]

    def put(value: str) -> None:
        assert client.kv.put(key, value)

    def says(words: str) -> bool:
        return any(words in one.out + one.err for one in world.controls if not one.ended)

    put('{"max_containers": 3, "scaledown_window_s": 30}')
    eventually(lambda: setting("max_containers") == 3, "the setting holds")
    for value, words in (
        ('{"max_containers": 7', f"{key} in Consul is not JSON"),
        ('{"max_containers": "7"}', "max_containers must be a whole number"),
        ('{"max_container": 7}', "overrides are an object with some of"),
        ("7", "overrides are an object with some of"),
        ('{"min_containers": 5, "max_containers": 4}', "min_containers=5 is more than max_containers=4"),
    ):
        put(value)
        eventually(lambda words=words: says(words), f"{words} is said")
        assert setting("max_containers") == 3
    # A leader that finds such a value in its place serves all the same.
    put("{")
    before = world.led()
    world.leading().process.send_signal(signal.SIGKILL)
    another_leads(world, before)
    eventually(lambda: setting("max_containers") == 4, "the program's own setting holds")
    put('{"max_containers": 2}')
    eventually(lambda: setting("max_containers") == 2, "the setting holds")
    assert client.kv.delete(key)
    eventually(lambda: setting("max_containers") == 4, "it holds no more")
    client.http.session.close()


BACKLOG = """
    import os, sys, time
    import nomadfn

    app = nomadfn.App("backlog")

    @app.function(max_containers=1)
    def held(text, gate):
        while not os.path.exists(gate):
            time.sleep(0.02)
        return len(text)

    if __name__ == "__main__":
        function = nomadfn.Function.from_name("backlog", "held")
        count, gate = int(sys.argv[1]), sys.argv[2]
        texts = [os.urandom(140).hex() for _ in range(count)]
        began = time.monotonic()
        call = function.spawn_map(texts, kwargs={"gate": gate})
        print("rate", count / (time.monotonic() - began), flush=True)
        for index in (0, count // 2, count - 1):
            print("result", call.get(index=index, timeout=600), flush=True)
        print(sum(call.iter()), flush=True)
"""


@pytest.fixture
def backlog(any_world: ClusterWorld, tmp_path: Path) -> Iterator[ClusterWorld]:
    """A leader with spawns that wait; all of them have their results at the end."""
    world, gate = any_world, tmp_path / "gate"
    world.start_control()
    world.led()
    world.write("backlog.py", BACKLOG)
    world.nomadfn("deploy", "backlog.py", timeout_s=120).ok()
    program = world.start("python", "backlog.py", BACKLOG_INPUTS, gate)
    eventually(lambda: "rate" in program.out or program.ended, program, 300)
    held_bytes = consul_bytes(world)
    print(f"{program.out.strip()} spawns/s; Consul holds {held_bytes:,} bytes of {BACKLOG_INPUTS:,} spawns")
    assert held_bytes < 1024 * 1024
    yield world
    gate.touch()
    done = program.wait(600).ok()
    assert int(done.out.split()[-1]) == 280 * BACKLOG_INPUTS


def ended_by(world: ClusterWorld, number: signal.Signals) -> float:
    """The leader is told to end, or made to; returns when."""
    world.leading().process.send_signal(number)
    return time.monotonic()


def read_by(control: Running) -> int:
    """How many segments it has read when it took over."""
    return int(control.out.partition("and has read ")[2].split()[0])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_leader_has_read_a_backlog_already(backlog: ClusterWorld, number: signal.Signals) -> None:
    world = backlog
    add_standby(world)
    written = int(segments(world)[-1][1][-12:])
    before, standby = world.led(), world.controls[1]
    url = standby.out.partition("standing by at ")[2].partition(";")[0]
    eventually(lambda: healthz(url)["segment"] == written, standby, 120)
    ended_at = ended_by(world, number)
    while (found := world.leader()) is None or found == before:
        assert time.monotonic() < ended_at + 60
    print(f"another leader after {(time.monotonic() - ended_at) * 1000:.0f} ms; load {os.getloadavg()}")
    assert read_by(standby) < 5


def test_a_leader_that_has_read_nothing_yet_reads_all_of_a_backlog(backlog: ClusterWorld) -> None:
    world = backlog
    before = world.led()
    ended_by(world, signal.SIGKILL)
    fresh = world.start_control()
    another_leads(world, before)
    eventually(lambda: "leads at" in fresh.out, fresh)
    cpu_s = sum(map(int, Path(f"/proc/{fresh.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    print(f"{cpu_s / os.sysconf('SC_CLK_TCK'):.2f} s of processor time since its start; load {os.getloadavg()}")
    print(fresh.out)
    assert read_by(fresh) >= BACKLOG_INPUTS // 20_000


def healthz(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/healthz", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def consul_bytes(world: ClusterWorld) -> int:
    """All that is kept of the world's cluster in Consul, keys and values."""
    store = world.consul.store()
    try:
        return sum(len(one.key) + len(one.value) for one in store.below(f"nomadfn/{world.name}"))
    finally:
        store.close()
