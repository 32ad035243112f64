"""`nomadfn function scale` and `stats`: changing how many containers a function has, and its figures now."""

from __future__ import annotations

import re
import time
from typing import Any

import typer

APP = typer.Argument(metavar="APP", help="Name of a deployed app, or an app's id.")
NAME = typer.Argument(metavar="FUNCTION", help="Name of the function.")
JSON = typer.Option(False, "--json", help="Print all of it as JSON.")
MAX = typer.Option(
    None, "--max", "--max-containers", metavar="<int|none>", help="Containers at the most; none is unlimited."
)
FIELDS = ("min_containers", "max_containers", "buffer_containers", "scaledown_window")
UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
WORDS = {
    "scaledown_window_s": "window",
    "min_containers": "min",
    "max_containers": "max",
    "buffer_containers": "buffer",
}


def register(commands: typer.Typer) -> None:
    commands.command("scale")(scale_function)
    commands.command("stats")(show_stats)


def scale_function(
    app: str = APP,
    name: str = NAME,
    min_containers: int = typer.Option(None, "--min", "--min-containers", help="Containers that are always there."),
    max_containers: str = MAX,
    buffer_containers: int = typer.Option(
        None, "--buffer", "--buffer-containers", help="Idle containers beside the busy ones."
    ),
    scaledown_window: float = typer.Option(
        None, "--window", "--scaledown-window", help="Seconds that a surplus container stays idle."
    ),
    for_time: str = typer.Option(None, "--for", metavar="<time>", help="Revert by itself after 90s, 15m, 1h30m, 2d."),
    reset: bool = typer.Option(False, "--reset", help="Go back to what was deployed."),
    as_json: bool = JSON,
) -> None:
    """Change autoscaler settings. They hold until the next deploy, or for a time; what is not named stays."""
    from nomadfn.cli import output
    from nomadfn.cli.api_client import connect, path

    changes: dict[str, Any] = {
        "min_containers": min_containers,
        "buffer_containers": buffer_containers,
        "scaledown_window": scaledown_window,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    if max_containers is not None:
        changes["max_containers"] = None if max_containers == "none" else _whole(max_containers)
    if not changes and not reset:
        raise typer.BadParameter("name at least one setting to change, for example --min 2")
    if for_time is not None:
        changes["for_s"] = _seconds(for_time)
    if reset:
        changes["reset"] = [field for field in FIELDS if field not in changes]
    settings = connect().ask("PATCH", path("apps", app, "functions", name, "autoscaler"), changes)
    if as_json:
        output.print_json(settings)
    else:
        print(f"{app} {name}: {settings_line(settings)}{changes_line(settings['changed'])}")


def show_stats(app: str = APP, name: str = NAME, as_json: bool = JSON) -> None:
    """Show a function's figures now: what waits, what runs, and the containers for it."""
    from nomadfn.cli import output
    from nomadfn.cli.api_client import connect, path

    stats = connect().ask("GET", path("apps", app, "functions", name, "stats"))
    if as_json:
        output.print_json(stats)
        return
    print(f"backlog        {stats['backlog']:,}")
    print(f"running        {stats['num_running_inputs']:,}")
    print(f"containers     {stats['num_total_runners']:,}")
    print(f"room for       {stats['input_headroom']:,} more at once")


def settings_line(settings: dict[str, Any]) -> str:
    most = "unlimited" if settings["max_containers"] is None else settings["max_containers"]
    return (
        f"min {settings['min_containers']}, max {most}, buffer {settings['buffer_containers']}, "
        f"window {settings['scaledown_window_s']:g} s"
    )


def changes_line(changed: dict[str, Any]) -> str:
    """Which settings are not as they were deployed, and until when."""
    temporary = changed.get("temporary", {})
    plain = [WORDS[name] for name in changed if name not in ("temporary", *temporary)]
    parts = [f"{', '.join(plain)} until the next deploy"] if plain else []
    times: dict[str, list[str]] = {}
    for name, one in temporary.items():
        then = f" (then {changed[name]})" if name in changed else ""
        times.setdefault(one["until"], []).append(WORDS[name] + then)
    parts += [f"{', '.join(names)} until {until}{_from_now(until)}" for until, names in sorted(times.items())]
    return f" ({'; '.join(parts)})" if parts else " (as deployed)"


def _from_now(until: str) -> str:
    from datetime import datetime

    from nomadfn.cli import output

    return f", in {output.duration(datetime.fromisoformat(until).timestamp() - time.time())}"


def _seconds(text: str) -> float:
    """`90s`, `15m`, `1h30m`, `2d`."""
    parts = DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise typer.BadParameter(f"--for takes a time such as 90s, 15m, 1h30m or 2d, not {text!r}")
    return sum(float(number) * UNITS_S[unit] for number, unit in parts)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"--max takes a whole number or none, not {text!r}") from None
