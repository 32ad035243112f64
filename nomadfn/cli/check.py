"""`nomadfn check`: what a program uses of Modal's API, and what nomadfn has of it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from nomadfn.sdk.compat import Feature
    from nomadfn.sdk.modal_use import Use

EXIT_LACKS = 3


def register(cli: typer.Typer) -> None:
    cli.command(help=check.__doc__)(check)


def check(
    files: list[Path] = typer.Argument(metavar="FILE...", help="The programs; of a folder all Python files in it."),
    everything: bool = typer.Option(False, "--all", help="Show what is supported as well."),
    as_json: bool = typer.Option(False, "--json", help="Print every use as JSON."),
) -> None:
    """List what a program uses of Modal's API: supported, ignored or unsupported, and what to do.

    Nothing is run or imported. Local modules that a program imports are read with it. Ends with 3 where something is
    unsupported.
    """
    from nomadfn.cli import output
    from nomadfn.sdk import compat, modal_use

    table = compat.Table()
    found: list[tuple[Use, Feature]] = []
    for path in _with_imports(files):
        found += [(use, table.find(use.name)) for use in modal_use.uses(_read(path), str(path))]
    lacking = [one for one in found if one[1].status not in (compat.SUPPORTED, compat.IGNORED)]
    if as_json:
        columns = ("path", "line", "name", "status", "note")
        rows = [(use.path, use.line, use.name, feature.status, feature.note) for use, feature in found]
        output.print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        shown = found if everything else _telling(found)
        if shown:
            output.print_table(
                ("where", "what", "", "how it differs, or what to do"),
                [(f"{use.path}:{use.line}", use.name, one.status, one.note.replace("`", "")) for use, one in shown],
                "",
            )
        output.note(_summary(found))
    if lacking:
        raise typer.Exit(EXIT_LACKS)


def _telling(found: list[tuple[Use, Feature]]) -> list[tuple[Use, Feature]]:
    """What is not simply supported, without the parts of what is told in the same line already."""
    told: list[tuple[Use, Feature]] = []
    for use, feature in found:
        if feature.status == "supported":
            continue
        wholes = [one for one, _ in told if (one.path, one.line) == (use.path, use.line)]
        if not any(use.name.startswith((f"{one.name}.", f"{one.name}(")) for one in wholes):
            told.append((use, feature))
    return told


def _summary(found: list[tuple[Use, Feature]]) -> str:
    from nomadfn.cli.output import plural

    by_status: dict[str, set[str]] = {}
    for use, feature in found:
        by_status.setdefault(feature.status, set()).add(use.name)
    names = len({use.name for use, _ in found})
    if not names:
        return "No use of Modal's API was found: the program neither imports modal nor nomadfn."
    parts = ", ".join(f"{len(by_status[status])} {status}" for status in sorted(by_status))
    return f"{plural(names, 'name')} of Modal's API: {parts}"


def _with_imports(files: list[Path]) -> list[Path]:
    """The files, and the modules beside them that they import, each once."""
    waiting = [path for file in files for path in (sorted(file.rglob("*.py")) if file.is_dir() else [file])]
    seen: dict[Path, None] = {}
    while waiting:
        path = waiting.pop(0)
        if path.resolve() in (known.resolve() for known in seen):
            continue
        seen[path] = None
        waiting += _local_imports(path)
    return list(seen)


def _local_imports(path: Path) -> list[Path]:
    from nomadfn.sdk.modal_use import MODULES

    names: set[str] = set()
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Import):
            names.update(one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names.update({module, *(f"{module}.{one.name}".strip(".") for one in node.names)})
    found = []
    for name in sorted(names - set(MODULES)):
        place = path.parent.joinpath(*name.split("."))
        found += [one for one in (place.with_suffix(".py"), place / "__init__.py") if name and one.is_file()]
    return found


def _parse(path: Path) -> ast.Module:
    from nomadfn.exception import InvalidError

    try:
        return ast.parse(_read(path), str(path))
    except (SyntaxError, ValueError) as error:
        raise InvalidError(f"{path} is no Python that can be read: {error}") from None


def _read(path: Path) -> str:
    import tokenize

    from nomadfn.exception import InvalidError, NotFoundError

    try:
        with tokenize.open(path) as file:
            return file.read()
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path} cannot be read: {error}") from None
