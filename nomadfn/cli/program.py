"""A user's program: loading its file, finding what to run in it, and showing what it raised."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from nomadfn.cli import output
from nomadfn.exception import DeprecationError, Error, InputCancellation, NotFoundError

if TYPE_CHECKING:
    from nomadfn.cli.methods import Method
    from nomadfn.sdk.app import App, LocalEntrypoint
    from nomadfn.sdk.function import Function

EXIT_USER_ERROR = 1
EXIT_USAGE = 2
EXIT_ERROR = 3


@dataclass(frozen=True)
class Program:
    """One loaded file with the apps that stand in it, and the name behind its `::`, which may be empty."""

    file: str
    name: str
    module: ModuleType
    apps: list[App]

    def runnable(self) -> LocalEntrypoint | Function[Any, Any] | Method:
        """The entrypoint, function or method to run. Ends the process with code 2 where the name does not say which."""
        from nomadfn.cli.methods import methods_of

        entrypoints = {name: one for app in self.apps for name, one in app.registered_entrypoints.items()}
        functions: dict[str, Function[Any, Any] | Method] = {
            name: one for app in self.apps for name, one in app.registered_functions.items()
        }
        functions |= {one.name: one for app in self.apps for one in methods_of(app)}
        everything: dict[str, LocalEntrypoint | Function[Any, Any] | Method] = {**functions, **entrypoints}
        if self.name:
            if self.name not in everything:
                self._refuse_name(f"{self.file} has no entrypoint or function {self.name}", everything)
            return everything[self.name]
        if not everything:
            refuse(f"{self.file} has nothing to run; put @app.local_entrypoint() or @app.function() above a function")
        names = list(entrypoints or functions)
        if len(names) > 1:
            listed = "\n".join(f"  nomadfn run {self.file}::{name}" for name in names)
            refuse(
                f"{self.file} has {len(names)} {'entrypoints' if entrypoints else 'functions'}; say which:\n{listed}"
            )
        return everything[names[0]]

    def _refuse_name(self, message: str, known: Iterable[str]) -> NoReturn:
        import difflib  # Only who has mistyped needs it.

        close = difflib.get_close_matches(self.name, known, n=1)
        hint = f"did you mean {self.file}::{close[0]}?" if close else f"it has {', '.join(known) or 'none'}"
        refuse(f"{message}; {hint}")


def load_program(reference: str, *, as_modal: bool) -> Program:
    """Import the file of `FILE[::NAME]`. Ends the process where there is none, where it raises, or has no app."""
    from nomadfn.sdk import loader
    from nomadfn.sdk.app import App

    file, _, name = reference.partition("::")
    path = Path(file).expanduser()
    if not path.is_file() and (path.exists() or not all(part.isidentifier() for part in file.split("."))):
        refuse(f"{file} is no file; give the path of a Python program, as in `nomadfn run hello.py`")
    if not path.exists() and file.endswith(".py"):
        refuse(f"there is no file {file}; give the path of a Python program, as in `nomadfn run hello.py`")
    try:
        module = loader.load(path, as_modal)
    except Exception as error:
        if isinstance(error, NotFoundError) and not path.exists():
            refuse(str(error))
        code = report(error)
        if isinstance(error, ModuleNotFoundError) and error.name == "modal":
            output.note("`nomadfn run --as-modal` and `nomadfn deploy --as-modal` let `import modal` mean nomadfn.")
        raise typer.Exit(code) from None
    apps = list({id(value): value for value in vars(module).values() if isinstance(value, App)}.values())
    if not apps:
        output.print_error(f'there is no app in {file}; make one at its top level: app = nomadfn.App("name")')
        raise typer.Exit(EXIT_ERROR)
    return Program(file, name, module, apps)


def refuse(message: str) -> NoReturn:
    """End the process: what stands on the command line is wrong."""
    output.print_error(message)
    raise typer.Exit(EXIT_USAGE)


def report(error: BaseException) -> int:
    """Show what a program raised, with its own frames only, and return the exit code for it."""
    from nomadfn.sdk.errors import remote_traceback

    if os.environ.get("NOMADFN_DEBUG") == "1":
        traceback.print_exception(error)
    remote = remote_traceback(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_hidden())]
    if remote is not None:
        sys.stderr.write(remote if remote.endswith("\n") else f"{remote}\n")
        if frames:
            output.note("The call came from here:")
            sys.stderr.write("".join(traceback.format_list(frames)))
        return EXIT_USER_ERROR
    if isinstance(error, Error | DeprecationError | InputCancellation):
        output.print_error(str(error) or type(error).__name__)
        if frames:
            output.note(f"  at {frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name}")
        return EXIT_ERROR
    from nomadfn_agent.wire.payload import format_user_traceback

    sys.stderr.write(format_user_traceback(error, _hidden()))
    return EXIT_USER_ERROR


def report_in_thread(raised: threading.ExceptHookArgs) -> None:
    """`threading.excepthook`: what a thread of the program raises is shown with the program's frames only, too."""
    if raised.exc_value is not None and not isinstance(raised.exc_value, SystemExit):
        output.note(f"Exception in {raised.thread.name if raised.thread else 'a thread that has ended'}:")
        report(raised.exc_value)


def _hidden() -> tuple[str, ...]:
    """Where frames lie that are not the user's: ours, and the parts of Python that call the user's code."""
    from nomadfn_agent.wire import payload

    import nomadfn

    ours = (str(Path(nomadfn.__file__).parent) + os.sep, str(Path(payload.__file__).parents[1]) + os.sep)
    standard = sysconfig.get_path("stdlib")
    return (*ours, os.path.join(standard, "asyncio") + os.sep, os.path.join(standard, "threading.py"), "<frozen ")
