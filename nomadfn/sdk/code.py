"""The program's source as one archive, and which module of it gives each function.

Code travels as source. The archive holds what the program needs and no more: the modules of its functions, every
local module that is imported by now or named in an import statement of those, and, while they are small, the
other modules and packages beside the program's own file. A folder is only looked into when it is a package
or when a module of the program names it, so a script in a home folder does not drag the home folder along.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import site
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from nomadfn_agent import wire
from nomadfn_agent.wire import payload as payloads

from nomadfn.exception import InvalidError, SerializationError

MAX_FILES = 2_000
MAX_ARCHIVE_BYTES = 16 * 1024 * 1024
MAX_DATA_FILE_BYTES = 1024 * 1024
"""Files in a package that are not Python source travel up to this size."""
MAX_SIBLINGS = 200
SKIPPED_FOLDERS = frozenset(("__pycache__", "node_modules", "site-packages", "venv", "env", "build", "dist"))
OWN_PACKAGES = frozenset(("nomadfn", "nomadfn_agent", "nomadfn_jobspecs", "modal"))
_IMPORT = re.compile(rb"^[ \t]*(?:from|import)[ \t]+([A-Za-z_]\w*)", re.MULTILINE)
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Origin:
    """Where a function comes from: a module and a name in it, or, with an empty module, only by value."""

    module: str
    qualname: str


def module_name_of(file: Path) -> str:
    """The name under which a program's file is imported; it never hides a module of Python itself."""
    stem = file.stem.replace(".", "_")
    return f"{stem}_" if stem in sys.stdlib_module_names or stem in OWN_PACKAGES or stem == "test" else stem


def alias_main() -> str:
    """The importable name of the program that runs as `__main__`, empty where it has no file.

    The module is entered under that name too, so that what a container sends back, pickled under the name
    that the module has there, is found here.
    """
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    file = getattr(main, "__file__", None)
    if main is None or not file or not os.path.isfile(file) or not file.endswith(".py"):
        return ""
    name = spec.name if spec is not None else module_name_of(Path(file))
    sys.modules.setdefault(name, main)
    return name


def origin_of(function: Callable[..., Any], *, serialized: bool) -> Origin:
    """The module that gives `function` in a container; none where it must travel by value."""
    qualname = function.__qualname__
    by_value = Origin("", qualname)
    if serialized or "<locals>" in qualname or "<lambda>" in qualname:
        return by_value
    name = function.__module__
    if name == "__main__":
        name = alias_main()
    module = sys.modules.get(name) if name else None
    return Origin(name, qualname) if module is not None and _source_of(module) else by_value


def pickle_function(function: Callable[..., Any], name: str, max_bytes: int = MAX_ARCHIVE_BYTES) -> bytes:
    """A function by value, for those that no module can give. Raises SerializationError or InvalidError."""
    try:
        data = payloads.cloud_dumps(function)
    except payloads.Unpicklable as error:
        raise SerializationError(
            f"function {name} cannot be sent to a container: {_culprit(function) or error}; "
            f"define it at the top level of a file, or make what it uses inside of it"
        ) from None
    if len(data) > max_bytes:
        raise InvalidError(
            f"function {name} has {len(data):,} bytes pickled, over the limit of {max_bytes:,}: "
            f"it holds on to something large; pass that as an argument or load it inside the function"
        )
    return data


def _culprit(function: Callable[..., Any]) -> str:
    """Which variable of a function cannot be pickled."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    held = {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
    held |= {name: function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__}
    for name, value in held.items():
        try:
            payloads.cloud_dumps(value)
        except payloads.Unpicklable as error:
            return f"it uses {name!r}, and {error}"
    return ""


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def pack(modules: Iterable[str], named: Iterable[str] = (), *, as_modal: bool) -> tuple[bytes, wire.CodeRef]:
    """The archive for a program whose functions come from `modules`, and what to do with it.

    The modules of `named` travel, too, also where they are installed ones. The archive is empty where no function
    comes from a module and none is named. Raises InvalidError when it is too large.
    """
    names = list(dict.fromkeys(modules))
    main = alias_main()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    sources = {place: path for name in named for place, path in find_source(name).items()}
    if not names:
        data = _zip(sources) if sources else b""
        digest = payloads.digest_of(data) if data else ""
        return data, wire.CodeRef(digest=digest, python=version, as_modal=as_modal)
    main_module = main if main in names else names[0]
    collection = _Collection(main_module)
    collection.take(sources)
    for name in names:
        collection.need(name)
    collection.need_loaded()
    collection.follow_imports()
    collection.add_siblings()
    data = _zip(collection.checked())
    code = wire.CodeRef(
        digest=payloads.digest_of(data),
        main_module=main_module,
        origin=str(collection.root),
        python=version,
        as_modal=as_modal,
    )
    return data, code


def local_modules() -> dict[str, Path]:
    """Every module that is loaded from source of the program's own, not of a library's, with its file."""
    libraries = _library_folders()
    found: dict[str, Path] = {}
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        if top in OWN_PACKAGES or top in sys.stdlib_module_names or top in ("__main__", "__mp_main__"):
            continue
        source = _source_of(module)
        if source is not None and not _is_in(source, libraries):
            found[name] = source
    return found


def find_source(name: str) -> dict[str, Path]:
    """The files of a module, or of the whole of its package, by their place in the archive. Raises InvalidError."""
    top = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.submodule_search_locations:
        folders = [Path(os.path.abspath(one)) for one in spec.submodule_search_locations]
        return {f"{top}/{path.relative_to(one).as_posix()}": path for one in folders for path in _walk(one)}
    if spec is None or not (spec.origin or "").endswith(".py"):
        raise InvalidError(
            f"Image.add_local_python_source: there is no module {name!r} with source on this machine; name one that "
            f"the program could import"
        )
    return {f"{top}.py": Path(spec.origin or "")}


class _Collection:
    """Files of the program by their place in the archive."""

    def __init__(self, main_module: str) -> None:
        self.root = _root_of(sys.modules[main_module], main_module)
        self.files: dict[str, Path] = {}
        self._sizes: dict[str, int] = {}
        self._tops: set[str] = set()
        self._libraries = _library_folders()

    def take(self, sources: dict[str, Path]) -> None:
        """Files that the program has named itself."""
        self._tops |= {place.partition("/")[0].removesuffix(".py") for place in sources}
        for place, path in sources.items():
            self._add(place, path)

    def need(self, name: str) -> None:
        """The module `name`, which is imported, with the whole of its package."""
        module = sys.modules[name]
        source = _source_of(module)
        top = name.partition(".")[0]
        if source is None or top in self._tops or self._is_library(source):
            return
        if "." not in name and not hasattr(module, "__path__"):
            self._tops.add(top)
            self._add(f"{name}.py", source)
            return
        self._tops.add(top)
        for folder in _folders_of(top, source, name):
            self._add_folder(top, folder)

    def need_loaded(self) -> None:
        """Every local module that the program has imported by now."""
        for name, module in list(sys.modules.items()):
            top = name.partition(".")[0]
            if top in OWN_PACKAGES or top in sys.stdlib_module_names or top == "__main__" or top in self._tops:
                continue
            if name != "__mp_main__" and module is not sys.modules.get("__main__"):
                self.need(name)

    def follow_imports(self) -> None:
        """Modules and folders beside the program that its source names in an import, to a fixed point."""
        read: set[str] = set()
        while fresh := [place for place in self.files if place.endswith(".py") and place not in read]:
            read.update(fresh)
            for place in fresh:
                for found in _IMPORT.findall(self.files[place].read_bytes()):
                    self._add_top(found.decode())

    def add_siblings(self) -> None:
        """What else lies beside the program, as far as it is small: it may be imported by name at run time."""
        try:
            beside = sorted(entry.name for entry in os.scandir(self.root))
        except OSError:
            return
        tops = [name.removesuffix(".py") for name in beside if _is_module_file(name) or self._is_package(name)]
        if len(tops) > MAX_SIBLINGS:
            return
        files, sizes, known = dict(self.files), dict(self._sizes), set(self._tops)
        for top in tops:
            self._add_top(top)
        if len(self.files) > MAX_FILES or sum(self._sizes.values()) > MAX_ARCHIVE_BYTES:
            self.files, self._sizes, self._tops = files, sizes, known

    def checked(self) -> dict[str, Path]:
        total = sum(self._sizes.values())
        if len(self.files) <= MAX_FILES and total <= MAX_ARCHIVE_BYTES:
            return self.files
        tops: dict[str, list[int]] = {}
        for place, size in self._sizes.items():
            tops.setdefault(place.partition("/")[0], []).append(size)
        largest = sorted(
            tops.items(), key=lambda item: -max(len(item[1]) / MAX_FILES, sum(item[1]) / MAX_ARCHIVE_BYTES)
        )[:3]
        listed = ", ".join(f"{top} ({len(sizes)} files, {sum(sizes):,} bytes)" for top, sizes in largest)
        raise InvalidError(
            f"the program's source has {len(self.files):,} files and {total:,} bytes, over the limit of {MAX_FILES:,} "
            f"files and {MAX_ARCHIVE_BYTES:,} bytes; the largest parts: {listed}. Install large packages into the "
            f"environment instead of importing them from beside the program, and keep data out of them"
        )

    def _add_top(self, top: str) -> None:
        """The module, package or folder called `top` beside the program, if there is one."""
        if top in self._tops or top in OWN_PACKAGES or top in sys.stdlib_module_names:
            return
        file, folder = self.root / f"{top}.py", self.root / top
        if file.is_file():
            if file in self.files.values():  # the program itself, under another name
                return
            self._tops.add(top)
            self._add(f"{top}.py", file)
        elif folder.is_dir() and not _is_skipped(top) and not self._is_library(folder):
            self._tops.add(top)
            self._add_folder(top, folder)

    def _add_folder(self, top: str, folder: Path) -> None:
        for path in _walk(folder):
            self._add(f"{top}/{path.relative_to(folder).as_posix()}", path)
            if len(self.files) > 2 * MAX_FILES:
                return

    def _add(self, place: str, path: Path) -> None:
        if place not in self.files:
            self.files[place] = path
            self._sizes[place] = path.stat().st_size

    def _is_package(self, name: str) -> bool:
        return name.isidentifier() and not _is_skipped(name) and (self.root / name / "__init__.py").is_file()

    def _is_library(self, path: Path) -> bool:
        return _is_in(path, self._libraries)


def _is_in(path: Path, libraries: list[Path]) -> bool:
    return "site-packages" in path.parts or any(path.is_relative_to(folder) for folder in libraries)


def _source_of(module: ModuleType) -> Path | None:
    """The module's file, if it was imported from Python source on disk."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py") or not os.path.isfile(file):
        return None
    return Path(os.path.abspath(file))


def _root_of(module: ModuleType, name: str) -> Path:
    """The folder that has to be on `sys.path` for `import name` to find the module."""
    source = _source_of(module)
    assert source is not None
    depth = name.count(".") + (1 if source.name == "__init__.py" else 0)
    return source.parents[depth]


def _folders_of(top: str, source: Path, name: str) -> list[Path]:
    """The folders of the top-level package; a namespace package may have several."""
    package = sys.modules.get(top)
    if package is not None and hasattr(package, "__path__"):
        return [Path(os.path.abspath(one)) for one in package.__path__]
    return [source.parents[name.count(".") - 1]]


def _walk(folder: Path) -> Iterator[Path]:
    """Source files below `folder`, and small files of other kinds, without hidden or generated folders."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if not _is_skipped(one) and not _is_environment(parent, one))
        for file in sorted(files):
            path = Path(parent, file)
            if file.startswith(".") or file.endswith((".pyc", ".pyo")) or not path.is_file():
                continue
            if file.endswith(".py") or path.stat().st_size <= MAX_DATA_FILE_BYTES:
                yield path


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name in SKIPPED_FOLDERS or name.endswith(".egg-info")


def _is_environment(parent: str, name: str) -> bool:
    return os.path.exists(os.path.join(parent, name, "pyvenv.cfg"))


def _is_module_file(name: str) -> bool:
    return name.endswith(".py") and name.removesuffix(".py").isidentifier()


def _library_folders() -> list[Path]:
    """Where installed modules and Python itself lie: what is there is there in a container, too."""
    folders = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += site.getsitepackages() if hasattr(site, "getsitepackages") else []
    folders += [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [Path(os.path.abspath(one)) for one in dict.fromkeys(folders)]


def _zip(files: dict[str, Path]) -> bytes:
    """The files as an archive whose bytes depend on nothing but them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for place in sorted(files):
            entry = zipfile.ZipInfo(place, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[place].read_bytes())
    return buffer.getvalue()
