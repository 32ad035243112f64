"""What goes wrong in a user's program: a clear message, the user's own frames, an exit code, and nothing of ours."""

from __future__ import annotations

import re
import sys

import pytest
from world import World

MISTAKES = """
    import threading
    import nomadfn
    import helper

    app = nomadfn.App("mistakes")

    class Local(Exception):
        def __init__(self, code):
            super().__init__(code)
            self.code = code

    class Odd(Exception):
        def __init__(self, code, *, reason):
            super().__init__(f"{code}: {reason}")

    class Held(Exception):
        def __init__(self):
            super().__init__("holds a lock")
            self.lock = threading.Lock()

    @app.function()
    def divide(x):
        return helper.invert(x)

    @app.function()
    def local(code):
        raise Local(code)

    @app.function()
    def odd(code):
        raise Odd(code, reason="because")

    @app.function()
    def held():
        raise Held()

    @app.function()
    def lock():
        return threading.Lock()

    @app.function()
    def echo(x):
        return x

    @app.function()
    def leave():
        raise SystemExit("good bye")

    @app.function()
    def chained():
        try:
            helper.invert(0)
        except ZeroDivisionError as error:
            raise RuntimeError("could not invert") from error

    def seen(call, *args):
        try:
            print(type(call(*args)).__name__, "was returned")
        except BaseException as error:
            print(f"{type(error).__name__}: {error} [{getattr(error, 'code', '')}]")

    @app.local_entrypoint()
    def main():
        seen(divide.remote, 0)
        seen(local.remote, 7)
        seen(odd.remote, 7)
        seen(held.remote)
        seen(lock.remote)
        seen(echo.remote, threading.Lock())
        seen(echo.spawn, threading.Lock())
        seen(lambda: list(echo.map([1, threading.Lock(), 3])))
        seen(leave.remote)
        seen(echo.remote)
        print(echo.remote("still well"))

    @app.local_entrypoint()
    def uncaught():
        divide.remote(0)

    @app.local_entrypoint()
    def mapped():
        for _ in divide.map([1, 2, 0, 4]):
            pass

    @app.local_entrypoint()
    def cause():
        chained.remote()

    @app.local_entrypoint()
    def thread():
        one = threading.Thread(target=divide.remote, args=(0,), name="one of mine")
        one.start()
        one.join()
        other = threading.Thread(target=lambda: echo.remote(threading.Lock()))
        other.start()
        other.join()
"""
HELPER = """
    def invert(x):
        return 1 / x
"""


@pytest.fixture
def mistakes(world: World) -> World:
    world.write("mistakes.py", MISTAKES)
    world.write("helper.py", HELPER)
    return world


def test_every_mistake_is_an_error_of_its_own_and_the_function_goes_on(mistakes: World) -> None:
    lines = mistakes.nomadfn("run", "mistakes.py::main").ok().without_our_frames().out.splitlines()
    for line, expected in zip(
        lines,
        (
            r"ZeroDivisionError: division by zero \[\]",
            r"Local: 7 \[7\]",
            r"RemoteError: .*Odd.*7: because.*",
            r"RemoteError: .*Held.*holds a lock.*",
            r"SerializationError: .*result of lock.*lock.*",
            r"SerializationError: .*argument.* echo.*lock.*",
            r"SerializationError: .*argument.* echo.*lock.*",
            r"SerializationError: .*argument.* echo.*lock.*",
            r".*good bye.*",
            r"TypeError: .*missing 1 required positional argument.*",
            r"still well",
        ),
        strict=True,
    ):
        assert re.fullmatch(expected, line), f"{expected!r} is not\n{line!r}\nof\n{lines}"


@pytest.mark.parametrize("entrypoint", ["uncaught", "mapped"])
def test_an_uncaught_exception_shows_the_frames_here_and_there_and_nothing_of_ours(
    mistakes: World, entrypoint: str
) -> None:
    done = mistakes.nomadfn("run", f"mistakes.py::{entrypoint}").refused(1, "ZeroDivisionError: division by zero")
    source = (mistakes.folder / "mistakes.py").read_text().splitlines()
    remote = 1 + source.index("    return helper.invert(x)")
    assert f'File "{mistakes.folder}/mistakes.py", line {remote}, in divide' in done.err, done.report
    assert f'File "{mistakes.folder}/helper.py", line 3, in invert' in done.err, done.report
    assert f", in {entrypoint}" in done.err, done.report
    assert "/code/" not in done.err, "the place where a container unpacked it is nobody's business"


def test_what_a_thread_of_the_program_raises_is_shown_with_its_own_frames(mistakes: World) -> None:
    done = mistakes.nomadfn("run", "mistakes.py::thread").ok().without_our_frames()
    assert "one of mine" in done.err, done.report
    assert "ZeroDivisionError" in done.err, done.report
    assert "of type lock, cannot be sent" in done.err, done.report


def test_a_cause_is_shown_with_its_own_frames(mistakes: World) -> None:
    done = mistakes.nomadfn("run", "mistakes.py::cause").refused(
        1, "ZeroDivisionError", "RuntimeError: could not invert"
    )
    assert "direct cause" in done.err, done.report
    assert f'File "{mistakes.folder}/helper.py", line 3, in invert' in done.err, done.report


def test_a_program_of_its_own_shows_the_remote_frames_too(mistakes: World) -> None:
    mistakes.write(
        "own.py",
        """
        import mistakes

        with mistakes.app.run():
            mistakes.divide.remote(0)
        """,
    )
    done = mistakes.python("own.py")
    assert done.code == 1, done.report
    assert f'File "{mistakes.folder}/helper.py", line 3, in invert' in done.err, done.report
    assert f'File "{mistakes.folder}/own.py", line 5, in <module>' in done.err, done.report
    assert done.err.rstrip().endswith("ZeroDivisionError: division by zero"), done.report


def test_a_function_that_cannot_be_pickled_names_what_holds_it_back(world: World) -> None:
    world.write(
        "closure.py",
        """
        import threading
        import nomadfn

        app = nomadfn.App("closure")

        def make():
            guard = threading.Lock()

            @app.function(name="guarded")
            def guarded():
                with guard:
                    return 1

            return guarded

        guarded = make()

        @app.local_entrypoint()
        def main():
            guarded.remote()
        """,
    )
    world.nomadfn("run", "closure.py").refused(3, "guarded", "'guard'", "lock")
    world.all_gone()


def test_a_file_that_does_not_import_here_shows_the_users_frames(world: World) -> None:
    world.write("broken.py", "import nomadfn\nimport trouble\n")
    world.write("trouble.py", "value = {}['gone']\n")
    done = world.nomadfn("run", "broken.py").refused(1, "KeyError: 'gone'")
    assert f'File "{world.folder}/trouble.py", line 1' in done.err, done.report


def test_a_file_that_does_not_import_in_a_container_says_so_and_does_not_hang(world: World) -> None:
    world.write(
        "there.py",
        """
        import nomadfn

        app = nomadfn.App("there")
        if not nomadfn.is_local():
            raise RuntimeError("this machine is not to my liking")

        @app.function()
        def f(x):
            return x

        @app.local_entrypoint()
        def main():
            for call in (lambda: list(f.map(range(100))), lambda: f.spawn(1).get(timeout=30)):
                try:
                    call()
                except nomadfn.exception.ExecutionError as error:
                    print(str(error).splitlines()[-1])
            f.remote(1)
        """,
    )
    done = world.nomadfn("run", "there.py")
    done.refused(3, "RuntimeError: this machine is not to my liking", "no container of f could be started")
    assert done.out == 2 * "RuntimeError: this machine is not to my liking\n", done.report
    assert f'File "{world.folder}/there.py", line 6' in done.err, done.report
    world.all_gone()


def test_a_function_that_kills_its_process_ends_the_run_with_what_was_seen(world: World) -> None:
    world.write(
        "fatal.py",
        """
        import os
        import nomadfn

        app = nomadfn.App("fatal")

        @app.function()
        def f():
            print("goodbye, world", flush=True)
            os.abort()

        @app.local_entrypoint()
        def main():
            f.remote()
        """,
    )
    done = world.nomadfn("run", "fatal.py")
    assert done.code == 3, done.report
    assert "lost its container 8 times" in done.err, done.report
    assert "SIGABRT (it aborted)" in done.err, done.report
    assert "goodbye, world" in done.err, done.report
    world.all_gone()


def test_an_argument_and_a_result_over_the_limit_are_refused_with_both_numbers(world: World) -> None:
    world.write(
        "large.py",
        """
        import nomadfn

        app = nomadfn.App("large")

        @app.function()
        def make(size):
            return "x" * size

        @app.function()
        def measure(text):
            return len(text)

        @app.local_entrypoint()
        def main():
            print(measure.remote(make.remote(1_900_000)))
            for call in (lambda: make.remote(3_000_000), lambda: measure.remote("x" * 3_000_000)):
                try:
                    call()
                except nomadfn.exception.RequestSizeError as error:
                    print(error)
        """,
    )
    done = world.nomadfn("run", "large.py", NOMADFN_LIMITS_PAYLOAD_BYTES="2000000").ok()
    fits, result, argument = done.out.splitlines()
    assert fits == "1900000"
    for message in (result, argument):
        assert re.search(r"3,000,\d\d\d bytes", message), done.report
        assert "2,000,000" in message, done.report


LIMITED = """
    import sys, threading, time, warnings
    import nomadfn

    app = nomadfn.App("limited")

    @app.function(max_containers=1)
    def slow(x, pause_s=0.01):
        time.sleep(pause_s)
        return x

    @app.local_entrypoint()
    def remote():
        errors = []

        def call(x):
            try:
                slow.remote(x, 1.0)
            except nomadfn.exception.ResourceExhaustedError as error:
                errors.append(error)
            except (nomadfn.exception.InputCancellation, nomadfn.exception.ServiceError):
                pass  # the run ends before this thread has had its turn

        threads = [threading.Thread(target=call, args=(x,)) for x in range(40)]
        for thread in threads:
            thread.start()
        while len(errors) < 10:
            time.sleep(0.01)
        error = errors[0]
        print(error.limit, error.value, error.maximum, error.retry_after_s > 0)
        print(error)
        sys.stdout.flush()
        raise error

    @app.local_entrypoint()
    def map():
        print(list(slow.map(range(150))) == list(range(150)))

    @app.local_entrypoint()
    def spawn():
        calls = []
        try:
            while True:
                calls.append(slow.spawn(len(calls)))
        except nomadfn.exception.ResourceExhausted as error:
            print(error.limit, error.maximum, error.value >= error.maximum)
        print(nomadfn.FunctionCall.gather(*calls) == list(range(len(calls))), len(calls) >= 20)

    @app.local_entrypoint()
    def spawn_map():
        print(list(slow.spawn_map(range(150)).iter()) == list(range(150)))
"""


def test_over_a_limit_remote_raises_with_the_limit_the_value_and_when_to_try_again(world: World) -> None:
    world.write("limited.py", LIMITED)
    done = world.nomadfn("run", "limited.py::remote", NOMADFN_LIMITS_PENDING_INPUTS="20")
    done.refused(3, "limits.pending_inputs")
    assert done.out.splitlines()[0] == "pending_inputs 20 20 True", done.report
    assert re.search(r"20 inputs wait .* the limit is 20; try again in [\d.]+ s", done.out), done.report
    world.all_gone()


def test_over_a_limit_map_backs_off_and_finishes(world: World) -> None:
    world.write("limited.py", LIMITED)
    done = world.nomadfn("run", "limited.py::map", NOMADFN_LIMITS_PENDING_INPUTS="20").ok()
    assert done.out == "True\n", done.report
    assert "the limit is 20" in done.err, "and says so now and then"


def test_over_a_limit_spawn_raises_and_spawn_map_backs_off(world: World) -> None:
    world.write("limited.py", LIMITED)
    done = world.nomadfn("run", "limited.py::spawn", NOMADFN_LIMITS_PENDING_SPAWNS="20").ok()
    assert done.out.splitlines() == ["pending_spawns 20 True", "True True"], done.report
    done = world.nomadfn("run", "limited.py::spawn_map", NOMADFN_LIMITS_PENDING_SPAWNS="20").ok()
    assert done.out == "True\n", done.report


def test_names_that_do_not_exist_are_said_at_the_first_use(world: World) -> None:
    world.write(
        "names.py",
        """
        import sys
        import nomadfn

        for app, name in (("nowhere", "f"), ("here", "g")):
            function = nomadfn.Function.from_name(app, name)
            try:
                function.remote(1)
            except nomadfn.exception.NotFoundError as error:
                print(error)
        try:
            nomadfn.FunctionCall.from_id("fc-00000000000000000000000000000000").get(timeout=0)
        except nomadfn.exception.Error as error:
            print(type(error).__name__, error)
        """,
    )
    world.write("here.py", "import nomadfn\napp = nomadfn.App('here')\n@app.function()\ndef f(x):\n    return x\n")
    world.up()
    world.deploy("here.py")
    done = world.execute(sys.executable, "names.py").ok()
    no_app, no_function, no_call = done.out.splitlines()
    assert "nowhere" in no_app, done.report
    assert re.search(r"\bg\b.*\bhere\b|\bhere\b.*\bg\b", no_function), done.report
    assert no_call.split()[0] in ("NotFoundError", "OutputExpiredError"), done.report
