"""Single inputs on the command line, call graphs, and the rest of `FunctionCall`, in real processes."""

from __future__ import annotations

from typing import Any

from world import World, eventually

GRAPH = """
    import asyncio, time
    import nomadfn
    from nomadfn.call_graph import InputInfo, InputStatus

    app = nomadfn.App("graph")

    @app.function()
    def leaf(x):
        if x == 3:
            raise ValueError("three")
        return x

    @app.function()
    def middle(n):
        return list(leaf.map(range(n), return_exceptions=True))

    @app.function()
    def top():
        spawned = leaf.spawn(7)
        return len(middle.remote(5)) + spawned.get(), spawned.object_id

    @app.function()
    def slow(x):
        time.sleep(x)
        if x == 0.5:
            raise LookupError("half")
        return x

    def shape(infos):
        return sorted((one.function_name, one.status.name, shape(one.children)) for one in infos)

    @app.local_entrypoint()
    def graphs():
        call = top.spawn()
        _, child = call.get()
        graph = call.get_call_graph()
        assert isinstance(graph[0], InputInfo) and graph[0].status is InputStatus.SUCCESS
        assert graph[0].function_call_id == call.object_id and graph[0].module_name == "graph"
        print(shape(graph))
        print(shape(nomadfn.FunctionCall.from_id(child).get_call_graph()) == shape(graph))
        print(shape(asyncio.run(call.get_call_graph.aio())) == shape(graph))

    @app.local_entrypoint()
    def gathers():
        calls = [slow.spawn(600), slow.spawn(0.5), slow.spawn(0)]
        try:
            nomadfn.FunctionCall.gather(*calls)
        except LookupError as error:
            print("the first that fails:", error)
        print([one.status.name for one in calls[0].get_call_graph()])
        calls[0].cancel()
        print([one.status.name for one in calls[0].get_call_graph()])
        print(nomadfn.FunctionCall.gather(*[slow.spawn(x / 100) for x in range(9, -1, -1)]))
        print(asyncio.run(nomadfn.FunctionCall.gather.aio(calls[2], calls[2])), nomadfn.FunctionCall.gather())
        try:
            nomadfn.FunctionCall.gather([calls[2]])
        except nomadfn.exception.InvalidError as error:
            print(error)

    @app.local_entrypoint()
    def iterations():
        call: nomadfn.FunctionCall[float] = slow.spawn_map([0, 0.1, 0.2])
        print(list(call.iter()), list(call.iter(start=1)), list(call.iter(end=2)), list(call.iter(start=3)))
        for wrong in ({"start": -1}, {"end": 9}, {"start": 2, "end": 1}):
            try:
                list(call.iter(**wrong))
            except nomadfn.exception.InvalidError as error:
                print(str(error).partition(":")[0])
        print(call.hydrate() is call)
"""

SERVED = """
    import time
    import nomadfn

    app = nomadfn.App("served")

    @app.function(max_containers=1, retries=nomadfn.Retries(max_retries=1, initial_delay=60.0))
    def flaky(x):
        raise ValueError(f"no {x}")

    @app.function(max_containers=1)
    def nap(seconds):
        time.sleep(seconds)
        return seconds
"""

SENDER = """
    import nomadfn

    flaky = nomadfn.Function.from_name("served", "flaky")
    nap = nomadfn.Function.from_name("served", "nap")
    call = nap.call_options(priority=3, deadline=3600).spawn_map([600, 0, 0])
    for one in (flaky.spawn(1), call):
        print("in-" + one.object_id.removeprefix("fc-"))
"""


def run(world: World, entrypoint: str) -> list[str]:
    world.write("graph.py", GRAPH)
    return world.nomadfn("run", f"graph.py::{entrypoint}").ok().out.splitlines()


def test_a_call_graph_is_the_tree_of_all_that_inputs_have_called(world: World) -> None:
    leaves = [("leaf", "FAILURE", [])] + [("leaf", "SUCCESS", [])] * 4
    tree = [("top", "SUCCESS", [("leaf", "SUCCESS", []), ("middle", "SUCCESS", leaves)])]
    assert run(world, "graphs") == [str(tree), "True", "True"]


def test_gather_gives_results_in_order_and_raises_what_fails_first(world: World) -> None:
    found = run(world, "gathers")
    assert found[:3] == ["the first that fails: half", "['PENDING']", "['TERMINATED']"]
    assert found[3] == str([x / 100 for x in range(9, -1, -1)])
    assert found[4] == "[0, 0] []"
    assert "takes calls, not list" in found[5]


def test_iter_gives_a_part_and_refuses_what_is_not_there(world: World) -> None:
    assert run(world, "iterations") == [
        "[0, 0.1, 0.2] [0.1, 0.2] [0, 0.1] []",
        "iter(start=-1, end=None)",
        "iter(end=9)",
        "iter(start=2, end=1)",
        "True",
    ]


def test_inputs_are_listed_shown_cancelled_and_told_to_wait_no_longer(world: World) -> None:
    world.write("served.py", SERVED)
    world.write("send.py", SENDER)
    world.up("--capacity", "2")
    world.deploy("served.py")
    flaky, nap = world.python("send.py").ok().out.split()

    def inputs(*words: str) -> dict[str, Any]:
        found = world.nomadfn("input", "list", *words, "--json").ok().json["inputs"]
        return {one["id"]: one["outcome"] or one["state"] for one in found}

    eventually(lambda: inputs("served", "flaky") == {f"{flaky}-0": "delayed"}, "it waits for its next attempt")
    eventually(lambda: inputs("served").get(f"{nap}-0") == "running", "the first one runs")
    assert inputs("served", "nap", "--state", "pending") == {f"{nap}-1": "pending", f"{nap}-2": "pending"}
    assert list(inputs("--limit", "1")) == [f"{nap}-0"]
    table = world.nomadfn("input", "list", "served").ok().out
    assert f"{nap}-1" in table
    shown = world.nomadfn("input", "get", f"{nap}-1").ok().out
    assert "served nap" in shown
    assert "priority    3, to be started within" in shown

    world.nomadfn("input", "retry", f"{flaky}-0").ok()
    eventually(lambda: inputs("served", "flaky") == {f"{flaky}-0": "raised"}, "it has used up its retries")
    shown = world.nomadfn("input", "get", f"{flaky}-0").ok().out
    assert "ValueError: no 1" in shown
    assert "served.py" in shown, "with the traceback"
    world.nomadfn("input", "retry", f"{flaky}-0").refused(3, "the input is done", "call the function again")

    world.nomadfn("input", "cancel", f"{nap}-1").ok()
    assert "nothing was cancelled" in world.nomadfn("input", "cancel", f"{nap}-1").ok().out
    world.nomadfn("input", "cancel", f"{nap}-0", "--terminate-containers").ok()
    call = "fc-" + nap.removeprefix("in-")
    outcomes = {f"{nap}-0": "cancelled", f"{nap}-1": "cancelled", f"{nap}-2": "succeeded"}
    eventually(lambda: inputs("--call", call) == outcomes, "the others go on")

    world.nomadfn("input", "get", "nonsense").refused(3, "no id of an input")
    world.nomadfn("input", "get", f"{nap}-9").refused(3, "no such index")
    world.nomadfn("input", "list", "--state", "lost").refused(3, "pending, running, delayed, done")
    world.nomadfn("input", "list", "nowhere").refused(3, "nowhere")
