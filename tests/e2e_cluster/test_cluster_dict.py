"""A `Dict` on a cluster: the next leader has it, and what was under way when its leader was killed happens once."""

from __future__ import annotations

import pytest
from cluster_world import ClusterWorld
from world import eventually

pytestmark = [pytest.mark.consul, pytest.mark.timeout(300)]

PROGRAM = """
    import nomadfn

    app = nomadfn.App("shared")
    d = nomadfn.Dict.from_name("shared", create_if_missing=True)

    @app.function(max_containers=1)
    def take(n):
        d["large"] = bytes(500_000)
        return d.put("first", n, skip_if_exists=True), d.pop("job", None)
"""
WRITER = """
    import sys
    import nomadfn

    d = nomadfn.Dict.from_name("shared", create_if_missing=True)
    n = 0
    for n in range(10**9):
        # Each is new: whatever is sent again to the next leader must not say that it was there already.
        assert d.put(n, n, skip_if_exists=True), n
        assert d.pop(n) == n
        if n == 20:
            print("going", flush=True)
        if n > 20 and d.contains("enough"):
            break
    print(n, d.len(), flush=True)
"""


def test_the_next_leader_has_it_and_nothing_happens_twice(any_world: ClusterWorld) -> None:
    world = any_world
    world.start_control()
    world.led()
    world.start_control()
    eventually(lambda: "standing by" in world.controls[1].out, world.controls[1])
    world.write("shared.py", PROGRAM)
    world.write("writer.py", WRITER)
    world.nomadfn("deploy", "shared.py", timeout_s=120).ok()
    world.python("-c", "import nomadfn; nomadfn.Dict.from_name('shared', create_if_missing=True)['job'] = 'one'").ok()
    call = ("function", "call", "shared", "take")
    assert world.nomadfn(*call, "1", timeout_s=120).ok().json == [True, "one"]
    writer = world.start("python", "writer.py")
    writer.says("going")
    for _ in range(2):
        leading, before = world.leading(), world.led()
        leading.process.kill()
        eventually(lambda before=before: (one := world.leader()) is not None and one != before, "another")  # type: ignore[misc]
        follower = world.start_control()
        eventually(lambda follower=follower: "standing by" in follower.out, follower)  # type: ignore[misc]
    assert world.nomadfn(*call, "2", timeout_s=120).ok().json == [False, None]
    read = "import nomadfn; d = nomadfn.Dict.from_name('shared'); d['enough'] = 1; print(len(d['large']), d['first'])"
    assert world.python("-c", read).ok().out == "500000 1\n"
    count, left = writer.wait(60).ok().out.splitlines()[-1].split()
    print(f"{count} locks were taken and given back")
    assert left == "3", "large, first and enough"


def test_a_container_that_asks_for_the_first_time_after_a_takeover_finds_the_next_leader(
    any_world: ClusterWorld,
) -> None:
    world = any_world
    world.start_control()
    world.led()
    world.start_control()
    eventually(lambda: "standing by" in world.controls[1].out, world.controls[1])
    world.write("shared.py", PROGRAM.replace("(n):\n", "(n):\n        if n == 0:\n            return 0\n"))
    world.nomadfn("deploy", "shared.py", timeout_s=120).ok()
    call = ("function", "call", "shared", "take")
    assert world.nomadfn(*call, "0", timeout_s=120).ok().json == 0
    leading, before = world.leading(), world.led()
    leading.process.kill()
    eventually(lambda: (one := world.leader()) is not None and one != before, "another")
    assert world.nomadfn(*call, "1", timeout_s=120).ok().json == [True, None]
