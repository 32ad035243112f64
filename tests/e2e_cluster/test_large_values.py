"""Values of 5 MiB where program, control service and containers share no folder, and where there is no store at all."""

from __future__ import annotations

import pytest
from cluster_world import ClusterWorld

pytestmark = [pytest.mark.consul, pytest.mark.timeout(240)]

PROGRAM = """
    import asyncio, hashlib, os
    import nomadfn

    app = nomadfn.App("large")
    LARGE = os.urandom(5 << 20)

    @app.function(max_containers=2, scaledown_window=30, memory=256)
    def mirror(data):
        return data[::-1]

    @app.function(max_containers=1, scaledown_window=30, memory=256)
    def outer(count):
        # A container calls its own app, with a large argument and a large result.
        return hashlib.sha256(mirror.remote(bytes(count))).hexdigest()

    @app.function(max_containers=1, scaledown_window=30, memory=256)
    def picky(count):
        raise ValueError("x" * count)

    async def beside():
        ticks = 0
        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)
        ticking = asyncio.ensure_future(tick())
        results = [one async for one in mirror.map.aio([LARGE, LARGE[1:]])]
        assert await mirror.remote.aio(LARGE) == LARGE[::-1]
        call = await mirror.spawn.aio(LARGE)
        assert await call.get.aio() == LARGE[::-1]
        ticking.cancel()
        assert results == [LARGE[::-1], LARGE[:0:-1]]
        assert ticks > 10, ticks

    @app.local_entrypoint()
    def main():
        assert mirror.remote(LARGE) == LARGE[::-1]
        assert list(mirror.map([LARGE, b"small", LARGE[7:]])) == [LARGE[::-1], b"llams", LARGE[7:][::-1]]
        call = mirror.spawn(LARGE)
        assert call.get() == call.get() == LARGE[::-1]
        assert outer.remote(5 << 20) == hashlib.sha256(bytes(5 << 20)).hexdigest()
        try:
            picky.remote(1 << 20)
        except ValueError as error:
            assert len(str(error)) == 1 << 20
        asyncio.run(beside())
        print("all there")
"""
SMALL = """
    import nomadfn

    app = nomadfn.App("small")

    @app.function(max_containers=2, scaledown_window=30)
    def repeat(text, count):
        return text * count

    @app.local_entrypoint()
    def main():
        assert repeat.remote("x", 1000) == "x" * 1000
        assert repeat.spawn("y", 3).get() == "yyy"
        for args in (("x" * 200_000, 1), ("x", 200_000)):
            try:
                repeat.remote(*args)
            except nomadfn.exception.RequestSizeError as error:
                print(error)
"""


def test_large_values_travel_without_a_shared_folder(any_world: ClusterWorld) -> None:
    any_world.store_blobs_in("memory://blobs")  # the memory of the control service: nobody else sees that
    any_world.start_control()
    any_world.led()
    any_world.write("large.py", PROGRAM)
    assert any_world.nomadfn("run", "large.py", timeout_s=180).ok().out.strip() == "all there"


def test_without_a_blob_store_small_values_work_and_large_ones_name_the_setting(any_world: ClusterWorld) -> None:
    any_world.store_blobs_in("")
    any_world.start_control()
    any_world.led()
    any_world.write("small.py", SMALL)
    arguments, result = any_world.nomadfn("run", "small.py", timeout_s=180).ok().out.strip().splitlines()
    for text, what in ((arguments, "the arguments of repeat have 200,"), (result, "the result of repeat has 200,")):
        assert what in text
        assert "over the 131,072 that travel without a blob store: set blobs in the profile" in text
