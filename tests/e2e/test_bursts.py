"""Many calls at once: they and their results travel together, whatever their sizes, and each gets its own."""

from __future__ import annotations

from world import World

BURST = """
    import asyncio
    import time
    import nomadfn

    app = nomadfn.App("burst")
    SIZES = [0, 100, 125, 126, 200, 65_530, 65_536, 70_000, 127_000, 200_000]

    @app.function(max_containers=2)
    @nomadfn.batched(max_batch_size=10, wait_ms=50)
    def double(values):
        return [value + value for value in values]

    @app.function(max_containers=2)
    def same(value):
        return value

    @app.function(max_containers=1)
    def endless(value):
        time.sleep(600)

    @app.local_entrypoint()
    def main():
        async def call_all():
            values = [bytes([number]) * SIZES[number % 10] for number in range(200)]
            doubled = await asyncio.gather(*(double.remote.aio(value) for value in values))
            print(doubled == [value + value for value in values])
            print(await asyncio.gather(*(same.remote.aio(value) for value in values)) == values)
            # A call that blocks the event loop is not kept back by those that this has collected.
            tasks = [asyncio.ensure_future(same.remote.aio(number)) for number in range(100)]
            await asyncio.sleep(0)
            print(same.remote("blocks"))
            print(await asyncio.gather(*tasks) == list(range(100)))
            # Some that are cancelled in the turn in which they were sent.
            verbs = [endless if number % 2 == 0 else same for number in range(100)]
            tasks = [asyncio.ensure_future(verb.remote.aio(number)) for number, verb in enumerate(verbs)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            print(ended[1::2] == list(range(1, 100, 2)))
            print({type(one).__name__ for one in ended[::2]})
        asyncio.run(call_all())
"""


def test_calls_and_results_that_travel_together_are_each_their_own(world: World) -> None:
    world.write("burst.py", BURST)
    done = world.nomadfn("run", "burst.py").ok()
    assert done.out.splitlines() == ["True", "True", "blocks", "True", "True", "{'CancelledError'}"]
