"""`Queue` as programs for Modal use it: from containers and programs alike, over a kill of the service."""

from __future__ import annotations

from world import World, eventually

PROGRAM = """
    import asyncio, queue, time
    import nomadfn as modal

    app = modal.App("line-app")

    @app.function()
    def consume(q, count):
        return [q.get() for _ in range(count)]

    @app.function()
    def produce(id, items):
        q = modal.Queue.from_id(id)
        for item in items:
            q.put(item)

    async def give_up(q):
        try:
            await asyncio.wait_for(q.get.aio(), 0.3)
        except TimeoutError:
            await asyncio.sleep(0.2)
            q.put("for whoever comes next")
            print(await q.get.aio(timeout=20))

    @app.local_entrypoint()
    def main():
        with modal.Queue.ephemeral() as q:
            call = consume.spawn(q, 3)
            q.put("some value")
            q.put_many([{"a": 1}, bytes(1_000_000)])
            got = call.get()
            print(got[:2], len(got[2]))
            produce.remote(q.object_id, [1, 2, 3])
            print(q.get(), q.get_many(10), q.len())
            for wait in (lambda: q.get(timeout=0), lambda: q.get(timeout=0.2), lambda: q.get_many(3, timeout=0.1)):
                try:
                    wait()
                except queue.Empty:
                    print("Empty")
            print(q.get(block=False), q.get_many(5, block=False))
            asyncio.run(give_up(q))
            q.put(0)
            q.put(1, partition="foo", partition_ttl=10)
            q.put(2, partition="bar")
            print(q.get(partition="bar"), q.len(), q.len(partition="foo"), q.len(total=True))
            q.put_many([5, 6])
            print(list(q.iterate()), list(q.iterate(item_poll_timeout=0.2)), q.len())
            q.clear(all=True)
            print(q.len(total=True))
            q.put_many(list(range(4_999)))
            q.put(4_999)
            for full in (lambda: q.put(1, block=False), lambda: q.put(1, timeout=0.2)):
                try:
                    full()
                except queue.Full as error:
                    print("Full:", "5,000" in str(error))
            print(q.get_many(5_000) == list(range(1_000)), q.len())
        for wrong in (lambda: q.get(partition=""), lambda: q.put(1, partition="x" * 65), lambda: modal.Queue()):
            try:
                wrong()
            except modal.exception.InvalidError as error:
                print(str(error)[:30])
        try:
            modal.Queue.from_name("unknown").get()
        except modal.exception.NotFoundError as error:
            print(error)
        modal.Queue.objects.create("named")
        print([one.name for one in modal.Queue.objects.list()], modal.Queue.from_name("named").info().name)
        modal.Queue.objects.delete("named")
"""
PRINTED = """\
['some value', {'a': 1}] 1000000
1 [2, 3] 0
Empty
Empty
Empty
None []
for whoever comes next
2 1 1 2
[0, 5, 6] [0, 5, 6] 3
0
Full: True
Full: True
True 4000
Queue partition key must be be
Queue partition key must be be
a Queue is made by Queue.from_
there is no Queue 'unknown'; Queue.from_name('unknown', create_if_missing=True) makes it
['named'] named
"""
CONSUMER = """
    import sys
    import nomadfn

    q = nomadfn.Queue.from_name("jobs", create_if_missing=True)
    print("waiting", flush=True)
    while (job := q.get()) is not None:
        print(job, flush=True)
"""


def test_queues_do_what_a_program_for_modal_asks_of_them(world: World) -> None:
    world.write("line.py", PROGRAM)
    assert world.nomadfn("run", "line.py").ok().out == PRINTED


def test_values_outlive_a_kill_of_the_service_and_reach_who_waits(world: World) -> None:
    world.write("consumer.py", CONSUMER)
    put = "import nomadfn; nomadfn.Queue.from_name('jobs', create_if_missing=True).put_many({})"
    world.up()
    world.python("-c", put.format(["one", "two"])).ok()
    world.kill_service()
    world.up()
    consumer = world.start("python", "consumer.py")
    consumer.says("two")
    world.kill_service()
    world.up()
    world.python("-c", put.format(["three", None])).ok()
    assert consumer.wait().ok().out == "waiting\none\ntwo\nthree\n"


def test_what_waits_for_a_value_and_is_killed_takes_none(world: World) -> None:
    world.write("consumer.py", CONSUMER)
    world.up()
    first = world.start("python", "consumer.py")
    first.says("waiting")
    second = world.start("python", "consumer.py")
    second.says("waiting")  # It came later: the first one is at the front.
    first.process.kill()
    first.process.wait()
    put = "import nomadfn; nomadfn.Queue.from_name('jobs').put_many(['one', None])"
    world.python("-c", put).ok()
    eventually(lambda: second.ended, second)
    assert second.out == "waiting\none\n"


def test_a_container_that_waits_for_a_value_takes_no_room_from_the_one_that_puts_it(world: World) -> None:
    world.write("line.py", PROGRAM)
    world.write(
        "both.py",
        """
        import nomadfn
        from line import app, consume, produce

        with app.run():
            with nomadfn.Queue.ephemeral() as q:
                calls = [consume.spawn(q, 1) for _ in range(3)]
                produce.remote(q.object_id, ["a", "b", "c"])
                print(sorted(call.get()[0] for call in calls))
        """,
    )
    assert world.python("both.py", NOMADFN_CAPACITY="1").ok().out == "['a', 'b', 'c']\n"
