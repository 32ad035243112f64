"""What Nomad says, in the words of the user's program.

Pure functions over Nomad's JSON: why a container has no place, why one has ended, what nodes there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nomadfn.core import gpus
from nomadfn.ports import Needs

Json = dict[str, Any]
TASK = "agent"
LIVE = ("pending", "running", "unknown")
_FAULTS = (
    "Driver Failure",
    "Terminated",
    "Failed Artifact Download",
    "Setup Failure",
    "Failed Validation",
    "Template",
    "Task hook failed",
    "Sibling Task Failed",
)
_SIGNALS = {9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM", 6: "SIGABRT"}


@dataclass(frozen=True, slots=True)
class Node:
    """One node as far as functions care for it. `gpus` is model name → how many."""

    name: str
    usable: bool
    drivers: frozenset[str]
    gpus: dict[str, int]


def read_nodes(stubs: Iterable[Json]) -> list[Node]:
    """The nodes of `/v1/nodes?resources=true`."""
    return [_node(stub) for stub in stubs]


def _node(stub: Json) -> Node:
    models: Counter[str] = Counter()
    for device in (stub.get("NodeResources") or {}).get("Devices") or ():
        if device["Type"] == "gpu":
            models[device["Name"]] += sum(1 for one in device["Instances"] or () if one.get("Healthy", True))
    healthy = frozenset(name for name, one in (stub.get("Drivers") or {}).items() if one.get("Healthy"))
    usable = stub["Status"] == "ready" and stub["SchedulingEligibility"] == "eligible" and not stub.get("Drain")
    return Node(stub["Name"], usable, healthy, dict(models))


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def wish(needs: Needs) -> str:
    """What a function asks for: "embed wants 1 × L40S"."""
    parts = [str(gpus.choose(needs.gpu))] if needs.gpu else []
    if needs.cpu_cores is not None:
        parts.append(f"{needs.cpu_cores:g} {'core' if needs.cpu_cores == 1 else 'cores'}")
    if needs.memory_mib is not None:
        parts.append(f"{needs.memory_mib:,} MiB of memory")
    return f"{needs.function} wants {', '.join(parts) or 'a place'}"


def explain_placement(needs: Needs, driver: str, metrics: Json, nodes: Sequence[Node] | None) -> str:
    """Why Nomad has placed no more, from the metrics of the failed group and what nodes there are.

    `nodes` is None where they may not be read.
    """
    if quotas := metrics.get("QuotaExhausted"):
        return f"{wish(needs)}; the namespace's quota is used up ({', '.join(quotas)})"
    if not metrics.get("NodesEvaluated"):
        pool = metrics.get("NodePool") or "default"
        return f"{wish(needs)}; no node is ready in the node pool {pool} and the datacenters that the cluster names"
    reasons = [*_filtered(needs, driver, metrics, nodes), *_exhausted(needs, metrics)]
    return f"{wish(needs)}; {'; '.join(reasons) or 'no node takes it'}"


def _filtered(needs: Needs, driver: str, metrics: Json, nodes: Sequence[Node] | None) -> list[str]:
    reasons: list[str] = []
    for constraint, count in sorted((metrics.get("ConstraintFiltered") or {}).items()):
        if constraint == "missing devices":
            reasons.append(_missing_gpus(needs, count, nodes))
        elif constraint == "missing drivers":
            reasons.append(f"{counted(count, 'node')} cannot run the driver {driver}")
        else:
            reasons.append(f"{counted(count, 'node')} {'is' if count == 1 else 'are'} ruled out by {constraint}")
    return reasons


def _missing_gpus(needs: Needs, count: int, nodes: Sequence[Node] | None) -> str:
    many = gpus.choose(needs.gpu).count > 1
    if nodes is None:
        return f"{counted(count, 'node')} {'has' if count == 1 else 'have'} none of that model"
    have: Counter[str] = Counter()
    for node in nodes:
        if node.usable:
            shown = [f"{number} × {gpus.short_name(model)}" if many else gpus.short_name(model)
                     for model, number in sorted(node.gpus.items())]  # fmt: skip
            have[" and ".join(shown) or "no GPU"] += 1
    told = ", ".join(f"{counted(n, 'node')} {'has' if n == 1 else 'have'} {what}" for what, n in have.most_common())
    return f"no node has {'them' if many else 'one'}: {told or 'no node is ready'}"


def _exhausted(needs: Needs, metrics: Json) -> list[str]:
    reasons: list[str] = []
    for dimension, count in sorted((metrics.get("DimensionExhausted") or {}).items()):
        if dimension.startswith("devices"):
            has = "node has" if count == 1 else "nodes have"
            reasons.append(f"the GPUs are all in use ({count:,} {has} the model)")
        else:
            reasons.append(f"{counted(count, 'node')} {'has' if count == 1 else 'have'} too little {dimension} free")
    return reasons


def has_ended(alloc: Json) -> bool:
    return alloc["ClientStatus"] not in LIVE


def is_leaving(alloc: Json) -> str:
    """Why Nomad is about to end an allocation that still runs, in words; empty if it is not."""
    if alloc["ClientStatus"] == "lost":
        return "Nomad has lost sight of its node"
    if (alloc.get("DesiredTransition") or {}).get("Migrate"):
        return "its node is drained"
    if alloc["DesiredStatus"] == "evict":
        return "a job of higher priority takes its place"
    if alloc["DesiredStatus"] == "stop":
        return alloc.get("DesiredDescription") or "Nomad stops it"
    return ""


def restarts(alloc: Json) -> int:
    return int(_task_state(alloc).get("Restarts") or 0)


def describe_end(alloc: Json, memory_mib: int | None = None) -> str:
    """How an allocation, or the last run of its task, came to its end."""
    where = f" (node {alloc['NodeName']})" if alloc.get("NodeName") else ""
    if alloc["ClientStatus"] == "lost":
        return f"its node {alloc.get('NodeName') or alloc.get('NodeID', '')[:8]} was lost"
    faults = [event for event in _task_state(alloc).get("Events") or () if event["Type"] in _FAULTS]
    if leaving := is_leaving(alloc):
        return leaving
    if not faults:
        return f"Nomad ended it: {alloc.get('ClientDescription') or alloc['ClientStatus']}{where}"
    return _describe_fault(faults[-1], memory_mib) + where


def _describe_fault(event: Json, memory_mib: int | None) -> str:
    details = event.get("Details") or {}
    message = event.get("DisplayMessage") or event.get("Message") or event["Type"]
    if details.get("oom_killed") == "true":
        bound = f" of {memory_mib:,} MiB" if memory_mib else ""
        return f"killed because it used more than its memory{bound}; raise memory= of the function"
    match event["Type"]:
        case "Terminated":
            number = int(details.get("signal") or 0) or max(0, int(details.get("exit_code") or 0) - 128)
            if number:
                return f"killed by {_SIGNALS.get(number, f'signal {number}')}"
            return f"exit code {details.get('exit_code', 'unknown')}"
        case "Driver Failure":
            return f"its driver could not start it: {message}"
        case "Failed Artifact Download":
            return f"the agent could not be fetched from the control service: {message}"
        case _:
            return f"it could not be started: {message}"


def _task_state(alloc: Json) -> Json:
    state = (alloc.get("TaskStates") or {}).get(TASK)
    return state if state is not None else {}


def name_index(alloc: Json) -> int:
    """The position of an allocation in its group: the number in its name, `job.lane-3[7]`."""
    return int(alloc["Name"].rpartition("[")[2].rstrip("]"))


def lane_of(alloc: Json) -> int:
    return int(alloc["TaskGroup"].removeprefix("lane-"))
