"""Functions with `gpu=` on a real Nomad that pretends to have some."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import real_nomad
from cluster_world import ClusterWorld, made_in
from consul_server import ConsulServer
from real_nomad import RealNomad
from world import eventually

pytestmark = [pytest.mark.nomad, pytest.mark.consul, pytest.mark.timeout(240)]

WITHIN_S = 5.0
PROGRAM = """
    import os
    import nomadfn

    app = nomadfn.App("cards")

    @app.function(gpu="H100:4")
    def four():
        return os.environ["CUDA_VISIBLE_DEVICES"]

    @app.function(gpu=["L40S", "T4"])
    def one():
        return os.environ["CUDA_VISIBLE_DEVICES"]

    @app.function()
    def none():
        return os.environ.get("CUDA_VISIBLE_DEVICES", "nothing")

    @app.function(gpu="L40S")
    def missing():
        pass

    @app.local_entrypoint()
    def main():
        missing.remote()
"""


@pytest.fixture
def world(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, consul: ConsulServer) -> Iterator[ClusterWorld]:
    path, why = real_nomad.find()
    if not path or not real_nomad.has_plugin():
        pytest.skip(why or f"needs a device plugin with pretended GPUs: {real_nomad.PLUGINS} names its folder")
    has = {"NVIDIA H100 80GB HBM3": (8, 81559), "Tesla T4": (1, 15360)}
    nomad = RealNomad(path, tmp_path_factory.mktemp("cards"), has)
    try:
        with made_in(tmp_path, nomad, consul) as made:
            yield made
    finally:
        nomad.close()


def test_a_function_sees_the_gpus_that_it_was_given_and_hears_of_those_that_there_are_not(world: ClusterWorld) -> None:
    world.start_control()
    world.led()
    world.write("cards.py", PROGRAM)
    deployed = world.nomadfn("deploy", "cards.py", timeout_s=120).ok()
    assert "missing wants 1 × L40S; no node has one" in deployed.err

    def visible(function: str) -> str:
        return world.nomadfn("function", "call", "cards", function, timeout_s=120).ok().out.strip()

    assert visible("four").count("GPU-NVIDIA-H100-80GB-HBM3-") == 4
    assert visible("one") == "GPU-Tesla-T4-0"
    assert visible("none") == "nothing"
    run = world.start("nomadfn", "run", "cards.py")
    eventually(lambda: "Running cards" in run.err, run)
    eventually(lambda: "missing wants 1 × L40S; no node has one" in run.err + run.out, run, WITHIN_S)
