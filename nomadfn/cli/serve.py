"""`nomadfn serve`: run an app until Ctrl-C, and take up its program's files as they change."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from nomadfn.sdk.app import App
    from nomadfn.sdk.serving import Serving

POLL_S = 0.3
"""How often the program's files are looked at."""


def register(cli: typer.Typer) -> None:
    cli.command(help=serve.__doc__)(serve)


def serve(
    file: str = typer.Argument(metavar="FILE[::APP]", help="The program; with several apps in it, also which."),
    as_modal: bool = typer.Option(False, "--as-modal", help="Let `import modal` in the file mean nomadfn."),
    timeout: float = typer.Option(None, min=0.0, help="End after so many seconds; without it, with Ctrl-C."),
) -> None:
    """Run an app and its web functions until Ctrl-C; when a file of the program changes, the new version takes over."""
    from nomadfn.cli import output, program
    from nomadfn.cli.progress import RunDisplay
    from nomadfn.cli.run import interrupts
    from nomadfn.sdk import loader
    from nomadfn.sdk.serving import Serving

    sys.dont_write_bytecode = True  # Two versions within one second would have the same cached file.
    loaded = program.load_program(file, as_modal=as_modal)
    name = loaded.name or None
    first: list[App] = [loader.find_app(loaded.module, name)]

    def load() -> App:
        return first.pop() if first else loader.find_app(loader.load(Path(file).expanduser(), as_modal), name)

    threading.excepthook = program.report_in_thread
    display = RunDisplay()
    with interrupts():
        serving = Serving(load, display)
        try:
            try:
                serving.start()
            except Exception as error:
                raise typer.Exit(program.report(error)) from None
            output.note(f"Serving {serving.app.name}; it follows changes of its files and ends with Ctrl-C.")
            _follow(serving, timeout)
        except KeyboardInterrupt:
            pass
        finally:
            serving.stop()
            display.close()
    output.note(f"Stopped {serving.app.name}.")


def _follow(serving: Serving, timeout_s: float | None) -> None:
    """Put each version of the program in force, until the time is up."""
    from nomadfn.cli import output, program

    end = None if timeout_s is None else time.monotonic() + timeout_s
    while end is None or time.monotonic() < end:
        time.sleep(POLL_S if end is None else max(0.0, min(POLL_S, end - time.monotonic())))
        if not (changed := serving.changed()):
            continue
        names = ", ".join(path.name for path in changed)
        try:
            serving.reload()
        except Exception as error:
            program.report(error)
            output.note(f"{names} changed and could not be taken up; the version before goes on.")
        else:
            output.note(f"{names} changed: {serving.app.name} is now as it stands there.")
