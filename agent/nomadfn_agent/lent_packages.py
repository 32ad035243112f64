"""What nomadfn lends to the Python of an image: itself before the image's packages, its libraries behind them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata

from .environments import READY, root

CONSTRAINTS = {
    "a2wsgi": (1, 10),
    "cloudpickle": (3, 0),
    "cronsim": (2, 6),
    "h11": (0, 14),
    "msgspec": (0, 19),
    "websockets": (14, 0),
}
"""What the agent needs of the libraries that it shares with the image's own packages."""


def own_minor() -> str:
    """The minor version of the Python that this runs on."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def least(name: str) -> str:
    """The oldest version of a library that will do."""
    return ".".join(map(str, CONSTRAINTS[name]))


def import_folders(path: str) -> tuple[str, str]:
    """What the Python of the environment finds nomadfn in: before the image's packages, and behind them.

    Before: the agent and nomadfn, which have to be of this version. Behind: their libraries, so that the image's own
    versions of those come first. Both hold links to where this process has them. Raises `BuildError`.
    """
    with open(os.path.join(path, READY)) as file:
        minor = json.load(file)["python"]
    own = _linked("own", ("nomadfn_agent", "nomadfn"))
    if minor == own_minor():
        return own, _linked("libraries", tuple(CONSTRAINTS))
    return own, libraries_of(minor)


def libraries_of(minor: str) -> str:
    """The folder of the agent's libraries for another minor version of Python."""
    versions = "-".join(version_of(name) for name in CONSTRAINTS)
    digest = hashlib.sha256(versions.encode()).hexdigest()[:16]
    return os.path.join(root(), f"libraries-{minor}-{os.uname().machine}-{digest}")


def version_of(name: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return str(getattr(importlib.import_module(name), "__version__"))  # noqa: B009 - websockets makes it at the look


def _linked(kind: str, names: Sequence[str]) -> str:
    """A folder with a link to each of these packages; whole or not there."""
    places = {}
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            places[name] = os.path.abspath(next(iter(spec.submodule_search_locations)))
    digest = hashlib.sha256("\0".join(places.values()).encode()).hexdigest()[:16]
    target = os.path.join(root(), f"{kind}-{digest}")
    if not os.path.isdir(target):
        temporary = tempfile.mkdtemp(dir=root(), prefix=".links-")
        os.chmod(temporary, 0o755)
        for name, place in places.items():
            os.symlink(place, os.path.join(temporary, name))
        try:
            os.rename(temporary, target)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            if not os.path.isdir(target):
                raise
    return target
