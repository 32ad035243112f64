"""`nomadfn input …`: which inputs there are, what one of them does, cancelling one, and ending its wait."""

from __future__ import annotations

import time
from typing import Any

import typer

commands = typer.Typer(help="Inputs: list, get, cancel, retry.", no_args_is_help=True, rich_markup_mode=None)
INPUT = typer.Argument(metavar="INPUT", help="An id of `nomadfn input list`: in-…-0.")
JSON = typer.Option(False, "--json", help="Print all of it as JSON.")
LIMIT = 100


@commands.command("list")
def list_inputs(
    app: str = typer.Argument(None, metavar="[APP]", help="Only of this app, by name or id."),
    function: str = typer.Argument(None, metavar="[FUNCTION]", help="Only of this function of it."),
    call: str = typer.Option(None, help="Only of this call (fc-…)."),
    state: list[str] = typer.Option([], help="Only pending, running, delayed or done ones; repeatable."),
    limit: int = typer.Option(LIMIT, min=1, max=10_000, help="How many at the most."),
    as_json: bool = JSON,
) -> None:
    """List inputs, the oldest calls first: those that wait or run, and results that are kept."""
    from nomadfn.cli import output
    from nomadfn.cli.api_client import connect, path

    route = path("inputs", app=app, function=function, call=call, limit=limit)
    content = connect().ask("GET", route + "".join(f"&state={one}" for one in state))
    if as_json:
        output.print_json(content)
        return
    now = time.time()
    columns = ("input", "function", "kind", "state", "priority", "retries", "losses", "container", "called")
    rows = [
        [
            one["id"],
            _name(one),
            one["kind"],
            _state(one),
            str(one["priority"]),
            one["retries"],
            one["losses"],
            one["container"] or None,
            f"{output.duration(now - one['called_at'])} ago",
        ]
        for one in content["inputs"]
    ]
    output.print_table(columns, rows, "No inputs.")
    if content["more"]:
        output.note(f"There are more; --limit {10 * limit} shows more of them, --state and --call fewer others.")


@commands.command("get")
def get_input(id: str = INPUT, as_json: bool = JSON) -> None:
    """Show one input: where it is, what it has been through, and what came of it."""
    from nomadfn.cli import output
    from nomadfn.cli.api_client import connect, path

    one = connect().ask("GET", path("inputs", id))
    if as_json:
        output.print_json(one)
        return
    print(one["id"])
    print(f"function    {one['app']} {_name(one)}")
    made_by = f", made by {one['made_by']}" if one["made_by"] else ""
    print(f"call        {one['call']}, {one['kind']}, index {one['index']}{made_by}")
    print(f"called      {output.duration(one['now'] - one['called_at'])} ago")
    print(f"state       {_state(one)}{' in ' + one['container'] if one['container'] else ''}")
    print(f"priority    {one['priority']}{_deadline(one)}")
    print(
        f"attempts    {output.plural(one['retries'], 'retry').replace('retrys', 'retries')}, "
        f"{output.plural(one['losses'], 'container')} lost"
    )
    print(f"{'result' if one['state'] == 'done' else 'arguments':11} {one['bytes']:,} bytes")
    if one["error"]:
        print(f"error       {one['error']['kind']}: {one['error']['message']}")
        if one["error"]["traceback"]:
            print(one["error"]["traceback"].rstrip())


@commands.command("cancel")
def cancel_input(
    id: str = INPUT,
    terminate_containers: bool = typer.Option(False, help="End the container that runs it, too."),
    as_json: bool = JSON,
) -> None:
    """Cancel one input. Its caller gets InputCancellation; the other inputs of its call go on."""
    from nomadfn.cli import output
    from nomadfn.cli.api_client import connect, path

    body = {"terminate_containers": terminate_containers}
    outcome = connect().ask("POST", path("inputs", id, "cancel"), body)
    if as_json:
        output.print_json(outcome)
    else:
        print(f"Cancelled {id}" if outcome["cancelled"] else f"{id} was done before; nothing was cancelled")


@commands.command("retry")
def retry_input(id: str = INPUT, as_json: bool = JSON) -> None:
    """Run an input that waits for its next attempt now. What is done is not run again: its arguments are gone."""
    from nomadfn.cli import output
    from nomadfn.cli.api_client import connect, path

    outcome = connect().ask("POST", path("inputs", id, "retry"))
    if as_json:
        output.print_json(outcome)
    else:
        print(f"{id} waits no longer")


def _name(one: dict[str, Any]) -> str:
    return f"{one['function']}.{one['method']}" if one["method"] else str(one["function"])


def _state(one: dict[str, Any]) -> str:
    return str(one["outcome"] or one["state"])


def _deadline(one: dict[str, Any]) -> str:
    if one["deadline"] is None or one["state"] in ("running", "done"):
        return ""
    left_s = one["deadline"] - one["now"]
    return f", to be started within {left_s:.1f} s" if left_s > 0 else ", its deadline is over"
