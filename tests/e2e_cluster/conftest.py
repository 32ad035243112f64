from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import real_nomad
from cluster_world import ClusterWorld, made_in, made_on_double
from consul_server import ConsulServer, running_consul
from real_nomad import RealNomad


@pytest.fixture(scope="session")
def nomad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNomad]:
    path, why = real_nomad.find()
    if not path:
        pytest.skip(f"needs a real Nomad (1.6 or newer): {why}")
    started = RealNomad(path, tmp_path_factory.mktemp("nomad"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    with running_consul(tmp_path_factory.mktemp("consul")) as server:
        yield server


@pytest.fixture
def world(tmp_path: Path, nomad: RealNomad, consul: ConsulServer) -> Iterator[ClusterWorld]:
    """On a real Nomad."""
    with made_in(tmp_path, nomad, consul) as made:
        yield made


@pytest.fixture(params=["double", pytest.param("real", marks=pytest.mark.nomad)])
def any_world(request: pytest.FixtureRequest, tmp_path: Path, consul: ConsulServer) -> Iterator[ClusterWorld]:
    """On the double, in every run, and on a real Nomad where there is one."""
    if request.param == "real":
        yield request.getfixturevalue("world")
        return
    with made_on_double(tmp_path, consul) as made:
        yield made
