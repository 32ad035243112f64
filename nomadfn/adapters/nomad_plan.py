"""What Nomad would do: its own diff of a job, and how many containers of a function have room now.

Both ask Nomad's scheduler for a plan that is not carried out, so they know of other people's jobs, of constraints
and of devices what Nomad knows.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nomadfn.core import gpus, lanes
from nomadfn.exception import PermissionDeniedError
from nomadfn.ports import Needs

from . import jobspec, nomad_words
from .jobspec import JobSettings
from .nomad_api import NomadApi

Json = dict[str, Any]
_MARKS = {"Added": "+", "Deleted": "-", "Edited": "~"}


@dataclass(frozen=True, slots=True)
class CapacityReport:
    """Room for `containers` of a function now, on `nodes` (None: the token may not read them).

    `missing` says in words why there are no more; it is empty where the cluster's ceiling, or the function's
    `max_containers`, is what ends them.
    """

    function: str
    containers: int
    most: int
    nodes: tuple[str, ...] | None
    missing: str

    def __str__(self) -> str:
        room = nomad_words.counted(self.containers, "container")
        where = f", on {nomad_words.counted(len(self.nodes), 'node')} ({', '.join(self.nodes)})" if self.nodes else ""
        if self.containers >= self.most:
            return f"{self.function}: room for all {room} that it may have{where}"
        if self.containers:
            return f"{self.function}: room for {room} of {self.most:,} now{where}; for more: {self.missing}"
        return f"{self.function}: no room now: {self.missing}"


def capacity_report(api: NomadApi, settings: JobSettings, needs: Needs) -> CapacityReport:
    """How many containers of this function could be placed now, beside what runs. Blocks; raises nomadfn's errors."""
    rendered = jobspec.render(needs, settings)
    most = min(settings.ceiling, needs.max_containers or settings.ceiling)
    job = api.parse(rendered.hcl, rendered.variables)
    # A job of another name: what the function has already stays out of it.
    job["ID"] = job["Name"] = f"{rendered.job_id}-dry-run"
    for lane, count in enumerate(lanes.counts(range(most), rendered.lanes)):
        job["TaskGroups"][lane]["Count"] = count
    failed: dict[str, Json] = api.plan(job).get("FailedTGAllocs") or {}
    lacking = sum(1 + metrics.get("CoalescedFailures", 0) for metrics in failed.values())
    try:
        stubs = api.nodes()
    except PermissionDeniedError:
        stubs = None
    missing = ""
    if failed:
        nodes = None if stubs is None else nomad_words.read_nodes(stubs)
        missing = nomad_words.explain_placement(needs, settings.driver, next(iter(failed.values())), nodes)
    fitting = None if stubs is None else tuple(_fitting(stubs, settings, needs))
    return CapacityReport(needs.function, most - lacking, most, fitting, missing)


def _fitting(stubs: list[Json], settings: JobSettings, needs: Needs) -> Iterator[str]:
    """Names of the nodes that have what the function asks for, whether it is free or not."""
    choice = gpus.choose(needs.gpu)
    models = re.compile("|".join(choice.patterns) or ".*")
    for stub, node in zip(stubs, nomad_words.read_nodes(stubs), strict=True):
        placed = any(fnmatch.fnmatchcase(stub["Datacenter"], one) for one in settings.datacenters)
        pooled = settings.node_pool in ("all", stub.get("NodePool", "default"))
        has = choice.count == 0 or any(n >= choice.count and models.fullmatch(model) for model, n in node.gpus.items())
        if placed and pooled and has and node.usable and settings.driver in node.drivers:
            yield node.name


def plan(api: NomadApi, settings: JobSettings, needs: Needs) -> str:
    """Nomad's own diff of a function's job against what is registered. Blocks; raises nomadfn's errors."""
    rendered = jobspec.render(needs, settings)
    job = api.parse(rendered.hcl, rendered.variables)
    counts = api.counts(rendered.job_id) or {}  # Registering keeps them, and a plan would not.
    for group in job["TaskGroups"]:
        group["Count"] = counts.get(group["Name"], group["Count"])
    diff = api.plan(job)["Diff"]
    lines = list(_lines(diff, f"job {rendered.job_id}", 0))
    return "\n".join(lines or [f"  job {rendered.job_id}: nothing changes"]) + "\n"


def _lines(diff: Json, title: str, depth: int) -> Iterator[str]:
    if diff["Type"] == "None":
        return
    indent = "  " * depth
    inner = list(_inner_lines(diff, depth))
    # Nomad calls some blocks edited because of what it fills in itself, and then has nothing to show.
    if inner or diff["Type"] != "Edited":
        yield f"{indent}{_MARKS[diff['Type']]} {title}"
        yield from inner


def _inner_lines(diff: Json, depth: int) -> Iterator[str]:
    for field in diff.get("Fields") or ():
        if field["Type"] != "None":
            old, new = field["Old"], field["New"]
            change = f"{old!r} → {new!r}" if field["Type"] == "Edited" else repr(new or old)
            yield f"{'  ' * depth}  {_MARKS[field['Type']]} {field['Name']}: {change}"
    for kind, word in (("Objects", ""), ("TaskGroups", "group "), ("Tasks", "task ")):
        for part in diff.get(kind) or ():
            yield from _lines(part, f"{word}{part['Name']}", depth + 1)
