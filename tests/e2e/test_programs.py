"""Programs as people write them: functions that use each other, modules, closures, classes; and calls on their own."""

from __future__ import annotations

import pytest
from world import NOMADFN, World

NESTED = """
    import nomadfn

    app = nomadfn.App("nested")

    @app.function()
    def fib(n):
        return n if n < 2 else fib.remote(n - 1) + fib.remote(n - 2)

    @app.function()
    def fan(depth):
        return 1 if depth == 0 else 1 + sum(fan.map([depth - 1] * 3))

    @app.function()
    def later(n):
        return n if n < 2 else later.spawn(n - 1).get() + later.spawn(n - 2).get()

    @app.function()
    def leaf(x):
        return x * 10

    @app.function()
    async def gather(xs):
        import asyncio
        one = await leaf.remote.aio(1)
        return [one, *await asyncio.gather(*(leaf.remote.aio(x) for x in xs)), *[x async for x in leaf.map.aio(xs)]]

    @app.function()
    def middle(x):
        return sum(leaf.starmap([(x,), (x + 1,)])) + leaf.local(1)

    @app.local_entrypoint()
    def main(name: str, argument: int):
        print({"fib": fib, "fan": fan, "later": later}[name].remote(argument))

    @app.local_entrypoint()
    def together():
        print(gather.remote([2, 3]))
        print(list(middle.map(range(50))) == [20 * x + 20 for x in range(50)])
"""


@pytest.mark.parametrize(("name", "argument", "expected"), [("fib", 8, 21), ("fan", 3, 40), ("later", 6, 8)])
def test_recursion_beyond_the_capacity_does_not_lock_up(world: World, name: str, argument: int, expected: int) -> None:
    world.write("nested.py", NESTED)
    command = ("run", "nested.py::main", "--name", name, "--argument", argument)
    assert world.nomadfn(*command, NOMADFN_CAPACITY="2").ok().out == f"{expected}\n"
    world.all_gone()


def test_functions_call_each_other_by_every_verb(world: World) -> None:
    world.write("nested.py", NESTED)
    assert world.nomadfn("run", "nested.py::together").ok().out == "[10, 20, 30, 20, 30]\nTrue\n"
    world.all_gone()


def test_a_function_that_was_deployed_calls_others_of_its_app_and_no_other_apps(world: World) -> None:
    world.write("nested.py", NESTED)
    world.write(
        "stranger.py",
        """
        import nomadfn

        app = nomadfn.App("stranger")

        @app.function()
        def peek():
            return nomadfn.Function.from_name("nested", "leaf").remote(1)
        """,
    )
    world.up()
    world.deploy("nested.py")
    world.deploy("stranger.py")
    assert world.nomadfn("function", "call", "nested", "middle", "3").ok().out == "80\n"
    done = world.nomadfn("function", "call", "stranger", "peek")
    assert done.code == 1, done.report
    assert "PermissionDeniedError: a container may only use functions of its own app" in done.err, done.report


SHOP = """
    import dataclasses, enum
    import nomadfn
    import prices
    from goods.shelf import Shelf
    from goods import count

    app = nomadfn.App("shop")
    RATE = 2
    CACHE = {}

    class Size(enum.Enum):
        SMALL = 1
        LARGE = 2

    @dataclasses.dataclass
    class Order:
        name: str
        size: Size
        parts: list

        def total(self):
            return sum(self.parts) * self.size.value

    class Refused(Exception):
        pass

    @app.function()
    def check(order: Order) -> Order:
        if order.name == "nothing":
            raise Refused(order.name)
        return dataclasses.replace(order, parts=[prices.price(one) * RATE for one in order.parts])

    @app.function()
    def fill(shelf: Shelf, names):
        CACHE[len(CACHE)] = names
        return Shelf([*shelf.names, *names]), count.count(names), len(CACHE)

    @app.function()
    def makes(kind):
        return kind("box", Size.SMALL, [1])

    def multiplier(factor):
        def multiply(x):
            return x * factor
        return multiply

    triple = app.function(name="triple")(multiplier(3))
    shout = app.function(name="shout", serialized=True)(lambda text: text.upper())

    @app.local_entrypoint()
    def main():
        order = check.remote(Order("bread", Size.LARGE, [1, 2]))
        assert type(order) is Order and order.size is Size.LARGE and order.total() == (10 + 20) * 2 * 2, order
        try:
            check.remote(Order("nothing", Size.SMALL, []))
        except Refused as error:
            assert error.args == ("nothing",)
        shelf, number, held = fill.remote(Shelf(["a"]), ["b", "c"])
        assert type(shelf) is Shelf and shelf.names == ["a", "b", "c"] and number == 2 and held == 1
        assert fill.remote(Shelf([]), ["d"])[2] == 2, "a container keeps its globals from call to call"
        assert makes.remote(Order) == Order("box", Size.SMALL, [1])
        assert list(triple.map(range(5))) == [0, 3, 6, 9, 12]
        assert shout.remote("hello") == "HELLO"
        assert CACHE == {}
        print("all is well")

    if __name__ == "__main__":
        with app.run():
            main()
"""


@pytest.mark.parametrize("how", ["nomadfn run", "python", "python -m", "deployed"])
def test_siblings_packages_closures_globals_and_classes_of_the_main_file_travel(world: World, how: str) -> None:
    folder = "pkg/" if how == "python -m" else ""
    world.write(f"{folder}shop.py", SHOP.replace("import prices", "from pkg import prices") if folder else SHOP)
    world.write(f"{folder}prices.py", "def price(x):\n    return 10 * x\n")
    world.write(f"{folder}__init__.py" if folder else "unused.py", "")
    world.write("goods/__init__.py", "")
    world.write("goods/shelf.py", "class Shelf:\n    def __init__(self, names):\n        self.names = names\n")
    world.write("goods/count.py", "from . import shelf\n\ndef count(names):\n    return len(names)\n")
    world.write(
        "caller.py",
        """
        import nomadfn
        from goods.shelf import Shelf

        shelf, number, held = nomadfn.Function.from_name("shop", "fill").remote(Shelf(["a"]), ["b"])
        assert (shelf.names, number, held) == (["a", "b"], 1, 1)
        assert nomadfn.Function.from_name("shop", "triple").remote(4) == 12
        print("all is well")
        """,
    )
    match how:
        case "nomadfn run":
            done = world.nomadfn("run", "shop.py", NOMADFN_CAPACITY="1")
        case "python":
            done = world.python("shop.py", NOMADFN_CAPACITY="1")
        case "python -m":
            done = world.python("-m", "pkg.shop", NOMADFN_CAPACITY="1")
        case _:
            world.up()
            world.deploy("shop.py")
            done = world.python("caller.py")
    assert done.ok().out == "all is well\n"


CALLS = """
    import asyncio, sys, time
    import nomadfn
    from nomadfn import FunctionCall

    app = nomadfn.App("calls")

    @app.function()
    def sleep(seconds, value=None):
        time.sleep(seconds)
        return value

    @app.function()
    def patient(path):
        try:
            open(path + ".started", "w").close()
            time.sleep(60)
        except BaseException as error:
            with open(path, "w") as file:
                file.write(type(error).__name__)
            raise

    def timed_out(call, timeout):
        try:
            call.get(timeout=timeout)
        except TimeoutError as error:
            return type(error) is TimeoutError
        return False

    @app.local_entrypoint()
    def polling():
        call = sleep.spawn(0.5, "done")
        print(timed_out(call, 0), timed_out(call, 0.05), call.get(timeout=30), call.get(timeout=0), call.num_inputs())

    @app.local_entrypoint()
    def gathering():
        calls = [sleep.spawn(0.3 if x % 2 else 0, x) for x in range(12)]
        print(FunctionCall.gather(*calls) == list(range(12)))
        print(asyncio.run(FunctionCall.gather.aio(*calls)) == list(range(12)))
        many = sleep.spawn_map([0] * 30, range(30))
        print(list(many.iter()) == list(range(30)), many.get(index=29), many.num_inputs())

    @app.local_entrypoint()
    def cancelling(path: str):
        running = patient.spawn(path)
        waiting = [patient.spawn(path + "2") for _ in range(20)]
        import os
        while not os.path.exists(path + ".started"):
            time.sleep(0.01)
        for call in [running, *waiting]:
            call.cancel()
        for call in (running, waiting[-1]):
            try:
                call.get(timeout=30)
            except nomadfn.exception.InputCancellation as error:
                print("cancelled")
        print(sleep.remote(0, "still well"))
        terminated = sleep.spawn(600)
        while not sleep.get_current_stats().num_running_inputs:
            time.sleep(0.01)
        terminated.cancel(terminate_containers=True)
        try:
            terminated.get(timeout=30)
        except nomadfn.exception.InputCancellation as error:
            print("terminated")
        print(sleep.remote(0, "well again"))

    @app.local_entrypoint()
    def leaving():
        for result in sleep.map([0] * 200 + [600] * 50, range(250)):
            if result == 150:
                break
        print(sleep.remote(0, "left"))
"""


def test_a_call_is_polled_waited_for_and_read_again(world: World) -> None:
    world.write("calls.py", CALLS)
    assert world.nomadfn("run", "calls.py::polling").ok().out == "True True done done 1\n"


def test_calls_are_gathered_and_iterated_in_order(world: World) -> None:
    world.write("calls.py", CALLS)
    assert world.nomadfn("run", "calls.py::gathering").ok().out == "True\nTrue\nTrue 29 30\n"


def test_a_cancelled_call_ends_what_runs_and_what_waits_and_nothing_else(world: World) -> None:
    world.write("calls.py", CALLS)
    path = world.folder / "seen"
    done = world.nomadfn("run", "calls.py::cancelling", "--path", path).ok()
    assert done.out.splitlines() == ["cancelled", "cancelled", "still well", "terminated", "well again"], done.report
    assert path.read_text() == "InputCancellation"
    world.all_gone()


def test_a_map_that_is_left_is_cancelled(world: World) -> None:
    world.write("calls.py", CALLS)
    assert world.nomadfn("run", "calls.py::leaving").ok().out == "left\n"
    world.all_gone()


def test_a_cancel_is_remembered_over_a_kill_of_the_service(world: World) -> None:
    world.write("calls.py", CALLS)
    world.write(
        "cancel.py",
        """
        import nomadfn

        sleep = nomadfn.Function.from_name("calls", "sleep")
        calls = [sleep.spawn(0.2, x) for x in range(40)]
        for call in calls[20:]:
            call.cancel()
        print(*(call.object_id for call in calls))
        """,
    )
    world.write(
        "look.py",
        """
        import sys
        import nomadfn

        for id in sys.argv[1:]:
            try:
                print(nomadfn.FunctionCall.from_id(id).get(timeout=30))
            except nomadfn.exception.InputCancellation:
                print("cancelled")
        """,
    )
    world.up()
    world.deploy("calls.py")
    ids = world.python("cancel.py").ok().out.split()
    world.kill_service()
    world.up()
    seen = world.python("look.py", *ids).ok().out.split()
    assert seen == [*map(str, range(20)), *["cancelled"] * 20]


def test_retries_run_again_and_then_give_up(world: World) -> None:
    world.write(
        "flaky.py",
        """
        import os
        import nomadfn

        app = nomadfn.App("flaky")

        @app.function(retries=nomadfn.Retries(max_retries=3, initial_delay=0.05, backoff_coefficient=1.0))
        def flaky(folder, name, good_at):
            with open(os.path.join(folder, name), "a") as file:
                file.write("x")
            tries = os.path.getsize(os.path.join(folder, name))
            if tries < good_at:
                raise ConnectionError(f"try {tries}")
            return tries

        @app.local_entrypoint()
        def main(folder: str):
            print(flaky.remote(folder, "third", 3))
            try:
                flaky.remote(folder, "never", 99)
            except ConnectionError as error:
                print(error)
        """,
    )
    tries = world.folder / "tries"
    tries.mkdir()
    done = world.execute(NOMADFN, "run", "flaky.py", "--folder", tries).ok()
    assert done.out == "3\ntry 4\n", done.report
    assert (tries / "never").read_text() == "xxxx"
