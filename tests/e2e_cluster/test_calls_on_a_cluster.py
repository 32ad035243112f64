"""Call options, batches that are halved, call graphs and single inputs, on Nomad as on one machine."""

from __future__ import annotations

from cluster_world import ClusterWorld
from world import eventually

PROGRAM = """
    import time
    import nomadfn

    app = nomadfn.App("asked")

    @app.function(max_containers=1)
    def leaf(x):
        time.sleep(x)
        return x

    @app.function(max_containers=1)
    def top():
        return leaf.call_options(priority=3, deadline=600).spawn(0).get()

    @app.function(max_containers=1)
    @nomadfn.batched(max_batch_size=4, wait_ms=1_000, on_batch_error="bisect")
    def picky(values):
        if 2 in values:
            raise ValueError(str(values))
        return values
"""

CALLER = """
    import nomadfn

    leaf, top, picky = (nomadfn.Function.from_name("asked", name) for name in ("leaf", "top", "picky"))
    call = top.spawn()
    print(call.get())
    [info] = call.get_call_graph()
    print(info.function_name, [one.function_name for one in info.children])
    print([str(one) for one in picky.map(range(4), return_exceptions=True)])
    print(list(leaf.map([0] * 20, max_ahead=3)) == [0] * 20)
    long = leaf.spawn(600)
    late = leaf.call_options(deadline=2)
    try:
        late.remote(0)
    except TimeoutError as error:
        print(type(error).__name__)
    print("in-" + long.object_id.removeprefix("fc-") + "-0")
"""


def test_calls_are_what_they_are_on_one_machine(any_world: ClusterWorld) -> None:
    world = any_world
    world.start_control()
    world.led()
    world.write("asked.py", PROGRAM)
    world.write("caller.py", CALLER)
    world.nomadfn("deploy", "asked.py", timeout_s=120).ok()
    *found, long = world.python("caller.py", timeout_s=180).ok().out.splitlines()
    assert found == ["0", "top ['leaf']", "['0', '1', '[2]', '3']", "True", "DeadlineExceededError"]
    assert "running in ct-" in world.nomadfn("input", "get", long).ok().out

    world.start_control()
    world.leading().process.kill()
    eventually(
        lambda: "asked leaf" in world.nomadfn("input", "get", long).out, "whoever leads then knows the input", 60
    )
    assert "Cancelled" in world.nomadfn("input", "cancel", long, "--terminate-containers").ok().out
    eventually(lambda: "cancelled" in world.nomadfn("input", "get", long).ok().out, "it is cancelled")
