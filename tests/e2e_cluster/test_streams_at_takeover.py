"""Generators go on where they are when another control service takes over: no value is lost, and none comes twice."""

from __future__ import annotations

import signal

import pytest
from cluster_world import ClusterWorld
from world import eventually

pytestmark = [pytest.mark.consul, pytest.mark.timeout(300)]

PROGRAM = """
    import asyncio, time
    import nomadfn

    app = nomadfn.App("streams")

    @app.function(scaledown_window=30)
    def steady(n):
        for i in range(n):
            yield i
            time.sleep(0.01)

    @app.function(scaledown_window=30)
    @nomadfn.concurrent(max_inputs=4)
    async def large(n, size):
        # Far ahead of its reader: it waits for room most of the time.
        for i in range(n):
            yield i, bytes(size)
"""
READER = """
    import asyncio, sys
    import nomadfn

    steady, large = (nomadfn.Function.from_name("streams", name) for name in ("steady", "large"))
    begun = 0

    def note(i):
        global begun
        begun += i == 20
        if begun == 3:
            begun += 1
            print("begun", flush=True)

    async def read_steady():
        found = []
        async for i in steady.remote_gen.aio(400):
            found.append(i)
            note(i)
        assert found == list(range(400)), found

    async def read_large(size):
        found = []
        async for i, data in large.remote_gen.aio(100, size):
            assert len(data) == size
            found.append(i)
            note(i)
            await asyncio.sleep(0.03)
        assert found == list(range(100)), found

    async def main():
        await asyncio.gather(read_steady(), read_large(100_000), read_large(400_000))

    asyncio.run(main())
    print("all", flush=True)
"""


@pytest.fixture
def deployed(any_world: ClusterWorld) -> ClusterWorld:
    any_world.start_control()
    any_world.led()
    any_world.start_control()
    eventually(lambda: "standing by" in any_world.controls[1].out, any_world.controls[1])
    any_world.write("streams.py", PROGRAM)
    any_world.write("reader.py", READER)
    any_world.nomadfn("deploy", "streams.py", timeout_s=120).ok()
    return any_world


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_streams_go_on_through_a_takeover(deployed: ClusterWorld, end: signal.Signals) -> None:
    reader = deployed.start("python", "reader.py")
    reader.says("begun")
    leading, before = deployed.leading(), deployed.led()
    leading.process.send_signal(end)
    eventually(lambda: (found := deployed.leader()) is not None and found != before, "another leader")
    assert "all" in reader.wait(60).ok().out
