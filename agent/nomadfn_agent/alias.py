"""`import modal` gives nomadfn: in a container before user code, and in a program that is run with `--as-modal`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _ModalAlias(MetaPathFinder, Loader):
    """Finds `modal.x` as `nomadfn.x`: one module object under both names, so that classes stay the same."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname.startswith("modal.") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module("nomadfn" + spec.name.removeprefix("modal"))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run; the import system has put the alias's spec on the module, its own goes back."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def install_modal_alias() -> None:
    """Make `import modal` give nomadfn. More than once is no error."""
    sys.modules["modal"] = importlib.import_module("nomadfn")
    if not any(isinstance(one, _ModalAlias) for one in sys.meta_path):
        sys.meta_path.insert(0, _ModalAlias())
