"""What commands print: results on stdout, everything about them on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any

RED = "1;31"
DIM = "2"
CONTAINER_COLOURS = ("36", "33", "35", "32", "34", "96", "93", "95", "92", "94")


def has_colour(stream: IO[str]) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, stream: IO[str]) -> str:
    """`text` in an ANSI colour where `stream` shows colours, else as it is."""
    return f"\x1b[{colour}m{text}\x1b[0m" if has_colour(stream) else text


def print_error(message: str) -> None:
    print(paint(f"Error: {message}", RED, sys.stderr), file=sys.stderr)


def note(message: str) -> None:
    """A line about what a command does; never part of its result."""
    print(paint(message, DIM, sys.stderr), file=sys.stderr)


def container_line(function: str, index: int, text: str, stream: IO[str]) -> str:
    """One line that a container wrote, marked with where it comes from: `embed#3 │ text`."""
    if not function:
        return text
    mark = f"{function}#{index} │" if index >= 0 else f"{function} │"
    return f"{paint(mark, CONTAINER_COLOURS[index % len(CONTAINER_COLOURS)], stream)} {text}"


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """A plain table; numbers stand to the right. Without rows, `empty` goes to stderr."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not cells:
        note(empty)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        is_number = all(_is_number(row[position]) for row in cells)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    # What is piped into another program must not be folded at the width of a terminal that is not there.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 10_000)
    console.print(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(",", "").replace(".", "").isdigit()


def duration(seconds: float) -> str:
    """`45 s`, `3 min`, `2 h`, `5 d`: one unit, rounded down."""
    for size_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size_s:
            return f"{int(seconds // size_s)} {unit}"
    return f"{max(0, int(seconds))} s"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
