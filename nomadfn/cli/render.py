"""`nomadfn render` and `nomadfn plan`: the Nomad jobs of a program's functions, before they are registered."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from nomadfn.profiles import Profile

FILE = typer.Argument(metavar="FILE[::APP]", help="The program; with several apps in it, also which.")
NAME = typer.Option(None, help="Under this name instead of the app's own.")
AS_MODAL = typer.Option(False, "--as-modal", help="Let `import modal` in the file mean nomadfn.")


def register(cli: typer.Typer) -> None:
    for command in (render, plan):
        cli.command(help=command.__doc__)(command)


def render(
    file: str = FILE,
    name: str = NAME,
    as_modal: bool = AS_MODAL,
    as_json: bool = typer.Option(False, "--json", help="Print the jobs that Nomad's API takes."),
) -> None:
    """Print the Nomad job of each function, and the variables that go with it, as `nomadfn deploy` registers them."""
    from nomadfn.cli import output

    functions = _ask("app.render", file, name, as_modal)
    if as_json:
        output.print_json({function: one["job"] for function, one in functions.items()})
        return
    for number, (function, one) in enumerate(functions.items()):
        if not number:
            print(one["hcl"])
        print(f"# Variables of {function}: nomad job run -var-file={one['job_id']}.vars.json")
        print(json.dumps(one["variables"], indent=2, sort_keys=True))


def plan(file: str = FILE, name: str = NAME, as_modal: bool = AS_MODAL) -> None:
    """Show what `nomadfn deploy` would change in Nomad, by Nomad's own diff. Nothing is changed."""
    for function, one in _ask("app.plan", file, name, as_modal).items():
        print(f"{function}:")
        print(one["diff"], end="")


def _ask(operation: str, file: str, name: str | None, as_modal: bool) -> dict[str, Any]:
    """What the leader says of each function; of `app.render`, what the profile says where none leads."""
    from nomadfn.cli import output, program, remote
    from nomadfn.exception import AuthError, ServiceError
    from nomadfn.sdk import loader, service

    profile = remote.cluster_profile("this command")
    loaded = program.load_program(file, as_modal=as_modal)
    spec = remote.spec_of(loader.find_app(loaded.module, loaded.name or None), name)
    try:
        handle = service.find_in_cluster(profile)
    except (AuthError, ServiceError) as error:
        if operation != "app.render":
            raise
        output.note(f"{error}\nRendered from the profile alone, without the leader's agent_url and control_urls.")
        return _render_alone(profile, spec)
    functions: dict[str, Any] = remote.request(handle, operation, {"spec": spec})["functions"]
    return functions


def _render_alone(profile: Profile, spec: dict[str, Any]) -> dict[str, Any]:
    from nomadfn.control.clustered import render_alone

    return render_alone(profile, spec)
