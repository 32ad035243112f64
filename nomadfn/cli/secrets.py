"""`nomadfn secret …`: environment variables that functions name, kept on this machine or on the cluster."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import typer

commands = typer.Typer(
    help="Secrets: create, list, delete. Functions name them with Secret.from_name.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
NAME = typer.Argument(metavar="NAME", help="Name of the secret.")


@commands.command("create")
def create_secret(
    name: str = NAME,
    entries: list[str] = typer.Argument(
        None, metavar="KEY=- | KEY=VALUE", help="`KEY=-` asks for the value, or reads it from stdin."
    ),
    from_dotenv: Path = typer.Option(None, metavar="FILE", help="Take the variables of a file such as .env."),
    force: bool = typer.Option(False, "--force", help="Replace the secret if it is there already."),
) -> None:
    """Keep a secret. Containers that start from now on have it.

    A VALUE on the command line is seen by everybody on this machine while the command runs, and stays in the shell's
    history: use `KEY=-`.
    """
    from nomadfn.exception import AlreadyExistsError

    values = _file(from_dotenv) if from_dotenv is not None else {}
    values |= _entries(entries or [])
    if not values:
        raise typer.BadParameter("give at least one KEY=-, or --from-dotenv FILE")
    try:
        where = _write(name, values, force)
    except AlreadyExistsError as error:
        raise AlreadyExistsError(f"{error}; `nomadfn secret create --force {name} …` replaces all of it") from None
    print(f"The secret {name} is kept {where}, with {', '.join(sorted(values))}")


@commands.command("list")
def list_secrets(as_json: bool = typer.Option(False, "--json", help="Print all of it as JSON.")) -> None:
    """List the secrets that there are, without what is in them."""
    from nomadfn.cli import output

    local = _local()
    names: dict[str, float] = local.names() if local is not None else _ask("secret.list", {})
    if as_json:
        output.print_json([{"name": name, "changed_at": at} for name, at in names.items()])
        return
    now = time.time()
    rows = [[name, f"{output.duration(now - at)} ago"] for name, at in names.items()]
    output.print_table(("secret", "changed"), rows, "No secrets. `nomadfn secret create NAME KEY=-` makes one.")


@commands.command("delete")
def delete_secret(name: str = NAME) -> None:
    """Delete a secret. Containers that have it keep it; no other one that needs it can start."""
    local = _local()
    if local is not None:
        local.delete(name)
    else:
        _ask("secret.delete", {"name": name})
    print(f"Deleted the secret {name}")


def _write(name: str, values: dict[str, str], force: bool) -> str:
    """Returns where it is kept, in words."""
    from nomadfn.core import environment
    from nomadfn.profiles import load_profile

    environment.check_name(name)
    environment.check(values, f"the secret {name}")
    local = _local()
    if local is not None:
        local.write(name, values, replace=force)
        return "on this machine"
    _ask("secret.write", {"name": name, "values": values, "replace": force})
    return f"by {load_profile()}"


def _local() -> Any:
    """The secrets of this machine; None where the profile is a cluster's, whose control service keeps them."""
    from nomadfn.adapters.file_secrets import FileSecrets
    from nomadfn.profiles import load_profile
    from nomadfn.sdk.service import data_folder

    return FileSecrets(data_folder() / "secrets") if load_profile().is_local else None


def _ask(operation: str, body: dict[str, Any]) -> Any:
    from nomadfn.cli import remote
    from nomadfn.cli.api_client import staying

    return remote.request(staying(), operation, body)


def _file(path: Path) -> dict[str, str]:
    from nomadfn.sdk.secret import read_dotenv_file

    if not path.is_file():
        raise typer.BadParameter(f"there is no file {path}")
    return read_dotenv_file(path)


def _entries(words: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    asked = 0
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{key!r} is no KEY=- and no KEY=VALUE")
        if value == "-":
            asked += 1
            if asked > 1 and not sys.stdin.isatty():
                raise typer.BadParameter("stdin holds one value: give one KEY=-, and the others by --from-dotenv FILE")
            value = _ask_for(key)
        values[key] = value
    return values


def _ask_for(key: str) -> str:
    """A value from the keyboard, unseen, or all of stdin but the newline at its end."""
    if sys.stdin.isatty():
        return str(typer.prompt(key, hide_input=True))
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    return text.removesuffix("\n").removesuffix("\r")
