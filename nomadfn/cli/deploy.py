"""`nomadfn deploy`: make an app's functions callable by name from any program."""

from __future__ import annotations

import typer


def register(cli: typer.Typer) -> None:
    cli.command(help=deploy.__doc__)(deploy)


def deploy(
    file: str = typer.Argument(metavar="FILE[::APP]", help="The program; with several apps in it, also which."),
    name: str = typer.Option(None, help="Deploy it under this name instead of the app's own."),
    as_modal: bool = typer.Option(False, "--as-modal", help="Let `import modal` in the file mean nomadfn."),
    as_json: bool = typer.Option(False, "--json", help="Print what was deployed as JSON."),
) -> None:
    """Make an app's functions callable by name. Needs the control service that `nomadfn up` keeps."""
    from nomadfn.cli import output, program
    from nomadfn.exception import ServiceError
    from nomadfn.sdk import loader, service

    loaded = program.load_program(file, as_modal=as_modal)
    app = loader.find_app(loaded.module, loaded.name or None)
    found = service.attach()
    if found is None:
        raise ServiceError("deploy needs a control service that stays; start one with `nomadfn up`")
    output.note(f"Deploying {name or app.name} to {found.target}")
    try:
        done = app.deploy(name).deployment
    except Exception as error:
        raise typer.Exit(program.report(error)) from None
    assert done is not None
    if as_json:
        output.print_json(
            {"app": app.name, "app_id": done.app_id, "version": done.version}
            | {"functions": sorted(done.functions), "changed": sorted(done.changed)}
        )
        return
    count = output.plural(len(done.functions), "function")
    changed = f"changed: {', '.join(sorted(done.changed))}" if done.changed else "nothing changed"
    print(f"Deployed {app.name}, version {done.version}, with {count} ({changed})")
    for function in sorted(done.functions):
        print(f"  nomadfn function call {app.name} {function}")
