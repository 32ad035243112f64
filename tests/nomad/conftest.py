"""The Nomad adapter over two worlds: the double, in every run, and a real Nomad where there is one."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "adapters")]
pytest.register_assert_rewrite("contract_cluster", "contract_nomad")

from nomad_worlds import NomadWorld  # noqa: E402
from real_nomad import RealNomad, find  # noqa: E402

_names = itertools.count(1)


@pytest.fixture(scope="session")
def real_nomad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNomad]:
    """One dev agent for all tests of this process; each test has a nomadfn cluster of its own name."""
    path, why_not = find()
    if not path:
        pytest.skip(f"needs a real Nomad (1.6 or newer): {why_not}")
    nomad = RealNomad(path, tmp_path_factory.mktemp("nomad"))
    yield nomad
    nomad.close()


@pytest.fixture(params=["double", pytest.param("real", marks=pytest.mark.nomad)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NomadWorld]:
    from nomad_double.server import NomadDouble

    name = f"t{next(_names)}"
    with contextlib.ExitStack() as stack:
        if request.param == "real":
            nomad: RealNomad | NomadDouble = request.getfixturevalue("real_nomad")
        else:
            nomad = stack.enter_context(contextlib.closing(NomadDouble(tmp_path)))
        world = NomadWorld(nomad, name)
        stack.callback(world.clean_up)
        yield world
