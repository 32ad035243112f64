"""A `Queue` on a cluster: each value goes out once and in its turn while one leader after the other is killed."""

from __future__ import annotations

import pytest
from cluster_world import ClusterWorld
from world import eventually

pytestmark = [pytest.mark.consul, pytest.mark.timeout(300)]

PRODUCER = """
    import sys
    import nomadfn

    q = nomadfn.Queue.from_name("jobs", create_if_missing=True)
    stop = nomadfn.Dict.from_name("stop", create_if_missing=True)
    n = 0
    while not stop.contains("now"):
        q.put(n)
        n += 1
        if n == 20:
            print("going", flush=True)
    q.put(None)
    print(n, flush=True)
"""
CONSUMER = """
    import nomadfn

    q = nomadfn.Queue.from_name("jobs", create_if_missing=True)
    q.hydrate()
    print("ready", flush=True)
    expected = 0
    while (n := q.get()) is not None:
        assert n == expected, (n, expected)
        expected += 1
    print(expected, flush=True)
"""


def test_each_value_goes_out_once_and_in_its_turn_whoever_leads(any_world: ClusterWorld) -> None:
    world = any_world
    world.start_control()
    world.led()
    world.start_control()
    eventually(lambda: "standing by" in world.controls[1].out, world.controls[1])
    world.write("producer.py", PRODUCER)
    world.write("consumer.py", CONSUMER)
    consumer, producer = world.start("python", "consumer.py"), world.start("python", "producer.py")
    producer.says("going")
    consumer.says("ready")
    for _ in range(3):
        leading, before = world.leading(), world.led()
        leading.process.kill()
        eventually(lambda before=before: (one := world.leader()) is not None and one != before, "another")  # type: ignore[misc]
        follower = world.start_control()
        eventually(lambda follower=follower: "standing by" in follower.out, follower)  # type: ignore[misc]
    world.python("-c", "import nomadfn; nomadfn.Dict.from_name('stop')['now'] = 1", timeout_s=60).ok()
    put, got = producer.wait(60).ok().out.split()[-1], consumer.wait(60).ok().out.split()[-1]
    print(f"{got} values")
    assert put == got
