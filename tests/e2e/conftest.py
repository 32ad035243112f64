from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from world import World, made_in


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with made_in(tmp_path) as made:
        yield made
