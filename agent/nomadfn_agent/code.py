"""From what `Bind` says to a function that can be called: unpack the source, import it, find the function."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from .alias import install_modal_alias
from .wire import Bind, FunctionSpec
from .wire.payload import Raised, describe_exception, safe_str
from .wire.store import BlobStore, Place

AGENT_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep
MACHINERY = (
    AGENT_FOLDER,
    os.path.join(os.path.dirname(os.__file__), "asyncio") + os.sep,
    os.path.dirname(importlib.__file__) + os.sep,
    "<frozen ",
)
"""Whose frames stand above the user's own in a traceback."""


class LoadError(Exception):
    """The function cannot be loaded, and no exception of user code says why; the text does."""


class Code:
    """The program's source in this container. `folder` is empty where there is no archive."""

    def __init__(self, bind: Bind) -> None:
        self.bind = bind
        self.folder = ""
        self._place = _place_of(bind)
        self.blobs = BlobStore(lambda: self._place, joins=True)

    def move(self, bind: Bind) -> None:
        """Another control service leads: its blobs are the same, and may be found elsewhere."""
        self._place = _place_of(bind)

    def load(self) -> Callable[..., Any]:
        """Import the program and return the bare function. Raises LoadError, or what user code raised."""
        bind = self.bind
        wanted, here = bind.code.python, f"{sys.version_info.major}.{sys.version_info.minor}"
        if wanted and wanted != here:
            raise LoadError(
                f"the program runs on Python {wanted} and its containers on Python {here}: run both on the same minor "
                f"version, or give the function image=Image.debian_slim(), which has the program's"
            )
        if bind.spec.image is not None and bind.spec.image.workdir:
            _work_in(bind.spec.image.workdir)
        if bind.code.as_modal:
            install_modal_alias()
        if bind.code.digest:
            cache = os.environ.get("NOMADFN_CODE_CACHE") or bind.code_cache or tempfile.mkdtemp(prefix="nomadfn-")
            self.folder = unpack(self.blobs, cache, bind.code.digest)
            sys.path.insert(0, self.folder)
            importlib.invalidate_caches()
        if bind.code.main_module:
            main = self._import(bind.code.main_module)
            sys.modules["__main__"] = main
            sys.argv = [main.__file__ or ""]
        if bind.spec.serialized_ref:
            return self._unpickle(bind.spec.serialized_ref)
        return find_function(self._import(bind.spec.module), bind.spec, bind.app_name)

    def describe(self, error: BaseException) -> Raised:
        """Pack what user code raised; only its own frames, under the paths that the user knows.

        Only an `Exception` travels as itself: a SystemExit must not end the program that asked.
        """
        if isinstance(error, LoadError):
            return Raised(b"", "ExecutionError", str(error), "")
        try:
            skip_frames(error)
            raised = describe_exception(error, (AGENT_FOLDER, "<frozen ", *_library_folders()))
        except Exception:
            return Raised(b"", type(error).__qualname__, safe_str(error), "")
        pickled = raised.pickled if isinstance(error, Exception) else b""
        return Raised(pickled, raised.type_name, raised.text, self._as_origin(raised.traceback))

    def _as_origin(self, text: str) -> str:
        origin = self.bind.code.origin
        return text.replace(self.folder, origin.rstrip("/") or origin) if self.folder and origin else text

    def _import(self, name: str) -> ModuleType:
        module = importlib.import_module(name)
        path = os.path.join(self.folder, *name.split("."))
        ours = [one for one in (path + ".py", os.path.join(path, "__init__.py")) if self.folder and os.path.exists(one)]
        if ours and getattr(module, "__file__", None) not in ours:
            raise LoadError(
                f"the program's module {name!r} has the name of another module "
                f"({getattr(module, '__file__', None) or 'built in'}): rename its file"
            )
        return module

    def _unpickle(self, digest: str) -> Callable[..., Any]:
        name = self.bind.spec.program_name
        try:
            data = self.blobs.read_code(digest)
        except (OSError, ValueError) as error:
            raise LoadError(f"the pickled function {name} could not be read: {error}") from error
        return raw_function(pickle.loads(data), name)


def _place_of(bind: Bind) -> Place:
    return Place(bind.blobs, bind.blobs_mark, bind.http_url, os.environ.get("NOMADFN_TOKEN", ""))


def _work_in(folder: str) -> None:
    """Make the image's working directory, as a container image has it, and go there. Raises LoadError."""
    try:
        os.makedirs(folder, exist_ok=True)
        os.chdir(folder)
    except OSError as error:
        raise LoadError(
            f"the image's working directory {folder} cannot be used: {error}; containers have the file system of their "
            f"machine, so name a folder there that they may write to"
        ) from None


def unpack(blobs: BlobStore, cache: str, digest: str) -> str:
    """The folder with the unpacked archive `digest`; whole or not there, also when runners race to make it."""
    target = os.path.join(cache, digest)
    if os.path.isdir(target):
        return target
    os.makedirs(cache, exist_ok=True)
    temporary = tempfile.mkdtemp(dir=cache, prefix=".tmp-")
    try:
        os.chmod(temporary, 0o755)
        with zipfile.ZipFile(io.BytesIO(blobs.read_code(digest))) as archive:
            archive.extractall(temporary)
        os.rename(temporary, target)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not os.path.isdir(target):
            raise LoadError(f"the program's source could not be unpacked: {error}") from error
    return target


def find_function(module: ModuleType, spec: FunctionSpec, app_name: str) -> Callable[..., Any]:
    """The bare function behind `spec`, also where the module has bound its name to something else since.

    Raises LoadError.
    """
    for value in list(vars(module).values()):
        if type(value).__module__.startswith("nomadfn.") and getattr(value, "name", None) == app_name:
            for kind in ("registered_functions", "registered_classes"):
                registered = getattr(value, kind, None)
                if isinstance(registered, dict) and spec.program_name in registered:
                    raise_deferred(registered[spec.program_name])
                    return raw_function(registered[spec.program_name], spec.program_name)
    found: Any = module
    for part in spec.qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise LoadError(
                f"the module {module.__name__!r} has no {spec.qualname!r} when it is imported in a container: "
                f"define {spec.program_name} at the module's top level, whatever the environment"
            ) from None
    return raw_function(found, spec.program_name)


def raise_deferred(function: Any) -> None:
    """Raise what an import of `with image.imports():` raised, if that is the image of this function, or class."""
    image = getattr(getattr(function, "_function", function), "image", None)
    for error in getattr(image, "import_errors", ()):
        raise error


def raw_function(found: Any, name: str) -> Callable[..., Any]:
    """What the user wrote, without the decorator around it. Raises LoadError."""
    raw = getattr(found, "raw_f", found)
    if not callable(raw):
        raise LoadError(f"{name} is no function in the container but a value of type {type(raw).__name__}")
    function: Callable[..., Any] = raw
    return function


def skip_frames(error: BaseException) -> None:
    """Drop the frames above the first one of the user from the error's traceback."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(MACHINERY):
        frames = frames.tb_next
    error.__traceback__ = frames


def _library_folders() -> Sequence[str]:
    library = sys.modules.get("nomadfn")
    path = getattr(library, "__file__", None)
    return (os.path.dirname(path) + os.sep,) if path else ()
