"""`nomadfn doctor`: what a cluster has and lacks for nomadfn, part by part, and what to do."""

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
    """Check a cluster: Consul, Nomad, rights, clocks, drivers, Python, GPUs. Ends with 3 where something lacks."""
    from dataclasses import asdict

    from nomadfn.cli import output
    from nomadfn.cli.cluster import settings_of
    from nomadfn.cli.remote import cluster_profile

    profile = cluster_profile("doctor")
    settings = settings_of(profile)
    from nomadfn.control.checkup import check

    if not as_json:
        output.note(f"Checking {profile}")
    findings = []
    for one in check(profile, settings, probe):
        findings.append(one)
        if not as_json:
            print(f"{MARKS[one.ok]}  {one.part:<16} {one.text}", flush=True)
    if as_json:
        output.print_json([asdict(one) for one in findings])
    if any(one.ok is False for one in findings):
        raise typer.Exit(EXIT_LACKS)
