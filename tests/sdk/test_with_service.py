"""Programs as users write them, against the real control service and real containers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

GUIDE = """
import itertools, os, sys
import nomadfn as modal

app = modal.App("guide")

@app.function(max_containers=4, min_containers=0, buffer_containers=1, scaledown_window=300)
def process(item):
    return item * 2

@app.function()
def add(x, y):
    return x + y

@app.function()
def picky(x):
    if x % 5 == 0:
        raise ValueError(f"no {x}")
    return x

if __name__ == "__main__":
    with app.run():
        items = list(range(10_000))
        assert list(process.map(items)) == [2 * x for x in items]
        assert sorted(process.map(items, order_outputs=False)) == [2 * x for x in items]
        results = list(picky.map(range(20), return_exceptions=True))
        assert [x for x, r in enumerate(results) if isinstance(r, ValueError)] == [0, 5, 10, 15], results
        assert list(add.starmap([(1, 2), (3, 4), (5, 6)])) == [3, 7, 11]
        call = process.spawn("ab")
        assert call.get() == "abab"
        assert call.num_inputs() == 1
        many = process.spawn_map(range(1_000))
        assert list(many.iter()) == [2 * x for x in range(1_000)]
        assert many.get(index=7) == 14
        assert modal.FunctionCall.gather(*(process.spawn(x) for x in range(150))) == [2 * x for x in range(150)]
        pulled = 0
        def endless():
            global pulled
            for x in itertools.count():
                pulled += 1
                yield x
        results = process.map(endless())
        assert [next(results) for _ in range(100)] == [2 * x for x in range(100)]
        results.close()
        assert pulled <= 1_100, pulled
        assert process.get_current_stats().num_total_runners >= 1
        assert process.update_autoscaler(buffer_containers=0).scaledown_window == 300
        process.for_each([1, 2, 3])
    print("the guide holds")
"""

TOGETHER = """
import os
import nomadfn
from helper import shout
from toolbox.words import Word

app = nomadfn.App("together")
LIMIT = 3

class Local:
    def __init__(self, value): self.value = value
    def __eq__(self, other): return isinstance(other, Local) and self.value == other.value

@app.function()
def inner(x):
    return x + LIMIT

@app.function(env={"COLOUR": "green"})
def outer(x):
    assert not nomadfn.is_local()
    assert nomadfn.current_input_id().startswith("in-")
    assert nomadfn.current_function_call_id().startswith("fc-")
    return inner.remote(x), list(inner.map([1, 2])), shout("hi"), Word("a"), Local(x), os.environ["COLOUR"]

@app.function(serialized=True)
def by_value(x):
    return inner.remote(x)

def make(n):
    @app.function(name=f"plus_{n}")
    def plus(x):
        return inner.local(x) + n
    return plus

plus_ten = make(10)

if __name__ == "__main__":
    with app.run():
        assert outer.remote(1) == (4, [4, 5], "HI", Word("a"), Local(1), "green"), outer.remote(1)
        assert by_value.remote(1) == 4
        assert plus_ten.remote(1) == 14
        assert inner.local(1) == 4
    print("all together")
"""


def run(folder: Path, name: str, text: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / name).write_text(text)
    command = [sys.executable, *arguments, name]
    return subprocess.run(
        command, cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=90, check=False
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for a program, on a machine where no control service runs."""
    monkeypatch.setenv("NOMADFN_DATA_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "program").mkdir()
    return tmp_path / "program"


@pytest.fixture
def up(folder: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A control service that stays."""
    command = [sys.executable, "-m", "nomadfn.control", "--data-dir", str(tmp_path / "state")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(tmp_path / "state" / "service.json")
    yield process
    process.send_signal(signal.SIGTERM)
    process.wait(30)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)


def test_the_code_of_the_guide_runs_as_written(folder: Path) -> None:
    done = run(folder, "guide.py", GUIDE)
    assert done.returncode == 0, done.stderr
    assert "the guide holds" in done.stdout


def test_nothing_of_a_private_service_is_left(folder: Path, tmp_path: Path) -> None:
    done = run(folder, "guide.py", GUIDE.replace("10_000", "10"))
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("name", ["together.py", "my-app.py", "test.py"])
def test_functions_use_each_other_and_everything_beside_them(folder: Path, name: str) -> None:
    (folder / "toolbox").mkdir()
    (folder / "toolbox" / "words.py").write_text(
        "class Word(str):\n    def __reduce__(self):\n        return Word, (str(self),)\n"
    )
    (folder / "helper.py").write_text("def shout(text):\n    return text.upper()\n")
    done = run(folder, name, TOGETHER)
    assert done.returncode == 0, done.stderr
    assert "all together" in done.stdout


def test_a_program_from_standard_input_travels_by_value(folder: Path) -> None:
    text = """
import nomadfn
app = nomadfn.App("typed")
class Thing:
    value = 3
def helper(x): return x + 1
@app.function()
def f(thing, x):
    return thing.value + helper(x), Thing
with app.run():
    value, kind = f.remote(Thing(), 1)
    assert value == 5, value
print("typed")
"""
    done = subprocess.run(
        [sys.executable, "-"], input=text, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("typed\n")


def test_a_module_of_a_package_runs_by_its_dotted_name(folder: Path) -> None:
    (folder / "pack").mkdir()
    (folder / "pack" / "__init__.py").write_text("")
    (folder / "pack" / "part.py").write_text("def two(): return 2\n")
    (folder / "pack" / "main.py").write_text(
        "import nomadfn\nfrom .part import two\napp = nomadfn.App('pack')\n"
        "@app.function()\ndef f():\n    return two()\n"
        "if __name__ == '__main__':\n    with app.run():\n        print('got', f.remote())\n"
    )
    command = [sys.executable, "-m", "pack.main"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert "got 2" in done.stdout, done.stderr


def test_what_containers_print_appears_marked_and_an_unguarded_run_is_explained(folder: Path) -> None:
    text = """
import nomadfn
app = nomadfn.App("chatty")
@app.function()
def f(x):
    print("computing", x)
    return x
GUARD
    with app.run():
        f.remote(1)
"""
    done = run(folder, "chatty.py", text.replace("GUARD", "if __name__ == '__main__':"))
    assert done.returncode == 0, done.stderr
    assert "f#0 │ computing 1" in done.stdout
    done = run(folder, "unguarded.py", text.replace("GUARD", "if True:"))
    assert done.returncode != 0
    assert "if __name__ == '__main__'" in done.stderr


def test_what_a_program_spawned_before_it_ended_is_read_by_another(folder: Path, up: subprocess.Popen[bytes]) -> None:
    deploy = run(
        folder,
        "deployed.py",
        """
import nomadfn
app = nomadfn.App("deployed")
@app.function()
def double(x):
    return 2 * x
@app.function()
def scale_up():
    return nomadfn.Function.from_name("deployed", "double").update_autoscaler(max_containers=3).max_containers
if __name__ == "__main__":
    app.deploy()
    print(app.deployment.version, sorted(app.deployment.changed))
""",
    )
    assert "1 ['double', 'scale_up']" in deploy.stdout, deploy.stderr
    first = run(
        folder,
        "first.py",
        """
import nomadfn
double = nomadfn.Function.from_name("deployed", "double")
print(*[double.spawn(x).object_id for x in range(50)], double.spawn_map(range(1_000)).object_id)
""",
    )
    assert first.returncode == 0, first.stderr
    second = run(
        folder,
        "second.py",
        f"""
import nomadfn
calls = [nomadfn.FunctionCall.from_id(one) for one in {first.stdout.split()!r}]
assert nomadfn.FunctionCall.gather(*calls[:50]) == [2 * x for x in range(50)]
assert list(calls[50].iter()) == [2 * x for x in range(1_000)]
assert nomadfn.Function.from_name("deployed", "scale_up").remote() == 3
for name in (("deployed", "no_such"), ("no_such", "double")):
    try:
        nomadfn.Function.from_name(*name).remote(1)
    except nomadfn.exception.NotFoundError as error:
        print(error)
""",
    )
    assert second.returncode == 0, second.stderr
    assert len(second.stdout.splitlines()) == 2


def test_a_private_service_that_dies_is_an_error_with_its_last_words(folder: Path) -> None:
    done = run(
        folder,
        "dying.py",
        """
import os, signal, time
import nomadfn
app = nomadfn.App("dying")
@app.function()
def f():
    time.sleep(600)
if __name__ == "__main__":
    import threading
    with app.run() as running:
        pid = running._running.client.handle.process.pid
        threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
        f.remote()
""",
    )
    assert done.returncode == 1
    assert "ServiceError: the private control service ended (killed by signal 9)" in done.stderr
    assert "Traceback (most recent call last)" in done.stderr
