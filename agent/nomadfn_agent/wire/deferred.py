"""A module that somebody imports and nobody uses, imported when it is used after all."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any


def defer(name: str) -> None:
    """Let `import package.name` cost nothing until the first look at what is in it; nothing else changes.

    Does nothing for a module that is there already. `importlib.util.LazyLoader` would load it at the second import.
    """
    package, _, tail = name.rpartition(".")
    spec = PathFinder.find_spec(name, sys.modules[package].__path__) if name not in sys.modules else None
    if spec is None:
        return
    stand_in = ModuleType(name)
    stand_in.__spec__ = spec

    def load(attribute: str) -> Any:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        module = importlib.import_module(name)
        vars(stand_in).update(vars(module))
        return getattr(module, attribute)

    stand_in.__getattr__ = load  # type: ignore[method-assign]
    sys.modules[name] = stand_in
    setattr(sys.modules[package], tail, stand_in)
