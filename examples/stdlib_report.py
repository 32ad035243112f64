"""Parse every module of Python's own standard library in containers, and show where its hardest functions are.

    nomadfn run examples/stdlib_report.py
    nomadfn run examples/stdlib_report.py --top 20 --no-compare

Shows: a map over real files, arguments of the command line from the entrypoint's signature, results in input
order while containers start from zero. The same work then runs once more in a plain loop, for comparison.
"""

import ast
import os
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nomadfn

app = nomadfn.App("stdlib-report")

LIBRARY = Path(sysconfig.get_path("stdlib"))
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.comprehension, ast.match_case)


@dataclass(frozen=True)
class Measured:
    """One function of the library: how long it is, and how many ways lead through it (1 + its branches)."""

    where: str
    lines: int
    branches: int


@dataclass(frozen=True)
class Report:
    """One module: its size, its functions, and the container that read it."""

    lines: int
    functions: list[Measured]
    container: str


def branches_of(node: ast.AST) -> int:
    """Branches of a function, those of functions inside it left to them; `a and b and c` counts as two."""
    count = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.BoolOp):
            count += len(child.values) - 1
        count += isinstance(child, BRANCHES) + branches_of(child)
    return count


def functions_of(module: str, node: ast.AST, prefix: str = "") -> Iterator[Measured]:
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}{child.name}."
            lines = (child.end_lineno or child.lineno) - child.lineno + 1
            yield Measured(f"{module}:{child.lineno} {name[:-1]}", lines, 1 + branches_of(child))
        elif isinstance(child, ast.ClassDef):
            name = f"{prefix}{child.name}."
        yield from functions_of(module, child, name)


@app.function()
def measure(module: str) -> Report:
    """Parse one module, named by its path inside the library."""
    source = (LIBRARY / module).read_bytes()
    functions = list(functions_of(module, ast.parse(source, module)))
    return Report(source.count(b"\n"), functions, os.environ.get("NOMADFN_CONTAINER_ID", "here"))


def modules() -> list[str]:
    """Every module of the library, without its tests and without what was installed beside it."""
    paths = (path.relative_to(LIBRARY) for path in sorted(LIBRARY.rglob("*.py")))
    return [path.as_posix() for path in paths if not SKIPPED_FOLDERS & set(path.parts)]


def print_report(reports: list[Report], top: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    functions = [function for report in reports for function in report.functions]
    console = Console()
    for title, size in (("Largest functions", "lines"), ("Most branching functions", "branches")):
        table = Table("function", "lines", "branches", title=title, box=box.SIMPLE, title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for one in sorted(functions, key=lambda one: getattr(one, size), reverse=True)[:top]:
            table.add_row(one.where, f"{one.lines:,}", f"{one.branches:,}")
        console.print(table)
    lines = sum(report.lines for report in reports)
    console.print(f"{len(reports):,} modules, {lines:,} lines, {len(functions):,} functions")


@app.local_entrypoint()
def main(top: int = 10, compare: bool = True) -> None:
    paths = modules()
    for path in paths:
        (LIBRARY / path).read_bytes()  # From here on the files are in memory, for the containers and for the loop.

    started = time.perf_counter()
    reports = list(measure.map(paths))
    mapped_s = time.perf_counter() - started
    print_report(reports, top)
    used = {report.container for report in reports}
    print(f"{len(used)} containers, from none: {mapped_s:.2f} s, {len(paths) / mapped_s:,.0f} modules/s")

    if compare:
        started = time.perf_counter()
        again = [measure.local(path) for path in paths]
        looped_s = time.perf_counter() - started
        assert [one.functions for one in again] == [one.functions for one in reports]
        print(f"plain loop here: {looped_s:.2f} s, {len(paths) / looped_s:,.0f} modules/s")
        print(f"nomadfn took {mapped_s / looped_s:.2f} of the loop's time, the same results")
