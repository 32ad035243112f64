"""The command `nomadfn`: the command tree, and what becomes of an error.

    exit code   0  done
                1  the user's own code raised; its traceback is on stderr
                2  the command line is wrong
                3  nomadfn could not do it; one line on stderr says what happened and what to do
              130  Ctrl-C

What a command needs is imported when it runs, so that `nomadfn --help` answers at once.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from nomadfn.cli import apps, deploy, doctor, functions, render, run, secrets, service
from nomadfn.exception import Error

EXIT_USER_ERROR = 1
EXIT_ERROR = 3
EXIT_INTERRUPTED = 130

cli = typer.Typer(
    name="nomadfn",
    help="Serverless Python functions: run them, deploy them, and look after the service that runs them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
run.register(cli)
deploy.register(cli)
render.register(cli)
service.register(cli)
doctor.register(cli)
cli.add_typer(apps.commands, name="app")
cli.add_typer(functions.commands, name="function")
cli.add_typer(secrets.commands, name="secret")


def _take_profile(commands: typer.Typer) -> None:
    """Every command takes `--profile`; the choice holds for whatever it starts, too."""
    for command in commands.registered_commands:
        if command.callback is not None:
            command.callback = _with_profile(command.callback)
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _take_profile(group.typer_instance)


def _with_profile(command: Callable[..., Any]) -> Callable[..., Any]:
    help_text = "The cluster of nomadfn.toml to speak to; `local` is this machine."
    option = inspect.Parameter(
        "profile", inspect.Parameter.KEYWORD_ONLY, default=typer.Option(None, help=help_text), annotation="str"
    )

    @functools.wraps(command)
    def run_command(*args: Any, profile: str | None = None, **kwargs: Any) -> Any:
        if profile is not None:
            os.environ["NOMADFN_PROFILE"] = profile
        return command(*args, **kwargs)

    signature = inspect.signature(command)
    run_command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), option]
    )
    run_command.__annotations__ = {**command.__annotations__, "profile": "str"}
    return run_command


_take_profile(cli)


def _print_version(wanted: bool) -> None:
    if wanted:
        service.print_version()
        raise typer.Exit


@cli.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Options that stand before a command."""


def main() -> None:
    """The entry point; ends the process."""
    try:
        cli(prog_name="nomadfn")
    except Error as error:
        code = _report(error)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has closed it (`| head`); there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_USER_ERROR
    except Exception as error:
        code = _report(error)
    sys.exit(code)


def _report(error: Exception) -> int:
    from nomadfn.cli import output

    if os.environ.get("NOMADFN_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    if isinstance(error, Error):
        output.print_error(str(error) or type(error).__name__)
    else:
        output.print_error(
            f"a fault of nomadfn ({type(error).__name__}: {error}); "
            "run it again with NOMADFN_DEBUG=1 and report what it shows"
        )
    return EXIT_ERROR
