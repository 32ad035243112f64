"""`import modal` and its modules under `--as-modal`, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

INSTALL = "from nomadfn_agent.alias import install_modal_alias; install_modal_alias(); "


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", INSTALL + program], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "program",
    [
        "import modal, nomadfn; assert modal is nomadfn",
        "import modal.exception, nomadfn.exception; assert modal.exception is nomadfn.exception",
        "from modal.functions import Function, FunctionCall; import modal; assert FunctionCall is modal.FunctionCall",
        "import modal.app; import nomadfn; assert modal.app.App is nomadfn.App",
        "from modal.secret import Secret; from nomadfn import Secret as same; assert Secret is same",
    ],
)
def test_what_programs_import_of_modal_is_nomadfns(program: str) -> None:
    done = run(program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import modal.experimental", "UnsupportedError: experimental is not supported"),
        ("import modal.volume", "UnsupportedError: Volume is not supported"),
        ("import modal.nothing", "ModuleNotFoundError: No module named 'modal.nothing'"),
        ("from modal.functions import nothing", "ImportError: cannot import name 'nothing' from 'modal.functions'"),
    ],
)
def test_what_is_not_there_is_said_by_the_name_that_the_program_uses(program: str, error: str) -> None:
    done = run(program)
    assert done.returncode != 0
    assert error in done.stderr
