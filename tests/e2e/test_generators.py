"""Generator functions in real processes: values as they are yielded, back-pressure, and every way to an end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import textwrap

from world import NOMADFN, World, eventually

PROGRAM = """
    import asyncio, os, signal, threading, time
    from pathlib import Path
    import nomadfn

    app = nomadfn.App("generators")
    here = Path(__file__).parent if nomadfn.is_local() else None

    @app.function(timeout=60)
    def count(n: int, folder="", wait_for=""):
        try:
            for i in range(n):
                yield i
                while wait_for and not (Path(folder) / f"{wait_for}{i}").exists():
                    time.sleep(0.005)
        finally:
            if folder:
                (Path(folder) / "closed").write_text(str(i))

    @app.function(timeout=60)
    async def acount(n, folder="", wait_for=""):
        try:
            for i in range(n):
                yield i
                while wait_for and not (Path(folder) / f"{wait_for}{i}").exists():
                    await asyncio.sleep(0.005)
        finally:
            if folder:
                (Path(folder) / "closed").write_text(str(i))

    @app.function()
    def raises():
        yield 1
        raise ValueError("no more")

    @app.function()
    def locks():
        yield 1
        yield threading.Lock()
        yield 3

    @app.function()
    def dies(signal_number=signal.SIGKILL):
        yield "a"
        yield "b"
        yield "c"
        time.sleep(0.2)
        os.kill(os.getpid(), signal_number)
        time.sleep(60)

    @app.function()
    def large(n, size):
        for i in range(n):
            yield bytes([i]) * size

    @app.function()
    def words(n, size):
        for i in range(n):
            yield "w" * size

    @app.function()
    def nothing():
        return
        yield

    @app.function()
    def ahead(n, size, folder):
        for i in range(n):
            (Path(folder) / "ahead").write_text(str(i))
            yield bytes(size)

    @app.function(max_containers=1, timeout=60)
    @nomadfn.concurrent(max_inputs=4)
    def together(name, folder):
        # Each waits for all: it ends only where four run at once.
        (Path(folder) / f"here-{name}").touch()
        yield name, nomadfn.current_input_id()
        while len(list(Path(folder).glob("here-*"))) < 4:
            time.sleep(0.005)
        yield name, nomadfn.current_input_id()

    @app.function(max_containers=1, timeout=60)
    @nomadfn.concurrent(max_inputs=4)
    async def atogether(name, folder):
        (Path(folder) / f"here-{name}").touch()
        yield name, nomadfn.current_input_id()
        while len(list(Path(folder).glob("here-*"))) < 4:
            await asyncio.sleep(0.005)
        yield name, nomadfn.current_input_id()

    @app.function()
    def plain(x):
        return x

    @app.cls()
    class Mixed:
        @nomadfn.enter()
        def load(self):
            self.base = 100

        @nomadfn.method()
        def count(self, n, folder=""):
            try:
                for i in range(n):
                    yield self.base + i
            finally:
                if folder:
                    (Path(folder) / "closed").write_text("sync")

        @nomadfn.method()
        async def acount(self, n, folder=""):
            try:
                for i in range(n):
                    yield self.base + i
            finally:
                if folder:
                    (Path(folder) / "closed").write_text("async")

        @nomadfn.method()
        def plain(self, x):
            return self.base + x

    @app.function(timeout=1, startup_timeout=60)
    def slow():
        yield 1
        time.sleep(60)
"""


def program(world: World, main: str) -> str:
    head = textwrap.dedent(PROGRAM) + "\n@app.local_entrypoint()\ndef main():\n"
    return str(world.write("generators.py", head + textwrap.indent(textwrap.dedent(main), "    ")))


def test_values_come_in_their_order_and_none_twice(world: World) -> None:
    file = program(
        world,
        """
        assert list(count.remote_gen(5)) == list(acount.remote_gen(5)) == [0, 1, 2, 3, 4]
        assert list(count.remote_gen(50_000)) == list(range(50_000))
        assert list(acount.remote_gen(50_000)) == list(range(50_000))
        assert list(nothing.remote_gen()) == []
        assert list(count.local(3)) == [0, 1, 2]
        sizes = [(value[0], len(value)) for value in large.remote_gen(8, 3_000_000)]
        assert sizes == [(i, 3_000_000) for i in range(8)], sizes

        import asyncio
        async def both():
            found = [[], []]
            async def read(place, generator):
                async for value in generator:
                    found[place].append(value)
            await asyncio.gather(read(0, count.remote_gen.aio(100)), read(1, acount.remote_gen.aio(100)))
            assert found == [list(range(100))] * 2
        asyncio.run(both())
        print("all")
        """,
    )
    assert "all" in world.nomadfn("run", file).ok().out


def test_a_value_is_here_before_the_next_one_is_made(world: World) -> None:
    file = program(
        world,
        """
        for function in (count, acount):
            for value in function.remote_gen(5, str(here), f"seen-{function.name}-"):
                (here / f"seen-{function.name}-{value}").touch()  # the generator waits for that
            assert value == 4
        print("all")
        """,
    )
    assert "all" in world.nomadfn("run", file).ok().out


def test_a_connection_that_breaks_again_and_again_loses_no_value(world: World) -> None:
    file = program(
        world,
        """
        from nomadfn.sdk.client import default_client

        cuts = 0
        def cut():
            nonlocal cuts
            link = default_client()._link
            if link is not None:
                cuts += 1
                link.hang_up()  # it may just be closed by the one who reads

        for function in (count, acount):
            for number, value in enumerate(function.remote_gen(60_000)):
                assert value == number
                if number % 5_000 == 4_000:
                    cut()
            assert number == 59_999
        for number, value in enumerate(large.remote_gen(60, 100_000)):
            assert value[0] == number
            if number % 10 == 5:
                cut()
        assert number == 59 and cuts >= 20, cuts
        print("all")
        """,
    )
    assert "all" in world.nomadfn("run", file).ok().out


def test_leaving_the_loop_closes_the_generator_where_it_runs(world: World) -> None:
    file = program(
        world,
        """
        def closed():
            while not (here / "closed").exists():
                time.sleep(0.01)
            while not (text := (here / "closed").read_text()):
                pass
            (here / "closed").unlink()
            return int(text)

        for function in (count, acount):
            for value in function.remote_gen(10**9, str(here)):  # it is ahead, and waits for room
                break
            assert closed() < 10**6
            for value in function.remote_gen(10**9, str(here), "never"):  # it runs
                break
            assert closed() == 0
            values = function.remote_gen(10**9, str(here), "never")
            assert next(values) == 0
            values.close()
            assert closed() == 0
        list(plain.map(range(20)))  # and all goes on

        import asyncio
        async def leave():
            async for value in acount.remote_gen.aio(10**9, str(here), "never"):
                break
        asyncio.run(leave())
        assert closed() == 0
        print("all")
        """,
    )
    assert "all" in world.nomadfn("run", file).ok().out


def test_ctrl_c_closes_the_generator_and_nothing_is_left(world: World) -> None:
    file = program(
        world,
        """
        for value in count.remote_gen(10**9, str(here), "never"):
            print("value", value)
        """,
    )
    running = world.start(NOMADFN, "run", file)
    running.says("value 0")
    os.kill(running.pid, signal.SIGINT)
    done = running.wait()
    assert done.code == 130, done.report
    done.without_our_frames()
    world.all_gone()
    assert (world.folder / "closed").read_text() == "0"


def test_what_a_generator_raises_comes_behind_its_values(world: World) -> None:
    file = program(
        world,
        """
        for function, kind, words in (
            (raises, ValueError, "no more"),
            (locks, nomadfn.exception.SerializationError, "a value yielded by locks, of type lock"),
        ):
            seen = []
            try:
                for value in function.remote_gen():
                    seen.append(value)
            except kind as error:
                assert words in str(error), error
            else:
                raise AssertionError("it has not raised")
            assert seen == [1]
        print("all")
        """,
    )
    assert "all" in world.nomadfn("run", file).ok().out


def test_a_generator_whose_container_is_lost_fails_and_is_not_run_again(world: World) -> None:
    file = program(
        world,
        """
        seen = []
        try:
            for value in dies.remote_gen():
                seen.append(value)
        except nomadfn.exception.InternalFailure as error:
            assert seen == ["a", "b", "c"]
            assert "3 parts" in str(error) and "SIGKILL" in str(error) and "call it again" in str(error), error
            print("failed")
        """,
    )
    assert "failed" in world.nomadfn("run", file).ok().out


def test_a_generator_runs_no_further_ahead_than_its_window(world: World) -> None:
    file = program(
        world,
        """
        most = 0
        for number, value in enumerate(ahead.remote_gen(100, 100_000, str(here))):
            made = (here / "ahead").read_text()
            most = max(most, int(made or 0) - number)
        assert number == 99 and most <= 1 + 1024 * 1024 // 100_000, most
        for number, value in enumerate(ahead.remote_gen(10, 5_000_000, str(here))):
            made = (here / "ahead").read_text()
            assert int(made or 0) - number <= 1
        print("all")
        """,
    )
    assert "all" in world.nomadfn("run", file).ok().out


def test_several_generators_run_at_once_in_one_container(world: World) -> None:
    file = program(
        world,
        """
        import concurrent.futures
        for function in (together, atogether):
            def read(name):
                (a, first), (b, second) = function.remote_gen(name, str(here))
                assert a == b == name and first == second and first
                return first
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                assert len(set(pool.map(read, "abcd"))) == 4
            for one in here.glob("here-*"):
                one.unlink()
        print("all")
        """,
    )
    assert "all" in world.nomadfn("run", file).ok().out


def test_a_generator_over_its_timeout_is_stopped(world: World) -> None:
    file = program(
        world,
        """
        seen = []
        try:
            for value in slow.remote_gen():
                seen.append(value)
        except nomadfn.exception.FunctionTimeoutError as error:
            assert seen == [1] and "timeout of 1 s" in str(error), (seen, error)
            print("stopped")
        """,
    )
    assert "stopped" in world.nomadfn("run", file).ok().out


def test_methods_of_a_class_may_be_generators_of_both_kinds_beside_others(world: World) -> None:
    file = program(
        world,
        """
        mixed = Mixed()
        for method, kind in ((mixed.count, "sync"), (mixed.acount, "async")):
            assert list(method.remote_gen(5_000)) == list(range(100, 5_100))
            for value in method.remote_gen(10**9, str(here)):
                break
            while not (here / "closed").exists() or (here / "closed").read_text() != kind:
                time.sleep(0.005)
            assert mixed.plain.remote(1) == 101
        for call in (lambda: mixed.count.remote(1), lambda: list(mixed.plain.remote_gen(1))):
            try:
                call()
            except nomadfn.exception.InvalidError as error:
                print(error)
        """,
    )
    out = world.nomadfn("run", file).ok().out
    assert "Mixed.count.remote_gen(...)" in out
    assert "Mixed.plain.remote(...)" in out


def test_every_verb_says_which_one_is_for_generators(world: World) -> None:
    file = program(
        world,
        """
        def refused(call, *words):
            try:
                call()
            except nomadfn.exception.InvalidError as error:
                assert all(word in str(error) for word in words), error
            else:
                raise AssertionError(words)
        refused(lambda: count.remote(3), "count.remote_gen")
        refused(lambda: count.spawn(3), "count.remote_gen")
        refused(lambda: list(count.map([3])), "count.remote_gen")
        refused(lambda: count.spawn_map([3]), "count.remote_gen")
        refused(lambda: count.for_each([3]), "count.remote_gen")
        refused(lambda: list(plain.remote_gen(3)), "plain.remote(")

        import asyncio
        async def inside():
            refused(lambda: list(count.remote_gen(3)), "remote_gen.aio")
        asyncio.run(inside())
        print("all")
        """,
    )
    assert "all" in world.nomadfn("run", file).ok().out


def test_a_generator_is_run_by_name_and_called_over_http_in_lines(world: World) -> None:
    file = program(world, "pass")
    assert world.nomadfn("run", f"{file}::count", "--n", "3").ok().out == "0\n1\n2\n"
    failed = world.nomadfn("run", f"{file}::raises")
    assert failed.out == "1\n"
    failed.refused(1, "ValueError: no more")
    url = world.up()["http_url"]
    world.deploy("generators.py")
    call = f"{url}/v1/apps/generators/functions"
    token = (world.data / "token").read_text().strip()

    def curl(name: str, *args: object, verb: str = "call") -> list[dict[str, object]]:
        words = ["curl", "-sSN", "--max-time", "40", "-H", f"Authorization: Bearer {token}"]
        done = world.execute(*words, "-d", json.dumps({"args": args}), f"{call}/{name}/{verb}").ok()
        return [json.loads(line) for line in done.out.splitlines()]

    assert curl("count", 3) == [{"value": 0}, {"value": 1}, {"value": 2}]
    assert curl("acount", 20_000) == [{"value": i} for i in range(20_000)]
    assert curl("nothing") == []
    first, error = curl("raises")
    assert first == {"value": 1}
    assert error["error"]["kind"] == "ValueError"  # type: ignore[index]
    assert curl("words", 2, 300_000) == [{"value": "w" * 300_000}] * 2
    (refused,) = curl("count", 3, verb="spawn")
    assert refused["error"]["kind"] == "InvalidError"  # type: ignore[index]
    assert world.nomadfn("function", "call", "generators", "count", "3").ok().out == "0\n1\n2\n"
    half = world.nomadfn("function", "call", "generators", "raises")
    assert half.out == "1\n"
    half.refused(1, "ValueError: no more")


def test_a_client_that_hangs_up_closes_the_generator(world: World) -> None:
    url = world.up()["http_url"]
    program(world, "pass")
    world.deploy("generators.py")
    token = (world.data / "token").read_text().strip()
    body = json.dumps({"args": [10**9, str(world.folder), "never"]})
    command = ["curl", "-sSN", "-H", f"Authorization: Bearer {token}", "-d", body]
    command.append(f"{url}/v1/apps/generators/functions/count/call")
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=world.env) as curl:
        assert curl.stdout is not None
        assert json.loads(curl.stdout.readline()) == {"value": 0}
        curl.kill()
    eventually((world.folder / "closed").exists, "the generator is closed")
