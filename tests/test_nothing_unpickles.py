"""The control service never unpickles: what it carries may come from anyone who may call a function."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVED = [path for part in ("core", "control", "adapters") for path in sorted((ROOT / "nomadfn" / part).rglob("*.py"))]
SERVED.append(ROOT / "nomadfn/ports.py")
UNPICKLERS = {"pickle", "_pickle", "pickletools", "cloudpickle", "dill", "marshal", "shelve", "multiprocessing"}
LOADERS = {"loads", "load_arguments", "Unpickler"}
HARMLESS = {"json.loads", "tomllib.loads"}
SHARED = "nomadfn_agent.wire"


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def names_in(tree: ast.AST) -> Iterator[str]:
    """Every function that is named in the code, with what it is taken from: `json.loads`, `load_arguments`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Name):
            yield node.id


@pytest.mark.parametrize("path", SERVED, ids=lambda path: str(path.relative_to(ROOT / "nomadfn")))
def test_no_module_of_the_control_service_can_unpickle(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = set(imports_of(tree))
    assert {name for name in imported if name.partition(".")[0] in UNPICKLERS} == set()
    assert {name for name in imported if name.startswith("nomadfn_agent") and not name.startswith(SHARED)} == set()
    assert {name for name in imported if name.startswith("nomadfn.sdk")} == set()
    assert {name for name in names_in(tree) if name.rpartition(".")[2] in LOADERS} <= HARMLESS


SERVICE = """
import _pickle, os, pickle, sys, traceback

def refuse(*args, **kwargs):
    traceback.print_stack()
    os._exit(99)

class Refusing:
    __init__ = refuse

for module in (pickle, _pickle):
    module.loads = module.load = refuse
    module.Unpickler = Refusing
pickle._loads = pickle._load = refuse
pickle._Unpickler = Refusing

from nomadfn.control.main import main
sys.exit(main(sys.argv[1:]))
"""

PROGRAM = """
import nomadfn

app = nomadfn.App("carried")

class Odd(Exception):
    pass

@app.function()
def half(number):
    if number % 2:
        raise Odd(number)
    return {"half": number // 2, "large": bytes(200_000 if number == 10 else 1)}

if __name__ == "__main__":
    with app.run():
        results = list(half.map(range(40), return_exceptions=True))
        assert [one["half"] for one in results[::2]] == list(range(20))
        assert [type(one).__name__ for one in results[1::2]] == ["Odd"] * 20
        assert half.spawn(8).get(timeout=60)["half"] == 4
        try:
            half.remote(7)
        except Odd as error:
            print("caught", error)
"""


def test_a_service_that_dies_of_unpickling_runs_maps_spawns_and_exceptions(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    (tmp_path / "carried.py").write_text(PROGRAM)
    ready, ready_writer = os.pipe()
    lifeline_reader, lifeline = os.pipe()
    options = ["--data-dir", str(data_dir), "--ready-fd", str(ready_writer), "--lifeline-fd", str(lifeline_reader)]
    with open(tmp_path / "control.log", "w+") as log, open(lifeline, "wb"), open(ready, "rb") as said:
        service = subprocess.Popen(
            [sys.executable, "-c", SERVICE, *options, "--port", "0", "--data-port", "0"],
            pass_fds=(ready_writer, lifeline_reader),
            stdout=log,
            stderr=log,
        )
        os.close(ready_writer)
        os.close(lifeline_reader)
        try:
            assert "pid" in json.loads(said.readline())
            environment = {**os.environ, "NOMADFN_DATA_DIR": str(data_dir)}
            program = [sys.executable, "carried.py"]
            done = subprocess.run(
                program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90, check=False
            )
            service.terminate()
            exit_code = service.wait(timeout=30)
        finally:
            service.kill()
            service.wait(timeout=30)
        log.seek(0)
        assert (done.returncode, done.stdout, exit_code) == (0, "caught 7\n", 0), f"{done.stderr}\n{log.read()}"
