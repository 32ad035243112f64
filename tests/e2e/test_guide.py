"""The code of Modal's guide as it stands there, run in every way in which a program can be run; and endless maps."""

from __future__ import annotations

import sys

from world import NOMADFN, World, eventually

GUIDE = """
    import nomadfn as modal

    app = modal.App("my-app")


    def heavy_computation(item):
        return item * item


    @app.function(
        max_containers=100,     # Upper limit on container count
        min_containers=2,       # Keep 2 warm (reduces cold starts)
        buffer_containers=5,    # Reserve 5 extra for burst traffic
        scaledown_window=300,   # Wait 5 min idle before shutting down
    )
    def handle_request(data):
        return len(data)


    @app.function()
    def process(item):
        return heavy_computation(item)


    @app.function()
    def risky(item):
        if item % 10 == 3:
            raise ValueError(f"no {item}")
        return item


    @app.function()
    def add(x, y):
        return x + y


    @app.function()
    def scale_up_for_peak():
        process = modal.Function.from_name("my-app", "process")
        process.update_autoscaler(min_containers=10, buffer_containers=20)


    @app.local_entrypoint()
    def main():
        items = list(range(10_000))
        results = list(process.map(items))
        assert results == [item * item for item in items], "results maintain input order"

        seen = set()
        for result in process.map(items, order_outputs=False):
            seen.add(result)
        assert seen == {item * item for item in items}

        results = list(risky.map(items[:100], return_exceptions=True))
        errors = [item for item, r in enumerate(results) if isinstance(r, Exception)]
        assert errors == list(range(3, 100, 10)), errors
        assert [r for item, r in enumerate(results) if item not in errors] == [x for x in range(100) if x % 10 != 3]
        assert str(results[13]) == "no 13" and type(results[13]) is ValueError

        results = list(add.starmap([(1, 2), (3, 4), (5, 6)]))
        print(results)

        large_data = 111
        call = process.spawn(large_data)
        result = call.get()
        print(result)
        print(handle_request.remote("request"))
"""
RUN = """
    if __name__ == "__main__":
        with app.run():
            main()
"""
PRINTED = "[3, 7, 11]\n12321\n7\n"


def test_the_guide_runs_as_written_under_nomadfn_run(world: World) -> None:
    world.write("guide.py", GUIDE)
    assert world.nomadfn("run", "guide.py").ok().out == PRINTED
    world.all_gone()


def test_the_guide_runs_as_written_as_a_program_of_its_own(world: World) -> None:
    world.write("guide.py", GUIDE + RUN)
    assert world.python("guide.py").ok().out == PRINTED
    world.all_gone()


def test_the_guide_runs_unmodified_where_it_says_import_modal(world: World) -> None:
    world.write("guide.py", GUIDE.replace("import nomadfn as modal", "import modal"))
    assert world.nomadfn("run", "--as-modal", "guide.py").ok().out == PRINTED
    world.nomadfn("run", "guide.py").refused(1, "No module named 'modal'", "--as-modal")
    world.all_gone()


def test_a_deployed_function_scales_another_as_in_the_guide(world: World) -> None:
    world.write("guide.py", GUIDE)
    world.up("--capacity", "3")
    world.deploy("guide.py")
    world.nomadfn("function", "call", "my-app", "scale_up_for_peak").ok()
    shown = world.explain("my-app", "process")
    assert (shown["settings"]["min_containers"], shown["settings"]["buffer_containers"]) == (10, 20)
    assert shown["overridden"]
    world.deploy("guide.py")
    assert world.explain("my-app", "process")["settings"]["min_containers"] == 0, "the next deployment reverts it"


ENDLESS = """
    import itertools, time
    import nomadfn

    app = nomadfn.App("endless")
    pulled = 0

    @app.function()
    def f(x):
        return bytes(200) + x.to_bytes(8)

    def endless():
        global pulled
        for x in itertools.count():
            pulled += 1
            yield x

    def memory_kib():
        for line in open("/proc/self/status"):
            if line.startswith("VmRSS"):
                return int(line.split()[1])

    def take(results, count, first=0):
        for x in range(first, first + count):
            assert int.from_bytes(next(results)[200:]) == x
            assert pulled <= x + 1 + 1000, (pulled, x)

    @app.local_entrypoint()
    def hundred():
        results = f.map(endless())
        take(results, 100)
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline and pulled < 1100:
            time.sleep(0.01)
        assert pulled <= 1100, pulled
        results.close()
        stopped = pulled
        print("ahead", pulled - 100, "of 1000 at most")

    @app.local_entrypoint()
    def long():
        results = f.map(endless())
        take(results, 10_000)
        before = memory_kib()
        take(results, 40_000, 10_000)
        grown = memory_kib() - before
        assert grown < 10 * 1024, f"grown by {grown:,} KiB"
        print("done", flush=True)
        results.close()

    @app.local_entrypoint()
    def unordered():
        results = f.map(endless(), order_outputs=False)
        seen = {int.from_bytes(next(results)[200:]) for _ in range(3_000)}
        assert len(seen) == 3_000
        assert pulled <= 4_000, pulled
        print("done")
"""


def test_an_endless_map_pulls_no_further_than_the_in_flight_limit(world: World) -> None:
    world.write("endless.py", ENDLESS)
    assert "of 1000 at most" in world.nomadfn("run", "endless.py::hundred").ok().out
    world.all_gone()


def test_an_endless_map_takes_constant_memory_here_and_in_the_service(world: World) -> None:
    world.write("endless.py", ENDLESS)
    run = world.start(NOMADFN, "run", "endless.py::long")
    seen: list[int] = []

    def watch() -> bool:
        services = [pid for pid, line in world.processes().items() if "-m nomadfn.control" in line]
        if world.containers() and services:
            seen.append(world.memory_kib(services[0]))
        return run.ended

    eventually(watch, "the map is over", timeout_s=90)
    done = run.wait().ok()
    assert done.out == "done\n", done.report
    early = seen[len(seen) // 4]
    assert max(seen) - early < 20 * 1024, f"the service grew from {early:,} to {max(seen):,} KiB"


def test_an_endless_map_in_any_order_is_bounded_too(world: World) -> None:
    world.write("endless.py", ENDLESS)
    assert world.execute(sys.executable, "-m", "nomadfn", "run", "endless.py::unordered").ok().out == "done\n"
