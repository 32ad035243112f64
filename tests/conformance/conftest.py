"""One control service for each file of rules; the program runs attached to it, and is deployed there as well.

Other tests of the same process must not find it: what is set here ends with the file.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from world import World, made_in

from nomadfn.sdk import client as client_module
from nomadfn.sdk.progress import Observer


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with made_in(tmp_path_factory.mktemp("conformance")) as world:
        shutil.copy(Path(__file__).with_name("conformance_app.py"), world.folder)
        world.up()
        before = dict(os.environ)
        os.environ.update({name: text for name, text in world.env.items() if name.startswith("NOMADFN_")})
        sys.path.insert(0, str(world.folder))
        try:
            yield world
        finally:
            if client_module._default is not None:
                client_module._default.close()
                client_module._default = None
            sys.path.remove(str(world.folder))
            sys.modules.pop("conformance_app", None)
            os.environ.clear()
            os.environ.update(before)


@pytest.fixture(scope="module")
def program(service: World) -> Iterator[ModuleType]:
    """The program, running: its functions can be called."""
    module = importlib.import_module("conformance_app")
    with module.app.run(observer=Observer()):
        yield module


@pytest.fixture(scope="module")
def deployed(service: World) -> str:
    """The name of the app, once it is deployed."""
    service.deploy("conformance_app.py")
    return "conformance"


@pytest.fixture
def marks(tmp_path: Path) -> str:
    """A file in which attempts are counted."""
    return str(tmp_path / "marks")
