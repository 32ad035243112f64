"""`nomadfn app info` and `nomadfn function info`: one app or function, all that is known of it."""

from __future__ import annotations

import time
from typing import Any

import typer

from nomadfn.cli.scale import APP, JSON, NAME, changes_line, settings_line

NOT_ALWAYS = ("gpu", "cpu", "memory_mib", "max_batch_size", "batch_wait_ms", "target_inputs")
"""Settings that are shown where a function has them."""


def register_app(commands: typer.Typer) -> None:
    commands.command("info")(app_info)


def register_function(commands: typer.Typer) -> None:
    commands.command("info")(function_info)


def app_info(app: str = APP, as_json: bool = JSON) -> None:
    """Show one app: its state, its functions, and when those that run by themselves run next."""
    from nomadfn.cli import output
    from nomadfn.cli.api_client import connect, path

    content = connect().ask("GET", path("apps", app))
    if as_json:
        output.print_json(content)
        return
    version = "" if content["version"] is None else f", version {content['version']}"
    print(f"{content['name']} ({content['app_id']})")
    print(f"state       {content['state']}{version}, since {output.duration(time.time() - content['started_at'])}")
    print(f"inputs      {content['pending']:,} pending, {content['running']:,} running")
    print(f"containers  {content['containers']:,}")
    print()
    rows = [
        [one["name"], one["pending"], one["running"], one["containers"], one["schedule"], next_run(one)]
        for one in content["function_list"]
    ]
    output.print_table(("function", "pending", "running", "containers", "schedule", "next run"), rows, "No functions.")


def function_info(app: str = APP, name: str = NAME, as_json: bool = JSON) -> None:
    """Show how one function was defined, what was changed since, and when it runs by itself."""
    from nomadfn.cli import output
    from nomadfn.cli.api_client import connect, path

    content = connect().ask("GET", path("apps", app, "functions", name))
    if as_json:
        output.print_json(content)
        return
    spec = content["spec"]
    print(f"{content['app']} {content['name']}")
    print(f"id          {content['function_id']}")
    print(f"code        {spec['module']}.{spec['qualname']}" if spec["module"] else "code        sent by value")
    changed = changes_line(content["changed"]) if content["overridden"] else ""
    print(f"settings    {settings_line(content['settings'])}{changed}")
    print(f"runs        {_runs(spec)}")
    for setting in NOT_ALWAYS:
        if spec.get(setting):
            print(f"{setting:<12}{spec[setting]}")
    if content["schedule"]:
        print(f"schedule    {content['schedule']}")
        print(f"next run    {next_run(content)}")
        if content["last_run"]:
            print(f"last run    {_shown_time(content['last_run'])}")
    print(f"inputs      {content['pending']:,} pending, {content['running']:,} running")
    print(f"containers  {len(content['containers']):,}")


def next_run(function: dict[str, Any]) -> str:
    from nomadfn.cli import output

    at = function["next_run"]
    return "-" if at is None else f"{_shown_time(at)}, in {output.duration(at - time.time())}"


def _shown_time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _runs(spec: dict[str, Any]) -> str:
    retries = spec["retries"]["max_retries"]
    words = [f"up to {spec['timeout_s']:g} s an attempt"]
    words += [f"{retries} retr{'y' if retries == 1 else 'ies'}"] if retries else []
    words += [f"{spec['max_inputs']} inputs at once"] if spec["max_inputs"] > 1 else []
    return ", ".join(words)
