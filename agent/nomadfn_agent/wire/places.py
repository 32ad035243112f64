"""Where a machine has what environments are made with, and where it keeps them: asked by agents and by the doctor."""

from __future__ import annotations

import os
import shutil
import sys


def find_uv() -> str:
    """Where uv is: beside this Python, on PATH, or where its installer puts it; empty where it is not."""
    beside = os.path.join(os.path.dirname(sys.executable), "uv")
    local = os.path.join(os.path.expanduser("~"), ".local", "bin", "uv")
    found = [beside, shutil.which("uv") or "", local]
    return next((one for one in found if one and os.access(one, os.X_OK)), "")


def environments_folder() -> str:
    """The folder of all environments; it may not be there yet."""
    if chosen := os.environ.get("NOMADFN_ENVIRONMENTS"):
        return os.path.abspath(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "nomadfn", "environments")
