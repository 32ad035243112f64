"""Large arguments and results on one machine: through memory, and nothing of them is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from world import World

PROGRAM = """
    import glob
    import os
    import time

    import nomadfn

    app = nomadfn.App("large")

    @app.function()
    def turned(data):
        return data[::-1], os.listdir(glob.glob(os.environ["TMPDIR"] + "/nomadfn-*/blobs/mm")[0])

    @app.local_entrypoint()
    def main():
        [memory] = glob.glob(os.environ["TMPDIR"] + "/nomadfn-*/blobs/mm")
        print(os.path.realpath(memory))
        data = bytes(range(256)) * 4000
        for result, there in (turned.remote(data), *turned.map([data] * 3), turned.spawn(data).get()):
            print(result == data[::-1], bool(there))
        wide = os.urandom(1000) * 10_000  # Two files, where there is more than one core.
        for result, there in (turned.remote(wide), *turned.map([wide] * 3), turned.spawn(wide).get()):
            print(result == wide[::-1], bool(there))
        until = time.monotonic() + 20
        while os.listdir(memory) and time.monotonic() < until:  # Nobody waits until memory is given back.
            time.sleep(0.01)
        print(os.listdir(memory))
"""


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="this system has no memory file system")
def test_large_values_of_calls_that_wait_go_through_memory_and_spawns_over_the_disk(world: World) -> None:
    memory, *passed, left = world.nomadfn("run", world.write("large.py", PROGRAM)).ok().out.splitlines()[-12:]
    assert passed == (["True True"] * 4 + ["True False"]) * 2
    assert left == "[]"
    assert memory.startswith("/dev/shm/")
    assert not Path(memory).exists()
