"""What was found of one part of a cluster or a machine, and what a machine has for containers without a cluster."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from nomadfn_agent.wire.places import environments_folder, find_uv

WITHOUT_UV = "images are made with venv and pip, which takes longer; pip install uv, or 'nomadfn[images]'"


@dataclass(frozen=True, slots=True)
class Finding:
    """One part: `ok` is None where nothing is wrong and yet something is worth to know."""

    part: str
    ok: bool | None
    text: str


def uv_finding(path: str) -> Finding:
    """Whether uv is there, by its path."""
    text = f"{path}: it makes the environments of images" if path else f"not there: {WITHOUT_UV}"
    return Finding("uv", True if path else None, text)


def check_machine() -> Iterator[Finding]:
    """Python, uv and the folder of environments of the machine that this runs on."""
    yield Finding("Python", True, f"{platform.python_version()} at {sys.executable}")
    yield uv_finding(find_uv())
    folder = environments_folder()
    there = folder
    while not os.path.exists(there):
        there = os.path.dirname(there)
    if not os.access(there, os.W_OK):
        text = f"{folder} cannot be written to; name another folder in NOMADFN_ENVIRONMENTS"
        yield Finding("environments", False, text)
        return
    made = [one for one in os.listdir(folder) if one.endswith(".lock")] if there == folder else []
    yield Finding("environments", True, f"{len(made)} in {folder}")
