"""`nomadfn deploy`: make an app's functions callable by name from any program."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from nomadfn.sdk.app import App
    from nomadfn.sdk.service import ServiceHandle

POLL_S = 0.5
EXIT_NOT_SERVED = 3


def register(cli: typer.Typer) -> None:
    cli.command(help=deploy.__doc__)(deploy)


def deploy(
    file: str = typer.Argument(metavar="FILE[::APP]", help="The program; with several apps in it, also which."),
    name: str = typer.Option(None, help="Deploy it under this name instead of the app's own."),
    as_modal: bool = typer.Option(False, "--as-modal", help="Let `import modal` in the file mean nomadfn."),
    as_json: bool = typer.Option(False, "--json", help="Print what was deployed as JSON."),
    dry_run: bool = typer.Option(False, "--dry-run", help="On a cluster: only say what has room there now."),
    wait: float = typer.Option(60.0, min=0.0, help="On a cluster: seconds until min_containers are there."),
) -> None:
    """Make an app's functions callable by name. Needs the control service that `nomadfn up` keeps."""
    from nomadfn.cli import output, program
    from nomadfn.exception import InvalidError, ServiceError
    from nomadfn.sdk import loader, service

    loaded = program.load_program(file, as_modal=as_modal)
    app = loader.find_app(loaded.module, loaded.name or None)
    found = service.attach()
    if found is None:
        raise ServiceError("deploy needs a control service that stays; start one with `nomadfn up`")
    is_clustered = found.locate is not None
    if dry_run:
        if not is_clustered:
            raise InvalidError("--dry-run asks a cluster what has room; this machine has room for any function")
        _say_what_fits(found, app, name, as_json)
        return
    output.note(f"Deploying {name or app.name} to {found.target}")
    try:
        done = app.deploy(name).deployment
    except Exception as error:
        raise typer.Exit(program.report(error)) from None
    assert done is not None
    served = _await_served(found, app, wait) if is_clustered else True
    if as_json:
        output.print_json(
            {"app": app.name, "app_id": done.app_id, "version": done.version}
            | {"functions": sorted(done.functions), "changed": sorted(done.changed), "web_urls": done.web_urls}
        )
    else:
        count = output.plural(len(done.functions), "function")
        changed = f"changed: {', '.join(sorted(done.changed))}" if done.changed else "nothing changed"
        print(f"Deployed {app.name}, version {done.version}, with {count} ({changed})")
        for function in sorted(done.functions):
            urls = [url for name, url in sorted(done.web_urls.items()) if name.partition(".")[0] == function]
            for line in urls + _calls(app, function, bool(urls)):
                print(f"  {line}")
    if not served:
        raise typer.Exit(EXIT_NOT_SERVED)


def _calls(app: App, name: str, answers_http: bool) -> list[str]:
    """The commands that call a function, or the methods of a class."""
    if (cls := app.registered_classes.get(name)) is None or cls.spec is None:
        names = [] if answers_http else [name]
    else:
        names = [f"{name}.{one.name}" for one in cls.spec.methods if one.web is None]
    return [f"nomadfn function call {app.name} {one}" for one in names]


def _say_what_fits(handle: ServiceHandle, app: App, name: str | None, as_json: bool) -> None:
    from nomadfn.cli import output, remote

    functions = remote.request(handle, "app.fit", {"spec": remote.spec_of(app, name)})["functions"]
    if as_json:
        output.print_json(functions)
        return
    output.note(f"What has room on {handle.target} now; nothing is deployed")
    for one in functions.values():
        print(one["text"])


def _await_served(handle: ServiceHandle, app: App, wait_s: float) -> bool:
    """Have the jobs registered, and wait for the containers that are always there, saying what keeps them."""
    from nomadfn.cli import output, remote

    functions = remote.request(handle, "app.register", {"spec": remote.spec_of(app)})["functions"]
    for name, one in functions.items():
        output.note(f"  {name}: job {one['job_id']}")
        if one["missing"] and not one["containers"]:
            output.note(f"  {one['text']}; it waits for that")
    deadline = time.monotonic() + wait_s
    told: dict[str, str] = {}
    while late := [name for name in functions if not _is_served(handle, app.name, name, told)]:
        if time.monotonic() >= deadline:
            output.print_error(
                f"{', '.join(late)} of {app.name} {'is' if len(late) == 1 else 'are'} deployed, but after {wait_s:g} s "
                f"not all of min_containers are there; `nomadfn function explain {app.name} {late[0]}` says why"
            )
            return False
        time.sleep(POLL_S)
    return True


def _is_served(handle: ServiceHandle, app: str, name: str, told: dict[str, str]) -> bool:
    """Whether a function has its `min_containers`; what has changed since the last look is printed."""
    from nomadfn.cli import output
    from nomadfn.cli.api_client import ApiClient, path

    shown: dict[str, Any] = ApiClient(handle.http_url, handle.token).ask("GET", path("apps", app, "functions", name))
    wanted = shown["settings"]["min_containers"]
    if not wanted:
        return True
    why = f"; {shown['blocked']}" if shown["blocked"] else ""
    count = Counter(one["state"] for one in shown["containers"])
    state = f"  {name}: {count['ready']} of {wanted} containers, {count['starting']} starting{why}"
    if told.get(name) != state:
        told[name] = state
        output.note(state)
    return int(wanted) <= count["ready"]
