"""What would fit now, and what registering would change."""

from __future__ import annotations

import dataclasses

from nomad_double.state import Node
from nomad_worlds import NEEDS, NomadWorld

from nomadfn.adapters import jobspec
from nomadfn.adapters.nomad_plan import capacity_report, plan


def test_a_function_with_room_is_told_the_nodes(world: NomadWorld) -> None:
    report = capacity_report(world.api, world.settings(), dataclasses.replace(NEEDS, max_containers=3))
    assert report.containers == report.most == 3
    assert report.nodes is not None
    assert str(report) == f"embed: room for all 3 containers that it may have, on 1 node ({report.nodes[0]})"
    assert world.api.jobs(jobspec.prefix(world.settings())) == []


def test_a_function_without_room_is_told_what_is_missing(world: NomadWorld) -> None:
    needs = dataclasses.replace(NEEDS, gpu=("H100:4",), cpu_cores=None, memory_mib=None)
    report = capacity_report(world.api, world.settings(), needs)
    assert (report.containers, report.nodes) == (0, ())
    assert str(report) == "embed: no room now: embed wants 4 × H100; no node has them: 1 node has no GPU"


def test_memory_bounds_how_many_fit(world: NomadWorld) -> None:
    [node] = world.api.nodes()
    third = node["NodeResources"]["Memory"]["MemoryMB"] * 10 // 32
    report = capacity_report(world.api, world.settings(), dataclasses.replace(NEEDS, memory_mib=third))
    assert 2 <= report.containers <= 3
    assert "1 node has too little memory free" in report.missing
    assert f"room for {report.containers} containers of 100 now" in str(report)


def test_gpus_bound_how_many_fit_in_the_double(world: NomadWorld) -> None:
    if world.double is None:
        return
    world.double.state.nodes += [Node("g1", gpus={"NVIDIA L40S": 4}), Node("g2", gpus={"Tesla T4": 8})]
    report = capacity_report(world.api, world.settings(), dataclasses.replace(NEEDS, gpu=("L40S:2",)))
    assert (report.containers, report.nodes) == (2, ("g1",))
    assert "the GPUs are all in use (1 node has the model)" in report.missing


def test_the_plan_shows_a_new_job_and_then_nothing(world: NomadWorld) -> None:
    rendered = jobspec.render(NEEDS, world.settings())
    assert plan(world.api, world.settings(), NEEDS).startswith(f"+ job {rendered.job_id}\n")
    world.api.register(world.api.parse(rendered.hcl, rendered.variables))
    assert plan(world.api, world.settings(), NEEDS) == f"  job {rendered.job_id}: nothing changes\n"
