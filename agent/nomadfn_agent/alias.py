"""`import modal` gives nomadfn: in a container before user code, and in a program that is run with `--as-modal`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

VIEWS = frozenset(
    ("app", "cls", "dict", "functions", "image", "partial_function", "queue", "retries", "schedule", "secret")
)
"""Modules of Modal's that nomadfn does not have, and in which programs find its public names all the same."""


class _ModalAlias(MetaPathFinder, Loader):
    """Finds `modal.x` as `nomadfn.x`: one module object under both names, so that classes stay the same."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname.startswith("modal.") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        name = spec.name.removeprefix("modal.")
        if name in VIEWS:
            module = ModuleType(spec.name, "The public names of nomadfn, where Modal's programs look for them.")
            module.__getattr__ = _public_name  # type: ignore[method-assign]
            spec.loader_state = spec
            return module
        try:
            module = importlib.import_module(f"nomadfn.{name}")
        except ModuleNotFoundError:
            _refuse(name.partition(".")[0])
            raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name) from None
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run; the import system has put the alias's spec on the module, its own goes back."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def _public_name(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(sys.modules["modal"], name)


def _refuse(name: str) -> None:
    """Raise UnsupportedError for a module of Modal's, whose name is that of what it holds: `volume`, of `Volume`."""
    for known in (name, name.title().replace("_", "")):
        try:
            _public_name(known)
        except AttributeError:
            pass


def install_modal_alias() -> None:
    """Make `import modal` give nomadfn. More than once is no error."""
    sys.modules["modal"] = importlib.import_module("nomadfn")
    if not any(isinstance(one, _ModalAlias) for one in sys.meta_path):
        sys.meta_path.insert(0, _ModalAlias())
