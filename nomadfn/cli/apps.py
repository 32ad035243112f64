"""`nomadfn app …`: what runs, stopping it, what it wrote, and going back to what it was."""

from __future__ import annotations

import sys
import time

import typer

from nomadfn.cli import info

commands = typer.Typer(
    help="Apps: list, info, stop, logs, history, rollback.", no_args_is_help=True, rich_markup_mode=None
)
info.register_app(commands)


@commands.command("list")
def list_apps(as_json: bool = typer.Option(False, "--json", help="Print all of it as JSON.")) -> None:
    """List apps that are deployed or run."""
    from nomadfn.cli import output
    from nomadfn.cli.api_client import connect

    apps = connect().ask("GET", "/v1/apps")["apps"]
    if as_json:
        output.print_json(apps)
        return
    now = time.time()
    columns = ("app", "state", "version", "functions", "containers", "pending", "running", "since", "id")
    rows = [
        [
            app["name"],
            app["state"],
            app["version"],
            app["functions"],
            app["containers"],
            app["pending"],
            app["running"],
            output.duration(now - app["started_at"]),
            app["app_id"],
        ]
        for app in apps
    ]
    output.print_table(columns, rows, "No apps. `nomadfn deploy FILE` deploys one.")


@commands.command("stop")
def stop_app(
    app: str = typer.Argument(metavar="APP", help="Name of a deployed app, or an app's id."),
    as_json: bool = typer.Option(False, "--json", help="Print what was cancelled as JSON."),
) -> None:
    """Stop an app. Its inputs are cancelled, its containers end, and it is no longer deployed."""
    from nomadfn.cli import output
    from nomadfn.cli.api_client import connect, path

    outcome = connect().ask("POST", path("apps", app, "stop"))
    if as_json:
        output.print_json(outcome)
    else:
        print(f"Stopped {app}; {output.plural(outcome['cancelled'], 'input')} cancelled.")


@commands.command("logs")
def logs(
    app: str = typer.Argument(metavar="APP", help="Name of a deployed app, or an app's id."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on with new lines until Ctrl-C."),
    tail: int = typer.Option(100, min=0, max=10_000, help="How many of the last lines."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object a line."),
) -> None:
    """Print what an app's containers wrote. Each line is marked with function and container."""
    import json

    from nomadfn.cli import output
    from nomadfn.cli.api_client import connect, path

    route = path("apps", app, "logs", tail=tail, follow=int(follow), format="json")
    for raw in connect().lines(route):
        if as_json:
            sys.stdout.write(raw.decode())
            sys.stdout.flush()
            continue
        line = json.loads(raw)
        stream = sys.stdout if line["stream"] == 1 else sys.stderr
        for text in line["text"].splitlines() or [""]:
            print(output.container_line(line["function"], line["index"], text, stream), file=stream, flush=True)


@commands.command("history")
def history(
    app: str = typer.Argument(metavar="APP", help="Name of a deployed app."),
    as_json: bool = typer.Option(False, "--json", help="Print all of it as JSON."),
) -> None:
    """List the versions of an app that are kept, the newest first."""
    from nomadfn.cli import output, remote
    from nomadfn.cli.api_client import staying

    found = remote.request(staying(), "app.history", {"app": app})
    if as_json:
        output.print_json(found)
        return
    now = time.time()
    rows = [
        [
            f"{one['version']}{' (in force)' if one['version'] == found['version'] else ''}",
            f"{output.duration(now - one['at'])} ago",
            ", ".join(one["functions"]),
            one["code"][:12],
            one["note"],
        ]
        for one in found["versions"]
    ]
    output.print_table(("version", "deployed", "functions", "code", "note"), rows, f"No versions of {app} are kept.")


@commands.command("rollback")
def rollback(
    app: str = typer.Argument(metavar="APP", help="Name of a deployed app."),
    version: int = typer.Argument(None, help="One of `nomadfn app history`; by default the one before."),
    as_json: bool = typer.Option(False, "--json", help="Print what was deployed as JSON."),
) -> None:
    """Put an earlier version of an app in force again, as a new version. Running inputs are not interrupted."""
    from nomadfn.cli import output, remote
    from nomadfn.cli.api_client import staying

    done = remote.request(staying(), "app.rollback", {"app": app, "version": version})
    if as_json:
        output.print_json(done)
        return
    changed = f"changed: {', '.join(sorted(done['changed']))}" if done["changed"] else "nothing changed"
    print(f"{app} is at version {done['version']}, {done['note']} ({changed})")
