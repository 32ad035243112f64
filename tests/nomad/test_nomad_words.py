"""What Nomad says, in the words of the user's program."""

from __future__ import annotations

from typing import Any

import pytest

from nomadfn.adapters import nomad_words
from nomadfn.adapters.nomad_words import Node
from nomadfn.ports import Needs

EMBED = Needs(app="thumbs", function="embed", gpu=("L40S",))


def node(name: str, usable: bool = True, **gpus: int) -> Node:
    return Node(name, usable, frozenset({"docker"}), {model.replace("_", " "): n for model, n in gpus.items()})


T4S = [node(f"n{number}", Tesla_T4=1) for number in range(3)]


@pytest.mark.parametrize(
    ("needs", "metrics", "nodes", "said"),
    [
        (
            EMBED,
            {"NodesEvaluated": 3, "ConstraintFiltered": {"missing devices": 3}},
            T4S,
            "embed wants 1 × L40S; no node has one: 3 nodes have T4",
        ),
        (
            Needs(app="a", function="train", gpu=("H100:8",)),
            {"NodesEvaluated": 2, "ConstraintFiltered": {"missing devices": 2}},
            [node("a", NVIDIA_H200=4), node("b"), node("c", usable=False, NVIDIA_H100=8)],
            "train wants 8 × H100; no node has them: 1 node has 4 × H200, 1 node has no GPU",
        ),
        (
            EMBED,
            {"NodesEvaluated": 4, "DimensionExhausted": {"devices: no devices match request": 4}},
            T4S,
            "embed wants 1 × L40S; the GPUs are all in use (4 nodes have the model)",
        ),
        (
            EMBED,
            {"NodesEvaluated": 3, "ConstraintFiltered": {"missing devices": 3}},
            None,
            "embed wants 1 × L40S; 3 nodes have none of that model",
        ),
        (
            Needs(app="a", function="f", cpu_cores=2, memory_mib=4096),
            {"NodesEvaluated": 2, "DimensionExhausted": {"memory": 1, "cpu": 2}},
            [],
            "f wants 2 cores, 4,096 MiB of memory; 2 nodes have too little cpu free; 1 node has too little memory free",
        ),
        (
            Needs(app="a", function="f"),
            {"NodesEvaluated": 0, "NodePool": "gpu"},
            [],
            "f wants a place; no node is ready in the node pool gpu and the datacenters that the cluster names",
        ),
        (
            Needs(app="a", function="f"),
            {"NodesEvaluated": 3, "ConstraintFiltered": {"missing drivers": 2, "${meta.rack} = r1": 1}},
            [],
            "f wants a place; 1 node is ruled out by ${meta.rack} = r1; 2 nodes cannot run the driver docker",
        ),
        (
            Needs(app="a", function="f"),
            {"NodesEvaluated": 3, "QuotaExhausted": ["cpu exhausted"]},
            [],
            "f wants a place; the namespace's quota is used up (cpu exhausted)",
        ),
    ],
)
def test_why_there_is_no_place(needs: Needs, metrics: dict[str, Any], nodes: list[Node] | None, said: str) -> None:
    assert nomad_words.explain_placement(needs, "docker", metrics, nodes) == said


def alloc(*events: dict[str, Any], status: str = "failed", **more: Any) -> dict[str, Any]:
    return {
        "ClientStatus": status,
        "DesiredStatus": "run",
        "NodeName": "n1",
        "TaskStates": {"agent": {"Restarts": 0, "Events": list(events)}},
        **more,
    }


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (alloc({"Type": "Terminated", "Details": {"exit_code": "3"}}), "exit code 3 (node n1)"),
        (alloc({"Type": "Terminated", "Details": {"exit_code": "137"}}), "killed by SIGKILL (node n1)"),
        (alloc({"Type": "Terminated", "Details": {"exit_code": "0", "signal": "9"}}), "killed by SIGKILL (node n1)"),
        (
            alloc({"Type": "Terminated", "Details": {"exit_code": "137", "oom_killed": "true"}}),
            "killed because it used more than its memory of 256 MiB; raise memory= of the function (node n1)",
        ),
        (
            alloc({"Type": "Driver Failure", "DisplayMessage": "no such image", "Details": {}}),
            "its driver could not start it: no such image (node n1)",
        ),
        (
            alloc({"Type": "Failed Artifact Download", "DisplayMessage": "refused"}),
            "the agent could not be fetched from the control service: refused (node n1)",
        ),
        (alloc(status="lost"), "its node n1 was lost"),
        (alloc(status="complete", DesiredStatus="evict"), "a job of higher priority takes its place"),
        (alloc(DesiredTransition={"Migrate": True}), "its node is drained"),
        (alloc(TaskStates=None, ClientDescription="?"), "Nomad ended it: ? (node n1)"),
    ],
)
def test_how_it_ended(ended: dict[str, Any], said: str) -> None:
    assert nomad_words.describe_end(ended, 256) == said


def test_nodes_are_read_with_the_gpus_that_work() -> None:
    device = {"Type": "gpu", "Name": "Tesla T4", "Instances": [{"Healthy": True}, {"Healthy": False}]}
    stub = {
        "Name": "n1",
        "Status": "ready",
        "SchedulingEligibility": "eligible",
        "Drivers": {"docker": {"Healthy": True}, "exec": {"Healthy": False}},
        "NodeResources": {"Devices": [device, {"Type": "fpga", "Name": "x", "Instances": []}]},
    }
    assert nomad_words.read_nodes([stub]) == [Node("n1", True, frozenset({"docker"}), {"Tesla T4": 1})]
    assert not nomad_words.read_nodes([{**stub, "SchedulingEligibility": "ineligible"}])[0].usable
