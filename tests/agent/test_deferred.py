"""A module that is put off behaves as the module itself, from the first look at it on."""

from __future__ import annotations

import subprocess
import sys

import pytest

PUT_OFF = "from nomadfn_agent.wire.deferred import defer; defer('importlib.metadata'); import sys; "


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", PUT_OFF + program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_it_loads_nothing() -> None:
    assert run("import importlib.metadata; print('email.message' in sys.modules)") == "False"


@pytest.mark.parametrize(
    "program",
    [
        "import importlib.metadata; print(importlib.metadata.version('msgspec')[0].isdigit())",
        "import importlib.metadata as m; print(m.version('msgspec')[0].isdigit() and 'email.message' in sys.modules)",
        "from importlib.metadata import version; print(version('msgspec')[0].isdigit())",
        "from importlib import metadata; print(metadata.version('msgspec')[0].isdigit())",
        "import importlib.metadata._meta; print(importlib.metadata._meta.PackageMetadata is not None)",
        "import importlib.util; print(importlib.util.find_spec('importlib.metadata').origin.endswith('.py'))",
        "import importlib.metadata, inspect; print('def version' in inspect.getsource(importlib.metadata))",
    ],
)
def test_every_way_to_use_it_finds_the_module(program: str) -> None:
    assert run(program) == "True"


def test_one_that_is_there_already_stays() -> None:
    program = "import importlib.metadata as before; defer('importlib.metadata'); before.version; "
    assert run(program + "import importlib.metadata; print(importlib.metadata.version is before.version)") == "True"


def test_a_link_and_websockets_do_without_it() -> None:
    program = "import nomadfn_agent.wire.link, websockets.client; print('email.message' in sys.modules)"
    assert run(program) == "False"
