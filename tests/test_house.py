"""The rules of the house that a machine can hold: sizes, what an import costs, what a wheel contains."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = {
    "nomadfn": ROOT / "nomadfn",
    "nomadfn_agent": ROOT / "agent/nomadfn_agent",
    "nomadfn_jobspecs": ROOT / "jobspecs/nomadfn_jobspecs",
}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60


def product_files() -> list[Path]:
    return sorted(path for folder in PRODUCT.values() for path in folder.rglob("*.py"))


def line_count(path: Path) -> int:
    return len(path.read_text().splitlines())


def functions_of(path: Path) -> Iterator[tuple[str, int]]:
    """Each function of a file with its lines, the docstring not counted: words are no sign of a missing idea."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if body is not node.body else 0
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1 - docstring


def test_no_file_of_the_product_is_longer_than_one_idea() -> None:
    long = {str(path.relative_to(ROOT)): line_count(path) for path in product_files()}
    assert {name: lines for name, lines in long.items() if lines > MAX_FILE_LINES} == {}


def test_every_function_can_be_read_at_once() -> None:
    long = {name: lines for path in product_files() for name, lines in functions_of(path) if lines > MAX_FUNCTION_LINES}
    assert long == {}


# What nobody should wait for who only writes a function, asks for help, or starts a container.
SERVER_SIDE = {"starlette", "uvicorn", "uvloop", "picows", "websockets", "sqlite3"}
HEAVY = SERVER_SIDE | {"asyncio", "typer", "rich", "cloudpickle", "multiprocessing"}


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        ("import nomadfn", HEAVY | {"msgspec"}),
        ("import nomadfn.exception", HEAVY | {"msgspec"}),
        ("import nomadfn; nomadfn.App('a')", SERVER_SIDE | {"typer", "rich"}),
        ("import nomadfn.core.core", HEAVY | {"logging", "socket", "random"}),
        ("import nomadfn_agent.wire", HEAVY),
        ("import sys; sys.argv[1:] = ['--help']; from nomadfn.cli.main import main; main()", SERVER_SIDE),
    ],
)
def test_an_import_loads_nothing_that_it_does_not_need(program: str, unwanted: set[str]) -> None:
    tell = "import atexit, json, sys; atexit.register(lambda: print(json.dumps(list(sys.modules)), file=sys.stderr)); "
    done = subprocess.run([sys.executable, "-c", tell + program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stderr.splitlines()[-1])) & unwanted == set()


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest imports them side by side, and refuses the second one."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name not in ("conftest.py", "__init__.py")]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_the_wheel_holds_the_three_packages_whole(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in PRODUCT.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= inside
    assert {name.split("/")[0] for name in inside - expected} == {"nomadfn-0.1.0.dist-info"}
