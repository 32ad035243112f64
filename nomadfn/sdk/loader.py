"""Loading a user's program by its path, and finding the app in it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from nomadfn.exception import InvalidError, NotFoundError

from . import app as apps
from . import code
from .app import App


def load(target: str | Path, as_modal: bool = False) -> ModuleType:
    """Import a program, `hello.py` or by its dotted name `pkg.hello`, with its folder on `sys.path`.

    With `as_modal`, `import modal` in it gives nomadfn. Raises NotFoundError or InvalidError for a path that is
    no program; what the program itself raises goes through.
    """
    if as_modal:
        from nomadfn_agent.alias import install_modal_alias

        install_modal_alias()
        apps.as_modal = True
    path = Path(target).expanduser()
    if path.suffix != ".py" and not path.exists() and all(part.isidentifier() for part in str(target).split(".")):
        return _load_module(str(target))
    if not path.exists():
        raise NotFoundError(f"there is no file {target}; give the path of a Python program")
    if path.is_dir() or path.suffix != ".py":
        raise InvalidError(f"{target} is no Python program; give the path of a .py file")
    return _load_file(path.resolve())


def find_app(module: ModuleType, name: str | None = None) -> App:
    """The app in a program: its only one, else the one called `name` (an app's name or a variable's).

    Raises InvalidError when there is none, or several and no name.
    """
    found = {variable: value for variable, value in vars(module).items() if isinstance(value, App)}
    distinct = list(dict.fromkeys(found.values()))
    where = getattr(module, "__file__", None) or module.__name__
    if name is not None:
        by_name = {one.name: one for one in distinct}
        chosen = by_name.get(name) or found.get(name)
        if chosen is None:
            known = ", ".join(map(repr, by_name)) or "none"
            raise NotFoundError(f"{where} has no app called {name!r}; its apps: {known}")
        return chosen
    if not distinct:
        raise InvalidError(f"{where} has no app; make one at its top level: app = nomadfn.App('name')")
    if len(distinct) > 1:
        useful = [
            one for one in distinct if one.registered_functions or one.registered_classes or one.registered_entrypoints
        ]
        if len(useful) != 1:
            known = ", ".join(repr(one.name) for one in distinct)
            raise InvalidError(f"{where} has several apps, {known}; say which one, as in {where}::{distinct[0].name}")
        return useful[0]
    return distinct[0]


def _load_module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise NotFoundError(f"there is no file and no module {name}; give the path of a Python program") from None
        raise


def _load_file(path: Path) -> ModuleType:
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = code.module_name_of(path)
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    if known is not None:
        name = f"{name}_"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module
