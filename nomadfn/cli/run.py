"""`nomadfn run`: a program's entrypoint here, or one of its functions in a container."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer


def register(cli: typer.Typer) -> None:
    cli.command(
        help=run.__doc__,
        options_metavar="[OPTIONS] FILE[::NAME] [ARGS]...",
        # What stands behind the file belongs to the program, its --help too.
        context_settings={"allow_extra_args": True, "allow_interspersed_args": False},
    )(run)


def run(
    context: typer.Context,
    detach: bool = typer.Option(False, "--detach", "-d", help="Leave what was spawned running at the end."),
    as_modal: bool = typer.Option(False, "--as-modal", help="Let `import modal` in the file mean nomadfn."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Show only what the program itself prints."),
) -> None:
    """Run a program's entrypoint, or one of its functions.

    ARGS come from the signature of what is run; `nomadfn run FILE::NAME --help` lists them.
    """
    if not context.args:
        context.fail("Missing argument 'FILE[::NAME]'.")
    from nomadfn.sdk import private_service

    reference, *words = context.args
    if os.path.isfile(reference.partition("::")[0]) and not (detach or {"--help", "-h"} & set(words)):
        private_service.begin()  # It starts while the program is imported.
    from nomadfn.cli import program

    threading.excepthook = program.report_in_thread  # for good: threads may outlive the run
    with interrupts():
        code = _run(program.load_program(reference, as_modal=as_modal), reference, words, detach=detach, quiet=quiet)
    if code:
        raise typer.Exit(code)


def _run(loaded: Any, reference: str, words: list[str], *, detach: bool, quiet: bool) -> int:
    """Start the app, run what was named, stop the app. Returns the exit code."""
    from nomadfn.cli import output, program
    from nomadfn.cli.arguments import parse_arguments
    from nomadfn.cli.progress import RunDisplay
    from nomadfn.exception import InputCancellation
    from nomadfn.sdk.app import LocalEntrypoint

    chosen = loaded.runnable()
    if getattr(chosen, "answers_http", False):
        program.refuse(
            f"{chosen.name} is a web function and takes HTTP requests only: `nomadfn serve {loaded.file}` serves it "
            f"while you work on it, `nomadfn deploy {loaded.file}` for good"
        )
    args, kwargs = parse_arguments(chosen.raw_f, f"nomadfn run {reference}", words)
    display = RunDisplay(quiet=quiet)
    is_entrypoint = isinstance(chosen, LocalEntrypoint)
    code = unfinished = interrupted = 0
    try:
        with chosen.app.run(detach=detach, observer=display):
            try:
                result = (_call_entrypoint if is_entrypoint else _call_function)(chosen, args, kwargs)
            except KeyboardInterrupt:
                unfinished = display.unfinished()
                raise
    except KeyboardInterrupt as end:
        interrupted = end.number if isinstance(end, _Interrupted) else signal.SIGINT
        code = 128 + interrupted
    except (Exception, InputCancellation) as error:
        display.close()
        code = program.report(error)
    finally:
        display.close()
    if detach and display.app_id:
        output.note(f"Detached; `nomadfn app logs -f {display.app_id}` shows it, `nomadfn app stop` stops it.")
    elif interrupted:
        cancelled = max(display.cancelled, unfinished)
        output.note(f"Stopped; {output.plural(cancelled, 'unfinished input')} cancelled.")
    elif display.cancelled and not quiet:
        left = f"{output.plural(display.cancelled, 'unfinished input')} cancelled at the end"
        output.note(f"{left}; --detach leaves them running.")
    if code == 0 and not is_entrypoint and result is not None:
        print(result)
    return code


def _call_entrypoint(entrypoint: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not entrypoint.is_async:
        return entrypoint(*args, **kwargs)
    import asyncio

    return asyncio.run(entrypoint(*args, **kwargs))


def _call_function(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What it returns; the values of a generator are printed as they come."""
    if not function.is_generator:
        return function.remote(*args, **kwargs)
    for value in function.remote_gen(*args, **kwargs):
        print(value, flush=True)
    return None


class _Interrupted(KeyboardInterrupt):
    """A signal that ends the run in good order; `number` is which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def interrupts() -> Iterator[None]:
    """The first Ctrl-C cancels, the second ends this process at once; a private service ends with it."""
    count = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h")  # the bar had hidden the cursor
            os._exit(128 + number)
        raise _Interrupted(number)

    former = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            former[number] = signal.signal(number, interrupt)
    try:
        yield
    except _Interrupted as end:
        raise typer.Exit(128 + end.number) from None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
