"""The tree of commands. What a command needs is imported when it runs, so that `nomadfn --help` answers at once."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import typer

from nomadfn.cli import apps, check, deploy, doctor, functions, inputs, render, run, secrets, serve, service, simulate

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
serve.register(cli)
render.register(cli)
service.register(cli)
doctor.register(cli)
check.register(cli)
simulate.register(cli)
cli.add_typer(apps.commands, name="app")
cli.add_typer(functions.commands, name="function")
cli.add_typer(inputs.commands, name="input")
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
