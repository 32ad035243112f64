"""How the Python environment of a function is made: what travels of an `Image`."""

from __future__ import annotations

import sys

import msgspec

ID_LENGTH = 22
FILES = "{files}"
"""Stands in arguments for the folder with the step's own files."""


class ImageStep(msgspec.Struct, frozen=True, kw_only=True):
    """One installation into the environment, after those before it."""

    tool: str
    """`pip` or `uv`: which of them the program named, whose rules for several indexes hold; `sync`: a uv project."""
    arguments: list[str] = []
    """Requirements and options, as `uv pip install` or `uv sync` takes them."""
    files: dict[str, str] = {}
    """Name and content of what the arguments refer to."""
    env: dict[str, str] = {}
    """Environment variables of this step alone."""


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The recipe of an environment. Readable as JSON: it stands in the registry like this."""

    python: str = ""
    """Version of Python, "3.12" or "3.12.4"."""
    registry: str = ""
    """The container image that it is based on; empty where there is none."""
    steps: list[ImageStep] = []
    workdir: str = ""
    """Where containers work. No part of the environment."""
    interpreter: str = ""
    """Where the program's own Python is: good for the environment where that machine is this one."""
    once: str = ""
    """With `force_build`: what tells this run's environment from every other one."""


def image_id(image: ImageSpec) -> str:
    """The environment's name: equal recipes have equal ones, wherever they are made."""
    import hashlib

    recipe = msgspec.json.encode(msgspec.structs.replace(image, workdir="", interpreter=""), order="sorted")
    return "im-" + hashlib.sha256(recipe).hexdigest()[:ID_LENGTH]


def needs_environment(image: ImageSpec) -> bool:
    """Whether containers of this image cannot be forked from this process: for its packages, or its Python."""
    own = [".".join(map(str, sys.version_info[:length])) for length in (2, 3)]
    return bool(image.steps) or image.python not in ("", *own)
