"""Where `gpu=` places a function: by the job alone in every run, by a Nomad with pretended GPUs where there is one."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from nomad_double import jobs
from nomad_worlds import NomadWorld
from real_nomad import PLUGINS, RealNomad, find, has_plugin

from nomadfn.adapters import jobspec
from nomadfn.adapters.jobspec import JobSettings
from nomadfn.adapters.nomad_api import NomadApi
from nomadfn.adapters.nomad_plan import capacity_report
from nomadfn.ports import ContainerStarted, Needs, Placement, PlacementBlocked
from nomadfn.sdk import gpu

HAS = {
    "Tesla T4": (3, 15360),
    "NVIDIA H100 80GB HBM3": (8, 81559),
    "NVIDIA A100-SXM4-40GB": (2, 40960),
    "NVIDIA A100 80GB PCIe": (4, 81920),
    "NVIDIA L40": (1, 46068),
}
"""Model → how many there are, and the MiB that each has."""
PLACED = {
    "T4": "Tesla T4",
    "H100:4": "NVIDIA H100 80GB HBM3",
    "A100-80GB": "NVIDIA A100 80GB PCIe",
    "A100-40GB:2": "NVIDIA A100-SXM4-40GB",
    "L40": "NVIDIA L40",
    ("L40S", "H100"): "NVIDIA H100 80GB HBM3",
    ("A100-80GB:2", "H100:2"): "NVIDIA A100 80GB PCIe",
}
REFUSED = {
    "L40S": "wants 1 × L40S; no node has one: 1 node has",
    "H100:16": "wants 16 × H100; no node has them: 1 node has",
    ("L40S", "RTX-4090"): "wants 1 × L40S or RTX-4090; no node has one",
}
WITHIN_S = 5.0


def wanting(value: Any, function: str = "embed") -> Needs:
    wanted = gpu.parse(list(value) if isinstance(value, tuple) else value, function)
    return Needs(app="a", function=function, gpu=tuple(wanted))


def candidates(device: dict[str, Any]) -> list[str]:
    """The models that a device block takes, the preferred one first, as Nomad reads it."""
    found = [model for model in HAS if _takes(device, model)]
    return sorted(found, key=lambda model: -_weight(device, model))


def _takes(device: dict[str, Any], model: str) -> bool:
    count, memory_mib = HAS[model]
    if count < device["Count"]:
        return False
    for one in device["Constraints"] or ():
        match one["LTarget"], one["Operand"]:
            case "${device.model}", "regexp":
                holds = re.search(one["RTarget"], model) is not None
            case "${device.attr.memory}", ">=":
                holds = memory_mib >= int(one["RTarget"].removesuffix(" MiB"))
            case "${device.attr.memory}", "<=":
                holds = memory_mib <= int(one["RTarget"].removesuffix(" MiB"))
            case other:
                raise AssertionError(f"the job asks for what this test does not know: {other}")
        if not holds:
            return False
    return True


def _weight(device: dict[str, Any], model: str) -> int:
    fits = (one["Weight"] for one in device["Affinities"] or () if re.search(one["RTarget"], model))
    return sum(fits)


def device_of(job: dict[str, Any]) -> dict[str, Any]:
    [device] = job["TaskGroups"][0]["Tasks"][0]["Resources"]["Devices"]
    return dict(device)


@pytest.mark.parametrize("wanted", [*PLACED, *REFUSED])
def test_the_job_takes_the_right_models_in_the_right_order(wanted: Any) -> None:
    values = json.loads(jobspec.render(wanting(wanted), JobSettings()).variables)
    assert candidates(device_of(jobs.parse(values)))[:1] == ([PLACED[wanted]] if wanted in PLACED else [])


@pytest.mark.nomad
def test_so_does_what_the_real_parser_makes_of_it(real_nomad: RealNomad) -> None:
    api = NomadApi(real_nomad.address)
    for wanted in (*PLACED, *REFUSED):
        rendered = jobspec.render(wanting(wanted), JobSettings(workload_identity=api.version() >= (1, 7, 0)))
        device = device_of(api.parse(rendered.hcl, rendered.variables))
        assert candidates(device)[:1] == ([PLACED[wanted]] if wanted in PLACED else []), wanted
    api.close()


@pytest.fixture(scope="module")
def gpu_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NomadWorld]:
    path, why_not = find()
    if not path or not has_plugin():
        pytest.skip(why_not or f"needs a device plugin with pretended GPUs: {PLUGINS} names its folder")
    nomad = RealNomad(path, tmp_path_factory.mktemp("gpus"), HAS)
    world = NomadWorld(nomad, "gpus")
    yield world
    world.clean_up()
    nomad.close()


@pytest.mark.nomad
def test_a_real_nomad_places_them_there(gpu_world: NomadWorld) -> None:
    async def scenario() -> None:
        async with gpu_world.opened() as scene:
            for number, (wanted, model) in enumerate(PLACED.items()):
                needs = wanting(wanted, f"f{number}")
                scene.cluster.start(Placement(f"ct-{number}", f"f{number}", 0, {}, needs))
                await scene.until(ContainerStarted, f"ct-{number}")
                place = scene.cluster.place_of(f"ct-{number}")
                assert place is not None
                alloc = gpu_world.api.allocation(place[3])
                assert alloc is not None
                [given] = alloc["AllocatedResources"]["Tasks"]["agent"]["Devices"]
                count = int(needs.gpu[0].partition(":")[2] or 1)
                assert (given["Name"], len(given["DeviceIDs"])) == (model, count), wanted
                scene.cluster.stop(f"ct-{number}", 0.0)

    asyncio.run(scenario())


@pytest.mark.nomad
def test_a_real_nomad_that_has_others_is_told_in_words_within_seconds(gpu_world: NomadWorld) -> None:
    async def scenario() -> None:
        async with gpu_world.opened() as scene:
            for number, (wanted, words) in enumerate(REFUSED.items()):
                function, needs = f"g{number}", wanting(wanted, f"g{number}")
                assert words in str(capacity_report(gpu_world.api, gpu_world.settings(), needs))
                start = time.monotonic()
                scene.cluster.start(Placement(f"no-{number}", function, 0, {}, needs))
                async with asyncio.timeout(WITHIN_S):
                    told = await scene.until_said(PlacementBlocked, lambda one, of=function: one.function == of)
                print(f"{wanted}: told after {time.monotonic() - start:.2f} s: {told.why}")
                assert words in told.why
                scene.cluster.stop(f"no-{number}", 0.0)

    asyncio.run(scenario())
