"""Several inputs at once in a container, and batches, in real processes."""

from __future__ import annotations

from world import NOMADFN, World

CONCURRENT = """
    import asyncio, os, threading, time
    import nomadfn

    app = nomadfn.App("concurrent")

    # Everybody waits for everybody: it ends only where all of them run at once.
    @app.function(max_containers=1)
    @nomadfn.concurrent(max_inputs=10)
    async def meet(x):
        meet_up.add(x)
        while len(meet_up) < 10:
            await asyncio.sleep(0.001)
        return x, os.getpid(), nomadfn.current_input_id()

    meet_up = set()

    @app.function(max_containers=1)
    @nomadfn.concurrent(max_inputs=5)
    def barrier(x):
        together.wait(60)
        return x, threading.current_thread() is threading.main_thread(), nomadfn.current_input_id()

    together = threading.Barrier(5)

    @app.function(max_containers=1)
    @nomadfn.concurrent(max_inputs=4)
    async def fail(x):
        if x % 3 == 0:
            raise ValueError(f"no {x}")
        return x

    @app.function(max_containers=1, timeout=2, startup_timeout=60)
    @nomadfn.concurrent(max_inputs=4)
    async def hang(x):
        if x == 1:
            await asyncio.sleep(3600)
        return x

    @app.local_entrypoint()
    def tasks():
        results = list(meet.map(range(10)))
        print([x for x, _, _ in results] == list(range(10)))
        print(len({pid for _, pid, _ in results}), len({id for _, _, id in results}))

    @app.local_entrypoint()
    def threads():
        results = list(barrier.map(range(10)))
        print([x for x, _, _ in results] == list(range(10)), any(main for _, main, _ in results))
        print(len({id for _, _, id in results}))

    @app.local_entrypoint()
    def errors():
        found = list(fail.map(range(9), return_exceptions=True))
        print([str(one) for one in found])

    @app.local_entrypoint()
    def timeouts():
        found = list(hang.map(range(6), return_exceptions=True))
        print([x if isinstance(x, int) else type(x).__name__ for x in found])

    @app.local_entrypoint()
    def cancels():
        call = hang.spawn(1)
        other = hang.spawn(2)
        print(other.get(timeout=60))
        call.cancel()
        try:
            call.get(timeout=60)
        except nomadfn.exception.InputCancellation as error:
            print(type(error).__name__)
        print(hang.remote(3))
"""


def lines(world: World, program: str, entrypoint: str) -> list[str]:
    return world.nomadfn("run", f"{program}::{entrypoint}").ok().out.splitlines()


def test_coroutines_run_side_by_side_in_one_container(world: World) -> None:
    world.write("several.py", CONCURRENT)
    assert lines(world, "several.py", "tasks") == ["True", "1 10"]


def test_plain_functions_run_in_threads_of_one_container(world: World) -> None:
    world.write("several.py", CONCURRENT)
    assert lines(world, "several.py", "threads") == ["True False", "10"]


def test_one_of_several_that_raises_fails_alone(world: World) -> None:
    world.write("several.py", CONCURRENT)
    assert lines(world, "several.py", "errors") == ["['no 0', '1', '2', 'no 3', '4', '5', 'no 6', '7', '8']"]


def test_one_of_several_that_hangs_times_out_alone(world: World) -> None:
    world.write("several.py", CONCURRENT)
    assert lines(world, "several.py", "timeouts") == ["[0, 'FunctionTimeoutError', 2, 3, 4, 5]"]


def test_one_of_several_can_be_cancelled(world: World) -> None:
    world.write("several.py", CONCURRENT)
    assert lines(world, "several.py", "cancels") == ["2", "InputCancellation", "3"]


BATCHED = """
    import asyncio, os
    import nomadfn

    app = nomadfn.App("batched")

    @app.function(max_containers=1)
    @nomadfn.batched(max_batch_size=8, wait_ms=100)
    def double(values, names):
        assert isinstance(values, list) and isinstance(names, list)
        return [(2 * value, name, len(values)) for value, name in zip(values, names)]

    @app.function(max_containers=1)
    @nomadfn.batched(max_batch_size=4, wait_ms=50)
    async def invert(values):
        await asyncio.sleep(0)
        return [1 / value if value else ZeroDivisionError("of this one alone") for value in values]

    @app.function(max_containers=1)
    @nomadfn.batched(max_batch_size=3, wait_ms=10_000)
    def wrong(values, how):
        if how[0] == "raise":
            raise ValueError("all of them")
        return "text" if how[0] == "text" else values[1:]

    @app.function(max_containers=1)
    @nomadfn.batched(max_batch_size=8, wait_ms=0)
    def poison(values):
        if 5 in values:
            os._exit(9)
        return values

    @app.local_entrypoint()
    def main():
        found = list(double.map(range(100), [f"n{x}" for x in range(100)]))
        print([one[:2] for one in found] == [(2 * x, f"n{x}") for x in range(100)])
        print(max(one[2] for one in found) <= 8, sum(one[2] for one in found) / 100 > 4)
        print(double.remote(3, names="alone"))
        found = list(invert.map([1, 0, 2], return_exceptions=True))
        print(found[0], repr(found[1]), found[2])
        for how in ("text", "short", "raise"):
            found = list(wrong.map(range(3), [how] * 3, return_exceptions=True))
            print(len({str(one) for one in found}), type(found[0]).__name__, found[0])
        try:
            double.remote(3)
        except TypeError as error:
            print(error)

    @app.function(max_containers=1, retries=nomadfn.Retries(max_retries=1, initial_delay=0.0))
    @nomadfn.batched(max_batch_size=8, wait_ms=2_000, on_batch_error="bisect")
    def picky(values):
        if any(value % 5 == 3 for value in values):
            raise ValueError(f"one of {values}")
        return [2 * value for value in values]

    @app.function(max_containers=1)
    @nomadfn.concurrent(max_inputs=2)
    @nomadfn.batched(max_batch_size=4, wait_ms=2_000, on_batch_error="bisect")
    async def choosy(values):
        await asyncio.sleep(0)
        if 6 in values:
            raise LookupError(str(values))
        return values

    @app.local_entrypoint()
    def bisected():
        print([str(one) for one in picky.map(range(8), return_exceptions=True)])
        print([str(one) for one in choosy.map(range(8), return_exceptions=True)])

    @app.local_entrypoint()
    def poisoned():
        found = list(poison.map(range(16), return_exceptions=True))
        print([x if isinstance(x, int) else type(x).__name__ for x in found])
"""


def test_batches_are_lists_in_and_lists_out(world: World) -> None:
    world.write("batched.py", BATCHED)
    found = lines(world, "batched.py", "main")
    assert found[:4] == ["True", "True True", "(6, 'alone', 1)", "1.0 ZeroDivisionError('of this one alone') 0.5"]
    assert "must be a list, not a str" in found[4]
    assert "equal length as its inputs" in found[5]
    assert found[6] == "1 ValueError all of them"
    assert "names" in found[7]


def test_a_batch_that_kills_its_container_costs_the_culprit_alone(world: World) -> None:
    world.write("batched.py", BATCHED)
    [found] = lines(world, "batched.py", "poisoned")
    assert found == str([x if x != 5 else "InternalFailure" for x in range(16)])


def test_a_batch_that_raises_is_run_by_halves_until_the_culprit_raises_alone(world: World) -> None:
    world.write("batched.py", BATCHED)
    assert lines(world, "batched.py", "bisected") == [
        "['0', '2', '4', 'one of [3]', '8', '10', '12', '14']",
        "['0', '1', '2', '3', '4', '5', '[6]', '7']",
    ]


def test_inputs_of_several_programs_share_batches(world: World) -> None:
    world.write("batched.py", BATCHED)
    world.up()
    world.deploy("batched.py")
    world.write(
        "caller.py",
        """
        import nomadfn
        print(nomadfn.Function.from_name("batched", "double").remote(1, "x"))
        """,
    )
    first = world.start(NOMADFN, "function", "call", "batched", "wrong", "1", "short")
    second = world.start(NOMADFN, "function", "call", "batched", "wrong", "2", "short")
    third = world.start(NOMADFN, "function", "call", "batched", "wrong", "3", "short")
    for run in (first, second, third):
        assert "equal length" in run.wait().err
