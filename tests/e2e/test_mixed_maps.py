"""Maps of long and short inputs: nothing that was sent ahead waits behind a long one."""

from __future__ import annotations

import os

import pytest
from world import World

PROGRAM = """
    import ctypes
    import os
    import sys

    import nomadfn

    app = nomadfn.App("mixed")
    RELEASE = os.environ.get("RELEASE", "")
    lib = ctypes.PyDLL(None)

    @app.function(max_containers=4, env={"RELEASE": RELEASE})
    def work(how):
        if how:
            handle = os.open(RELEASE, os.O_RDWR)
            buffer = ctypes.create_string_buffer(1)
            lib.read(handle, buffer, 1) if how == "gil" else os.read(handle, 1)
        return how

    @app.local_entrypoint()
    def main(how: str):
        list(work.map([""] * 2000))  # Its run time is known, and much is sent ahead.
        inputs = [how if number in (500, 1500, 2500) else "" for number in range(4000)]
        results = work.map(inputs, order_outputs=False)
        short = sum(next(results) == "" for _ in range(3997))
        print(f"{short} short ones are done", flush=True)
        handle = os.open(RELEASE, os.O_RDWR)
        os.write(handle, b"123")
        print(sorted(results), flush=True)
"""


@pytest.mark.parametrize("how", ["gil", "sleep"])
def test_every_short_input_of_a_map_is_done_while_long_ones_keep_all_containers_but_one(world: World, how: str) -> None:
    """The long ones end only once every short one has its result, so a single one behind them would wait for ever."""
    release = world.folder / "release"
    os.mkfifo(release)
    program = world.write("mixed.py", PROGRAM)
    done = world.nomadfn("run", program, "--how", how, RELEASE=str(release)).ok()
    assert done.out.splitlines()[-2:] == ["3997 short ones are done", str([how] * 3)]
