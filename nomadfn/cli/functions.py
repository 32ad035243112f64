"""`nomadfn function …`: what there is, calling it, scaling it, and why it has the containers that it has."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import typer

from nomadfn.cli import info, scale
from nomadfn.cli.scale import APP, JSON, NAME, changes_line, settings_line

if TYPE_CHECKING:
    from nomadfn.cli.api_client import ApiClient

commands = typer.Typer(
    help="Functions: list, info, call, scale, explain, stats.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
scale.register(commands)
info.register_function(commands)
EXIT_USER_ERROR = 1
CALL_WAIT_S = 2
"""A call that takes longer says what keeps its function from the containers that it wants, if anything does."""
RESULT_WAIT_S = 10
MARGIN_S = 30.0
"""Beyond the time for which the service was asked to wait."""


@commands.command("list")
def list_functions(
    app: str = typer.Option(None, help="Only of this app."),
    as_json: bool = JSON,
) -> None:
    """List functions with figures and settings."""
    from nomadfn.cli import output
    from nomadfn.cli.api_client import connect, path

    functions = connect().ask("GET", path("functions", app=app))["functions"]
    if as_json:
        output.print_json(functions)
        return
    columns = ["app", "function", "pending", "running", "containers", "starting", "min", "max", "buffer", "window"]
    scheduled = any(one["schedule"] for one in functions)
    columns += ["next run"] if scheduled else []
    rows = []
    for one in functions:
        settings = one["settings"]
        rows.append(
            [
                one["app"],
                _name(one),
                one["pending"],
                one["running"],
                one["containers"],
                one["starting"],
                settings["min_containers"],
                settings["max_containers"],
                settings["buffer_containers"],
                f"{settings['scaledown_window_s']:g} s{' (changed)' if one['overridden'] else ''}",
                *([info.next_run(one)] if scheduled else []),
            ]
        )
    output.print_table(columns, rows, "No functions. `nomadfn deploy FILE` deploys an app.")


@commands.command("call")
def call_function(
    app: str = APP,
    name: str = NAME,
    arguments: list[str] = typer.Argument(None, metavar="ARG", help="JSON, or else text: 3, '[1, 2]', hello."),
    keyword: list[str] = typer.Option([], "--keyword", "-k", metavar="NAME=VALUE", help="One by keyword; repeatable."),
    deadline: float = typer.Option(None, metavar="SECONDS", help="Give up if it has not been started by then."),
    priority: int = typer.Option(0, help="-100 to 100; higher goes first."),
    parameter: list[str] = typer.Option(
        [], "--parameter", "-p", metavar="NAME=VALUE", help="One of the class, for a method; repeatable."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Call a function, or a method as CLASS.METHOD, and print its result, or each value of a generator.

    Waits until it is done.
    """
    from nomadfn.cli.api_client import FunctionError, connect, path

    body: dict[str, Any] = {
        "args": [_value(text) for text in arguments or []],
        "kwargs": dict(_pair(text) for text in keyword),
    }
    body |= {"deadline": deadline, "priority": priority}
    service = connect()
    if parameter:
        body["parameters"] = _parameters(service.ask("GET", path("apps", app, "functions", name)), parameter)
    route = path("apps", app, "functions", name, "call", wait_s=CALL_WAIT_S)
    try:
        content = service.call(route, body, CALL_WAIT_S + MARGIN_S)
        if not isinstance(content, dict):
            for value in content:
                _print_value(value, as_json=as_json)
            return
        told = ""
        while "result" not in content:
            # The function is still at it; its own `timeout` is what ends this.
            told = _tell_what_keeps_it(service, app, name, told)
            route = path("calls", content["call"], "result", wait_s=RESULT_WAIT_S)
            content = service.ask("GET", route, None, RESULT_WAIT_S + MARGIN_S)
    except FunctionError as error:
        sys.stderr.write(error.traceback)
        raise typer.Exit(EXIT_USER_ERROR) from None
    _print_value(content["result"], as_json=as_json)


def _print_value(value: Any, *, as_json: bool) -> None:
    from nomadfn.cli import output

    if as_json or not isinstance(value, str):
        output.print_json(value)
    else:
        print(value)
    sys.stdout.flush()


@commands.command("explain")
def explain_function(app: str = APP, name: str = NAME, as_json: bool = JSON) -> None:
    """Show why a function has its containers. Figures, settings, and the last decisions with their reasons."""
    from nomadfn.cli import output
    from nomadfn.cli.api_client import connect, path

    content = connect().ask("GET", path("apps", app, "functions", name))
    if as_json:
        output.print_json(content)
        return
    changed = changes_line(content["changed"]) if content["overridden"] else ""
    ready = sum(1 for one in content["containers"] if one["state"] != "starting")
    print(f"{content['app']} {_name(content)}")
    if content["methods"]:
        print(f"methods     {', '.join(content['methods'])}")
    for url in content.get("web_urls", ()):
        print(f"answers at  {url}")
    print(f"settings    {settings_line(content['settings'])}{changed}")
    run_time_s = content["run_time_s"]
    measured = "" if run_time_s is None else f", {_run_time(run_time_s)} an input"
    print(f"inputs      {content['pending']:,} pending, {content['running']:,} running{measured}")
    print(f"containers  {ready:,} ready, {content['wanted']:,} wanted")
    if content["blocked"]:
        print(f"limited by  {content['blocked']}")
    if content["last_error"]:
        print(f"last error  {content['last_error']}")
    now = time.time()
    if content["containers"]:
        print()
        columns = ("container", "index", "state", "idle", "pid")
        rows = [
            [one["container"], one["index"], _state(one), _idle(one["idle_s"]), str(one["pid"] or "-")]
            for one in content["containers"]
        ]
        output.print_table(columns, rows, "")
    if content["decisions"]:
        print()
        rows = [
            [f"{output.duration(now - one['at'])} ago", one["count"], one["reason"]] for one in content["decisions"]
        ]
        output.print_table(("decided", "count", "reason"), rows, "")


def _name(function: dict[str, Any]) -> str:
    """A variant's name alone says little: its parameters, and what was changed, stand behind it."""
    said = {**function["arguments"], **function["changes"]} if function["variant_of"] else {}
    text = ", ".join(f"{name}={value}" for name, value in said.items())
    return f"{function['name']} ({text if len(text) <= 60 else text[:59] + '…'})" if said else str(function["name"])


def _tell_what_keeps_it(service: ApiClient, app: str, name: str, told: str) -> str:
    """Print it once; returns it."""
    from nomadfn.cli import output
    from nomadfn.cli.api_client import path

    why = str(service.ask("GET", path("apps", app, "functions", name))["blocked"])
    if why and why != told:
        output.note(f"{name} waits: {why}")
    return why


def _value(text: str) -> Any:
    """A word of the command line as JSON, or as the text that it is."""
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text


def _parameters(function: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """Values of a class's parameters; one that is text there is text, whatever it looks like."""
    types = {one["name"]: one["type"] for one in function["spec"]["parameters"]}
    given = {}
    for word in words:
        name, value = _pair(word)
        given[name] = word.partition("=")[2] if types.get(name) == "str" else value
    return given


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise typer.BadParameter(f"--keyword takes NAME=VALUE, not {text!r}")
    return name, _value(value)


def _state(container: dict[str, Any]) -> str:
    waits_for = container.get("waits_for")
    return f"{container['state']}: {waits_for}" if waits_for else str(container["state"])


def _idle(idle_s: float | None) -> str:
    return "-" if idle_s is None else f"{idle_s:.1f} s"


def _run_time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
