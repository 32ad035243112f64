from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_harness import Cli


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    one = Cli(tmp_path)
    yield one
    if (one.data / "service.json").exists():
        one.run("down")


@pytest.fixture(scope="module")
def shared_cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """One with a service that is up, for the tests of a module that only ask it."""
    one = Cli(tmp_path_factory.mktemp("shared"))
    one.out("up")
    yield one
    one.out("down")
