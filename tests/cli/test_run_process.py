"""`nomadfn run` as a user meets it: real processes, real containers."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Callable

import pytest
from cli_harness import TIMEOUT_S, Cli

HELLO = '''
import sys
import time

import nomadfn

app = nomadfn.App("hello")


@app.function()
def square(x: int, y: int = 1) -> int:
    print("out", x)
    print("err", x, file=sys.stderr)
    return x * x * y


@app.function()
def fail(x: int = 1):
    helper(x)


def helper(x):
    raise ValueError(f"no good: {x}")


@app.function(timeout=1)
def slow():
    time.sleep(60)


@app.function()
def nap(x):
    time.sleep(0.02)
    return x


@app.local_entrypoint()
def main(n: int = 3, loud: bool = False):
    """Square some numbers."""
    print("results", list(square.map(range(n))), loud)


@app.local_entrypoint()
async def asynchronous():
    print("results", [x async for x in square.map.aio(range(3))])


@app.local_entrypoint()
def trouble():
    fail.remote(7)


@app.local_entrypoint()
def local_trouble():
    helper(8)


@app.local_entrypoint()
def many():
    print("started", flush=True)
    for _ in nap.map(range(100_000)):
        pass


@app.local_entrypoint()
def some():
    print("sum", sum(nap.map(range(100))))
'''


MODEL = """\
import time
import nomadfn

app = nomadfn.App("model")

@app.cls()
class Model:
    size: int = nomadfn.parameter(default=1)

    @nomadfn.method()
    def nap(self, x):
        time.sleep(0.1)

@app.local_entrypoint()
def main():
    Model(size=2).nap.for_each(range(50))
"""


@pytest.fixture
def hello(cli: Cli) -> Cli:
    cli.write("hello.py", HELLO)
    return cli


def test_an_entrypoint_runs_with_its_arguments_and_the_first_line_names_the_target(hello: Cli) -> None:
    done = hello.run("run", "hello.py::main", "--n", "4", "--loud")
    assert done.returncode == 0, done.stderr
    assert "results [0, 1, 4, 9] True" in done.stdout.splitlines()
    first = done.stderr.splitlines()[0]
    assert "hello" in first
    assert "private" in first
    assert hello.leftovers() == []


def test_lines_of_containers_are_marked_and_keep_their_stream(hello: Cli) -> None:
    done = hello.run("run", "hello.py::square", "--x", "5")
    assert done.returncode == 0, done.stderr
    assert "square#0 │ out 5" in done.stdout.splitlines()
    assert "square#0 │ err 5" in done.stderr.splitlines()
    assert done.stdout.splitlines()[-1] == "25"


def test_quiet_leaves_only_what_the_program_prints(hello: Cli) -> None:
    done = hello.run("run", "--quiet", "hello.py::square", "--x", "5")
    assert done.stderr == "square#0 │ err 5\n"
    assert done.stdout == "square#0 │ out 5\n25\n"


def test_an_async_entrypoint_runs(hello: Cli) -> None:
    assert "results [0, 1, 4]" in hello.out("run", "hello.py::asynchronous")


def test_a_modal_program_runs_as_modal(cli: Cli) -> None:
    text = "import modal\napp = modal.App()\n@app.function()\ndef f(x: int):\n    return x + 1\n"
    cli.write("program.py", text)
    assert cli.out("run", "--as-modal", "program.py", "--x", "2") == "3\n"
    done = cli.run("run", "program.py", "--x", "2")
    assert done.returncode == 1
    assert "No module named 'modal'" in done.stderr
    assert "--as-modal" in done.stderr


OWN_SETTINGS = """
import os
os.environ["NOMADFN_LIMITS_MAP_IN_FLIGHT"] = "7"
import nomadfn
from nomadfn.sdk.client import default_client

app = nomadfn.App("settings")

@app.function()
def square(x):
    return x * x

@app.local_entrypoint()
def main():
    print(square.remote(7), default_client().connect().map_window)
"""


def test_settings_that_the_program_makes_hold_for_its_service(cli: Cli) -> None:
    cli.write("settings.py", OWN_SETTINGS)
    done = cli.run("run", "settings.py")
    assert done.stdout == "49 7\n", done
    assert cli.leftovers() == []


def test_help_of_an_entrypoint_starts_nothing(hello: Cli) -> None:
    done = hello.run("run", "hello.py::main", "--help")
    assert done.returncode == 0
    assert "Square some numbers." in done.stdout
    assert "--loud / --no-loud" in done.stdout
    assert done.stderr == ""


def test_a_remote_exception_shows_the_users_frames_and_nothing_of_ours(hello: Cli) -> None:
    done = hello.run("run", "hello.py::trouble")
    assert done.returncode == 1
    remote, _, local = done.stderr.partition("The call came from here:")
    assert "in helper" in remote
    assert "ValueError: no good: 7" in remote
    assert "in trouble" in local
    assert "nomadfn/" not in done.stderr
    assert "asyncio" not in done.stderr


def test_a_local_exception_shows_the_users_frames_and_nothing_of_ours(hello: Cli) -> None:
    done = hello.run("run", "hello.py::local_trouble")
    assert done.returncode == 1
    assert done.stderr.count("  File ") == 2
    assert done.stderr.splitlines()[-1] == "ValueError: no good: 8"


def test_an_error_of_nomadfn_is_one_line_and_the_place(hello: Cli) -> None:
    done = hello.run("run", "--quiet", "hello.py::slow")
    assert done.returncode == 3
    assert done.stderr.startswith("Error: ")
    assert "timeout of 1 s" in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_everything(hello: Cli) -> None:
    done = hello.run("run", "hello.py::slow", NOMADFN_DEBUG="1")
    assert done.returncode == 3
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("name", "text", "code", "part"),
    [
        ("zero.py", "x = 1 / 0\n", 1, "ZeroDivisionError"),
        ("syntax.py", "def f(:\n", 1, "SyntaxError"),
        ("imports.py", "import no_such_module\n", 1, "No module named 'no_such_module'"),
        ("empty.py", "", 3, "there is no app in empty.py"),
        ("bare.py", "import nomadfn\napp = nomadfn.App('bare')\n", 2, "nothing to run"),
        (
            "wrong.py",
            "import nomadfn\napp = nomadfn.App()\n@app.function(min_containers=5, max_containers=2)\ndef f(): ...\n",
            3,
            "wrong.py:3",
        ),
    ],
)
def test_a_file_that_cannot_be_run_says_why(cli: Cli, name: str, text: str, code: int, part: str) -> None:
    cli.write(name, text)
    done = cli.run("run", name)
    assert done.returncode == code, done.stderr
    assert part in done.stderr
    assert "nomadfn/" not in done.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["missing.py"], ["no file missing.py"]),
        (["no.such.module"], ["no.such.module"]),
        (["tmp"], ["tmp is no file"]),
        (["hello.py::squaer"], ["squaer", "did you mean hello.py::square?"]),
        (["hello.py::zzzzzz"], ["zzzzzz", "it has square, fail"]),
        (["hello.py"], ["6 entrypoints", "nomadfn run hello.py::main"]),
        (["hello.py::square"], ["--x"]),
        (["hello.py::main", "--n", "some"], ["--n"]),
        ([], ["FILE"]),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_what_is_wrong(
    hello: Cli, words: list[str], parts: list[str]
) -> None:
    done = hello.run("run", *words)
    assert done.returncode == 2, done.stderr
    assert all(part in done.stderr for part in parts), done.stderr


def test_detach_needs_a_service_that_stays(hello: Cli) -> None:
    done = hello.run("run", "--detach", "hello.py::main")
    assert done.returncode == 3
    assert "nomadfn up" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_first_interrupt_cancels_and_counts(hello: Cli, number: signal.Signals, code: int) -> None:
    process = hello.start("run", "hello.py::many", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code
    assert "Stopped; " in errors
    assert "Traceback" not in errors
    eventually(lambda: hello.leftovers() == [])


def test_killing_the_command_ends_its_service_and_its_containers(hello: Cli) -> None:
    process = hello.start("run", "hello.py::many", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.kill()
    eventually(lambda: not any("nomadfn.control" in one for one in hello.leftovers()))


def test_on_a_terminal_a_map_has_a_bar_and_leaves_a_line(hello: Cli) -> None:
    controller, terminal = pty.openpty()
    process = hello.start("run", "hello.py::some", stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = read_terminal(controller)
    assert process.wait(TIMEOUT_S) == 0, shown
    assert "━" in shown
    assert "/100 · " in shown
    assert "✓ nap  100 inputs in" in shown
    assert "sum 4950" in shown


def test_the_bar_of_a_method_has_the_figures_of_its_pool(cli: Cli) -> None:
    cli.write("model.py", MODEL)
    controller, terminal = pty.openpty()
    process = cli.start("run", "model.py", stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = read_terminal(controller)
    assert process.wait(TIMEOUT_S) == 0, shown
    assert re.search(r"Model\.nap.*/50 · \d+ running · \d+ container", shown), shown


def test_without_a_terminal_there_is_no_bar(hello: Cli) -> None:
    done = hello.run("run", "hello.py::some")
    assert done.stdout == "sum 4950\n"
    assert "━" not in done.stderr


def test_the_package_runs_as_a_module_too(cli: Cli) -> None:
    assert cli.out("--version") == cli.out("version")


def read_terminal(controller: int) -> str:
    """Everything that is written to a terminal until its other side is closed."""
    data = b""
    while True:
        try:
            chunk = os.read(controller, 65536)
        except OSError:  # Linux says EIO once the program has gone
            break
        if not chunk:
            break
        data += chunk
    os.close(controller)
    return data.decode()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
