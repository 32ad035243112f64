"""Deadlines, priorities and slow loops, in real processes."""

from __future__ import annotations

import json

from world import World

PROGRAM = """
    import time
    import nomadfn

    app = nomadfn.App("options")

    @app.function(max_containers=1)
    def work(seconds, deadline=None):
        time.sleep(seconds)
        return seconds, deadline

    @app.function(max_containers=1)
    def note(text, path):
        with open(path, "a") as file:
            file.write(text)
        time.sleep(0.1)

    @app.function()
    def urgent():
        # From inside a container, as from a program.
        return work.call_options(priority=3, deadline=60).remote(0.25)

    @app.local_entrypoint()
    def deadlines():
        soon = work.call_options(deadline=0.3)
        print(soon.remote(0, deadline="its own") if work.remote(0) else "")
        blocker = work.spawn(3)
        while not work.get_current_stats().num_running_inputs:
            time.sleep(0.01)
        try:
            soon.remote(0)
        except TimeoutError as error:
            print(type(error).__name__, error)
        try:
            soon.spawn(0).get()
        except nomadfn.exception.TimeoutError as error:
            print(type(error).__name__, isinstance(error, TimeoutError))
        print([type(one).__name__ for one in soon.map([0, 0], return_exceptions=True)])
        print(blocker.get())
        print(urgent.remote())

    @app.local_entrypoint()
    def priorities(path: str):
        blocker = note.spawn("-", path)
        calls = [note.spawn("l", path) for _ in range(3)]
        calls += [note.call_options(priority=5).spawn(text, path) for text in "hh"]
        calls += [note.call_options(priority=-5).spawn("z", path)]
        nomadfn.FunctionCall.gather(blocker, *calls)

    @app.local_entrypoint()
    def ahead():
        pulled, most = 0, 0

        def numbers():
            nonlocal pulled
            for _ in range(40):
                pulled += 1
                yield 0.0

        for done, _ in enumerate(work.map(numbers(), max_ahead=5)):
            most = max(most, pulled - done)
        print(pulled, most <= 5)
"""


def test_an_input_past_its_deadline_is_dropped_unrun(world: World) -> None:
    world.write("options.py", PROGRAM)
    done = world.nomadfn("run", "options.py::deadlines").ok()
    assert done.out.splitlines() == [
        "(0, 'its own')",
        "DeadlineExceededError its deadline passed before it was started",
        "TimeoutError False",
        "['DeadlineExceededError', 'DeadlineExceededError']",
        "(3, None)",
        "(0.25, None)",
    ]


def test_higher_priorities_run_first(world: World) -> None:
    world.write("options.py", PROGRAM)
    path = world.folder / "order"
    world.nomadfn("run", "options.py::priorities", "--path", str(path)).ok()
    order = path.read_text()
    assert sorted(order) == sorted("-lllhhz")
    # What was handed out before the others were there is what it is.
    assert order.index("z") > order.rindex("h")
    assert order.endswith("lz")


def test_a_map_takes_no_more_ahead_than_it_was_told(world: World) -> None:
    world.write("options.py", PROGRAM)
    assert world.nomadfn("run", "options.py::ahead").ok().out.split() == ["40", "True"]


def test_the_command_line_takes_a_deadline_and_a_priority(world: World) -> None:
    world.write("options.py", PROGRAM)
    world.up("--capacity", "2")
    world.deploy("options.py")
    call = ("function", "call", "options", "work")
    done = world.nomadfn(*call, "0", "--deadline", "60", "--priority", "7", "--json").ok()
    assert json.loads(done.out) == [0, None]
    done = world.nomadfn(*call, "0", "--deadline", "0")
    assert done.code == 3
    assert "above 0" in done.err
