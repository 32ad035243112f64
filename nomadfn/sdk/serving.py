"""Serving an app while its program is worked on: a changed program is loaded anew and takes the running one's place.

The app keeps its id and its connection, so its web functions keep their URLs. Containers of what has changed finish
what they have, and new ones follow; a function whose definition and code are the same keeps its containers.
"""

from __future__ import annotations

import importlib
import linecache
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from . import code
from .app import App
from .blocking import run_sync
from .progress import Observer

Load = Callable[[], App]


class Serving:
    """One app that runs until `stop`. `load` imports the program and gives its app; it is called for each version."""

    def __init__(self, load: Load, observer: Observer) -> None:
        self._load = load
        self._observer = observer
        self._seen: dict[Path, int] = {}
        self.app = load()

    def start(self) -> None:
        run_sync(self.app._start(False, self._observer))
        self._seen = _versions(code.local_modules().values())

    def stop(self) -> None:
        """Stop the app; what is unfinished is cancelled."""
        run_sync(self.app._stop(False, self._observer))

    def changed(self) -> list[Path]:
        """The program's files that are not any more as they were when they were loaded, or last found to be wrong."""
        now = _versions(self._seen)
        return sorted(path for path, version in self._seen.items() if now.get(path) != version)

    def reload(self) -> None:
        """Load the program as it is now and put it in force. Whatever it raises, the version before goes on."""
        before = code.local_modules()
        modules = {name: sys.modules.pop(name) for name in before}
        self._seen.update(_versions(self._seen))
        importlib.invalidate_caches()
        linecache.clearcache()
        try:
            app = self._load()
            run_sync(app._replace(self.app, self._observer))
        except BaseException:
            _put_back(modules)
            raise
        self.app = app
        self._seen = _versions(code.local_modules().values())


def _put_back(modules: dict[str, ModuleType]) -> None:
    for name in code.local_modules():
        sys.modules.pop(name, None)
    sys.modules.update(modules)


def _versions(files: Iterable[Path]) -> dict[Path, int]:
    """When each file was last written; 0 for one that is gone."""
    found: dict[Path, int] = {}
    for path in list(files):
        try:
            found[path] = path.stat().st_mtime_ns
        except OSError:
            found[path] = 0
    return found
