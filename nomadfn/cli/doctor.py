"""`nomadfn doctor`: what a cluster, or this machine, has and lacks for nomadfn, part by part, and what to do."""

from __future__ import annotations

import typer

EXIT_LACKS = 3
MARKS = {True: "ok  ", None: "–   ", False: "FAIL"}


def register(cli: typer.Typer) -> None:
    cli.command(help=doctor.__doc__)(doctor)


def doctor(
    probe: bool = typer.Option(True, help="Run a short job on the cluster to see the driver's Python."),
    as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON."),
) -> None:
    """Check a cluster: Consul, Nomad, rights, clocks, drivers, Python, uv, GPUs; or this machine: Python and uv.

    Ends with 3 where something lacks.
    """
    from dataclasses import asdict

    from nomadfn.cli import output
    from nomadfn.control.findings import check_machine
    from nomadfn.profiles import load_profile

    profile = load_profile()
    if not as_json:
        output.note(f"Checking {'this machine' if profile.is_local else profile}")
    if profile.is_local:
        checks = check_machine()
    else:
        from nomadfn.cli.cluster import settings_of
        from nomadfn.control.checkup import check

        checks = check(profile, settings_of(profile), probe)
    findings = []
    for one in checks:
        findings.append(one)
        if not as_json:
            print(f"{MARKS[one.ok]}  {one.part:<16} {one.text}", flush=True)
    if as_json:
        output.print_json([asdict(one) for one in findings])
    if any(one.ok is False for one in findings):
        raise typer.Exit(EXIT_LACKS)
