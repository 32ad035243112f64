"""How a container becomes a function: environment, archive, imports, and everything that can be wrong there."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest
from agent_harness import Machine
from nomadfn_agent import wire


@pytest.fixture
def machine(lasting_machine: Machine) -> Iterator[Machine]:
    yield lasting_machine
    lasting_machine.end_all()


def test_env_stands_before_anything_of_the_user_is_imported(machine: Machine) -> None:
    source = "import os\nat_import = dict(os.environ)\ndef f(name):\n    return at_import.get(name)\n"
    runner = machine.run(source, user_env={"COLOUR": "blue", "TZ": "Asia/Tokyo"}, env={"FROM_START": "yes"})
    assert runner.call("COLOUR") == "blue"
    assert runner.call("FROM_START") == "yes"
    assert runner.call("NOMADFN_APP_ID") == "ap-1"
    assert runner.call("NOMADFN_APP_NAME") == "thumbs"
    assert runner.call("NOMADFN_FUNCTION") == "f"
    assert runner.call("NOMADFN_CONTAINER_ID") == runner.hello.session


def test_the_main_module_is_also_main(machine: Machine) -> None:
    source = """
import sys
class Point:
    def __init__(self, x):
        self.x = x
def f(point=None):
    return type(point) is Point, sys.modules["__main__"].__name__, __name__
if __name__ == "__main__":
    raise SystemExit("not here")
"""
    runner = machine.run(source)
    by_main = pickle.dumps(((None,),)).replace(b"N", b"c__main__\nPoint\n)\x81", 1)
    [delivery] = runner.deliver_raw([by_main], [wire.PICKLE])
    assert runner.value(delivery) == (True, "hello", "hello")


def test_siblings_and_packages_of_the_program_are_imported_from_the_archive(machine: Machine) -> None:
    files = {
        "hello.py": "import sibling, pack.inner\n",
        "sibling.py": "VALUE = 4\n",
        "pack/__init__.py": "",
        "pack/inner.py": "import sibling\nclass Group:\n    def double(x):\n        return sibling.VALUE * x\n",
    }
    runner = machine.run(files, "Group.double", module="pack.inner")
    assert runner.call(3) == 12


def test_runners_that_unpack_the_same_archive_at_once_share_one_folder(machine: Machine) -> None:
    files = {"hello.py": "def f():\n    return __file__\n"} | {f"data/{n}.txt": "x" * 1000 for n in range(200)}
    runners = [machine.join(files) for _ in range(4)]
    for runner in runners:
        runner.expect(wire.Ready)
    paths = {runner.call() for runner in runners}
    assert len(paths) == 1
    assert Path(paths.pop()).parent.name in os.listdir(machine.code_cache)
    assert [name for name in os.listdir(machine.code_cache) if name.startswith(".tmp-")] == []


def test_a_function_behind_a_decorator_object_is_found_by_its_raw_form(machine: Machine) -> None:
    source = """
class Decorated:
    def __init__(self, raw):
        self.raw_f = raw
@Decorated
def f(x):
    return x + 1
"""
    assert machine.run(source).call(1) == 2


def test_a_function_whose_name_was_bound_anew_is_found_in_its_app(machine: Machine) -> None:
    source = """
import sys
class App:
    name = "thumbs"
    registered_functions = {}
App.__module__ = "nomadfn.sdk.app"
class Decorated:
    def __init__(self, raw):
        self.raw_f = raw
app = App()
def f(x):
    return x + 1
app.registered_functions["f"] = Decorated(f)
f = None
"""
    assert machine.run(source).call(1) == 2


def test_a_cloudpickled_function_needs_no_archive(machine: Machine) -> None:
    def make(offset: int):  # type: ignore[no-untyped-def]
        return lambda x: x + offset

    data = cloudpickle.dumps(make(40))
    digest = machine.blobs.write_code(data)
    runner = machine.run({}, "f", module="", qualname="", serialized_ref=digest, code={"origin": ""})
    assert runner.call(2) == 42


def test_a_program_that_imports_modal_gets_nomadfn_and_the_same_classes(machine: Machine) -> None:
    source = """
import modal, modal.exception, nomadfn.exception
from modal.exception import NotFoundError
def f():
    import importlib
    same = NotFoundError is nomadfn.exception.NotFoundError and modal.exception is nomadfn.exception
    return same, modal.__name__, nomadfn.exception.__spec__.name, importlib.import_module("modal.exception").__name__
"""
    runner = machine.run(source, code={"as_modal": True})
    assert runner.call() == (True, "nomadfn", "nomadfn.exception", "nomadfn.exception")


def test_without_the_flag_there_is_no_modal(machine: Machine) -> None:
    source = "import sys\ndef f():\n    return [m for m in sys.modules if m.split('.')[0] == 'modal']\n"
    assert machine.run(source).call() == []


def test_no_user_code_and_no_thread_is_in_what_a_container_is_forked_from(machine: Machine) -> None:
    head = "import sys, threading\nat_import = threading.active_count(), 'hello2' in sys.modules\n"
    source = head + "def f():\n    return at_import\n"
    machine.run({"hello.py": source, "hello2.py": ""}).call()
    assert machine.run(source).call() == (1, False)


@pytest.mark.parametrize(
    ("source", "type_name", "text"),
    [
        ("import no_such_module\n", "ModuleNotFoundError", "no_such_module"),
        ("def f(:\n    pass\n", "SyntaxError", "invalid syntax"),
        ("def g():\n    1 / 0\ng()\n", "ZeroDivisionError", "division by zero"),
        ("import sys\nsys.exit('stop it')\n", "SystemExit", "stop it"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt", ""),
    ],
)
def test_a_file_that_does_not_import_says_why_under_the_users_own_path(
    machine: Machine, source: str, type_name: str, text: str
) -> None:
    runner = machine.join(source)
    raised = runner.failed_start()
    assert raised.type_name == type_name
    assert text in raised.text
    assert '"/home/ada/thumbs/hello.py", line ' in raised.traceback
    for hidden in ("nomadfn_agent", "importlib", machine.code_cache):
        assert hidden not in raised.traceback
    assert machine.end(runner).exit_code == 2


@pytest.mark.parametrize(
    ("source", "options", "text"),
    [
        ("def g():\n    pass\n", {}, "has no 'f'"),
        ("f = 3\n", {}, "a value of type int"),
        ("def f():\n    pass\n", {"code": {"python": "3.2"}}, "Python 3.2"),
        ("def f():\n    pass\n", {"code": {"digest": "0" * 64}}, "could not be unpacked"),
        ({"json.py": "def f():\n    pass\n"}, {"module": "json", "code": {"main_module": "json"}}, "rename its file"),
        ("def f():\n    pass\n", {"serialized_ref": "0" * 64}, "pickled function"),
    ],
)
def test_a_function_that_cannot_be_loaded_says_what_to_do(
    machine: Machine, source: str | dict[str, str], options: dict[str, object], text: str
) -> None:
    runner = machine.join(source, **options)
    raised = runner.failed_start()
    assert raised.type_name == "ExecutionError"
    assert text in raised.text
    assert raised.traceback == ""
    assert machine.end(runner).exit_code == 2


def test_what_is_printed_at_import_is_heard_also_when_it_fails(machine: Machine) -> None:
    runner = machine.join("print('so far', end='')\nraise ValueError\n")
    runner.failed_start()
    assert machine.end(runner).tail == "so far"
    assert machine.output(runner) == "so far"
