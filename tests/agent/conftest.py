from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_harness import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine for a test that does something to its supervisor."""
    yield from _made(tmp_path)


@pytest.fixture(scope="module")
def lasting_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine for many tests, each with containers of its own."""
    yield from _made(tmp_path_factory.mktemp("machine"))


def _made(folder: Path) -> Iterator[Machine]:
    made = Machine(folder)
    try:
        yield made
    finally:
        made.close()
