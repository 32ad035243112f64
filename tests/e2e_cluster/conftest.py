from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import real_nomad
from cluster_world import ClusterWorld, made_in
from consul_server import ConsulServer, running_consul
from real_nomad import RealNomad


@pytest.fixture(scope="session")
def nomad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNomad]:
    path, why = real_nomad.find()
    if not path:
        pytest.skip(why)
    started = RealNomad(path, tmp_path_factory.mktemp("nomad"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    with running_consul(tmp_path_factory.mktemp("consul")) as server:
        yield server


@pytest.fixture
def world(tmp_path: Path, nomad: RealNomad, consul: ConsulServer) -> Iterator[ClusterWorld]:
    with made_in(tmp_path, nomad, consul) as made:
        yield made
