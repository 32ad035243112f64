"""`Image`: the Python environment that a function's containers run in, as a recipe.

An image is a value: each method gives a new one with one more step. What becomes of the recipe, a virtual environment
on the machine that needs it, is `nomadfn_agent.environments`' matter. Files that a recipe names are read when the app
is run or deployed, never in a container, which imports the program as well.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, TypeVar

from nomadfn_agent import wire
from nomadfn_agent.context import is_container
from nomadfn_agent.wire.image import FILES

from nomadfn.core import environment
from nomadfn.exception import InvalidError, UnsupportedError

from .image_refusals import ON_CLASS, ON_IMAGE, refuse_settings

T = TypeVar("T")
_VERSION = re.compile(r"3\.\d{1,2}(\.\d{1,2})?")
OLDEST_MINOR = 11
_Step = Callable[[], wire.ImageStep]
"""Makes the step; reads the files that it needs."""


class _Meta(type):
    def __getattr__(cls, name: str) -> Any:
        if name in ON_CLASS:
            raise UnsupportedError(f"Image.{name} is not supported by nomadfn; {ON_CLASS[name]}")
        raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")


class Image(metaclass=_Meta):
    """The Python environment of functions: `Image.debian_slim().pip_install("numpy")`, given to `image=`.

    It is made once a machine, by the first container that needs it, and then used by all whose recipe is the same. An
    image without packages costs nothing.
    """

    _python: str
    _registry: str
    _steps: tuple[_Step, ...]
    _env: dict[str, str]
    _workdir: str
    _modules: tuple[str, ...]
    _once: str
    import_errors: list[Exception]
    """What imports inside `with image.imports():` have raised; only containers of this very image mind."""

    def __init__(self) -> None:
        raise InvalidError("an Image is made by Image.debian_slim() or Image.from_registry(tag)")

    @classmethod
    def _make(cls, **parts: Any) -> Image:
        self = cls.__new__(cls)
        given = {"_python": "", "_registry": "", "_steps": (), "_env": {}, "_workdir": "", "_modules": (), "_once": ""}
        self.__dict__.update(given | parts, import_errors=[])
        return self

    def _with(self, **parts: Any) -> Image:
        if not isinstance(self, Image):
            raise InvalidError("an image is made first: write Image.debian_slim().pip_install(...)")
        return Image._make(**{name: value for name, value in self.__dict__.items() if name != "import_errors"} | parts)

    def _with_step(self, step: _Step, force_build: bool) -> Image:
        made = Image._with(self)
        return made._with(_steps=(*made._steps, step), _once=secrets.token_hex(8) if force_build else made._once)

    def __repr__(self) -> str:
        base = f"from_registry({self._registry!r})" if self._registry else f"debian_slim({self._python!r})"
        return f"Image.{base}, {len(self._steps)} steps"

    def __reduce__(self) -> tuple[Callable[[], Image], tuple[()]]:
        return Image.debian_slim, ()  # A function that is sent by value takes no recipe along.

    def __getattr__(self, name: str) -> Any:
        if name in ON_IMAGE:
            raise UnsupportedError(f"Image.{name} is not supported by nomadfn; {ON_IMAGE[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # What an image begins with.

    @staticmethod
    def debian_slim(python_version: str | None = None, force_build: bool = False) -> Image:
        """Python and nothing else: the program's own minor version, which `python_version` must agree with."""
        if python_version is not None:
            _check_version(python_version)
        return Image._make(_python=python_version or "", _once=secrets.token_hex(8) if force_build else "")

    @staticmethod
    def from_registry(
        tag: str,
        secret: Any = None,
        *,
        setup_dockerfile_commands: Sequence[str] = (),
        force_build: bool = False,
        add_python: str | None = None,
        **settings: Any,
    ) -> Image:
        """A container image, which has a Python of the program's minor version. On a cluster with docker or podman."""
        if not isinstance(tag, str) or not tag.strip() or "\0" in tag:
            raise InvalidError(
                f"Image.from_registry({tag!r}): it needs the name of an image, such as 'python:3.12-slim'"
            )
        given = {"secret": secret, "setup_dockerfile_commands": setup_dockerfile_commands, "add_python": add_python}
        refuse_settings("from_registry", given | settings)
        return Image._make(_registry=tag)

    # What is installed into it.

    def pip_install(
        self,
        *packages: str | list[str],
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Any] | None = None,
        gpu: Any = None,
    ) -> Image:
        """Install packages, as `pip install` takes them. Of several indexes the best version is chosen.

        `env` holds environment variables for this step. Raises InvalidError.
        """
        refuse_settings("pip_install", {"secrets": secrets})
        names = _requirements("pip_install", packages)
        options = _options("pip_install", find_links, index_url, extra_index_url, pre, extra_options)
        return Image._install(self, "pip_install", "pip", names, options, (), env, force_build)

    def uv_pip_install(
        self,
        *packages: str | list[str],
        requirements: list[str] | None = None,
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        uv_version: str | None = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Any] | None = None,
        gpu: Any = None,
    ) -> Image:
        """Install packages, and those of requirements files, as `uv pip install` takes them.

        Of several indexes the first one that has a package gives it. Raises InvalidError.
        """
        refuse_settings("uv_pip_install", {"secrets": secrets, "uv_version": uv_version})
        if requirements is not None and not isinstance(requirements, list):
            raise InvalidError("Image.uv_pip_install: requirements= must be a list of files")
        names = _requirements("uv_pip_install", packages)
        options = _options("uv_pip_install", find_links, index_url, extra_index_url, pre, extra_options)
        return Image._install(self, "uv_pip_install", "uv", names, options, requirements or (), env, force_build)

    def pip_install_from_requirements(
        self,
        requirements_txt: str | os.PathLike[str],
        find_links: str | None = None,
        *,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Any] | None = None,
        gpu: Any = None,
    ) -> Image:
        """Install what a requirements file lists. Its content is part of the recipe. Raises InvalidError."""
        verb = "pip_install_from_requirements"
        refuse_settings(verb, {"secrets": secrets})
        options = _options(verb, find_links, index_url, extra_index_url, pre, extra_options)
        return Image._install(self, verb, "pip", [], options, (requirements_txt,), env, force_build)

    def pip_install_from_pyproject(
        self,
        pyproject_toml: str | os.PathLike[str],
        optional_dependencies: Sequence[str] = (),
        *,
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Any] | None = None,
        gpu: Any = None,
    ) -> Image:
        """Install the dependencies of a `pyproject.toml`, and of these of its optional groups. Raises InvalidError."""
        verb = "pip_install_from_pyproject"
        refuse_settings(verb, {"secrets": secrets})
        options = _options(verb, find_links, index_url, extra_index_url, pre, extra_options)
        path = _file(verb, pyproject_toml)
        variables = Image._variables(self, verb, env)

        def step() -> wire.ImageStep:
            names = _dependencies(verb, path, optional_dependencies)
            return wire.ImageStep(tool="pip", arguments=[*sorted(names), *options], env=variables)

        return Image._with_step(self, step, force_build)

    def uv_sync(
        self,
        uv_project_dir: str | os.PathLike[str] = "./",
        *,
        force_build: bool = False,
        groups: list[str] | None = None,
        extras: list[str] | None = None,
        frozen: bool = True,
        extra_options: str = "",
        uv_version: str | None = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Any] | None = None,
        gpu: Any = None,
    ) -> Image:
        """Install the dependencies of a uv project, from its `uv.lock` where it has one; not the project itself.

        Raises InvalidError.
        """
        refuse_settings("uv_sync", {"secrets": secrets, "uv_version": uv_version})
        folder = Path(uv_project_dir).expanduser()
        project, lock = _file("uv_sync", folder / "pyproject.toml"), folder.absolute() / "uv.lock"
        named = [f"--group={one}" for one in groups or ()] + [f"--extra={one}" for one in extras or ()]
        variables = Image._variables(self, "uv_sync", env)

        def step() -> wire.ImageStep:
            files = {"pyproject.toml": _read("uv_sync", project)}
            if lock.exists():
                files["uv.lock"] = _read("uv_sync", lock)
            only = ["--frozen"] if frozen and lock.exists() else []
            arguments = [*named, *only, *_split("uv_sync", extra_options)]
            return wire.ImageStep(tool="sync", arguments=arguments, files=files, env=variables)

        return Image._with_step(self, step, force_build)

    def _install(
        self,
        verb: str,
        tool: str,
        names: list[str],
        options: list[str],
        files: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str | None] | None,
        force_build: bool,
    ) -> Image:
        paths = [_file(verb, one) for one in files]
        if not names and not paths:
            return Image._with(self)
        variables = Image._variables(self, verb, env)

        def step() -> wire.ImageStep:
            contents = {f"{place}-{path.name}": _read(verb, path) for place, path in enumerate(paths)}
            listed = [part for name in contents for part in ("-r", f"{FILES}/{name}")]
            return wire.ImageStep(
                tool=tool, arguments=[*listed, *sorted(names), *options], files=contents, env=variables
            )

        return Image._with_step(self, step, force_build)

    def _variables(self, verb: str, env: Mapping[str, str | None] | None) -> dict[str, str]:
        """Of one step: those that the image has by then, and its own."""
        own = {name: value for name, value in (env or {}).items() if value is not None}
        return Image._with(self)._env | environment.check(own, f"Image.{verb}: env=")

    # What containers find in it.

    def env(self, vars: Mapping[str, str]) -> Image:
        """Environment variables, for the steps that follow and for the containers; secrets and `env=` come later."""
        if not isinstance(vars, Mapping):
            raise InvalidError("Image.env needs a dictionary of strings, such as {'A': '1'}")
        made = Image._with(self)
        return made._with(_env=made._env | environment.check(vars, "Image.env"))

    def workdir(self, path: str | PurePath) -> Image:
        """The folder that containers work in, made where it is not there yet. Relative to an earlier `workdir`."""
        if not isinstance(path, (str, PurePath)) or not str(path) or "\0" in str(path):
            raise InvalidError(f"Image.workdir({path!r}): it needs the path of a folder")
        made = Image._with(self)
        return made._with(_workdir=os.path.join(made._workdir, str(path)))

    def add_local_python_source(self, *modules: str, copy: bool = False, ignore: Any = None) -> Image:
        """Have these modules of this machine travel with the program's source, wherever they are installed."""
        if not all(isinstance(one, str) and one for one in modules):
            raise InvalidError("Image.add_local_python_source takes names of modules, such as 'helpers'")
        refuse_settings("add_local_python_source", {"ignore": ignore})
        made = Image._with(self)
        return made._with(_modules=(*made._modules, *modules))

    def pipe(self, func: Callable[..., Image], *args: Any, **kwargs: Any) -> Image:
        """What `func(image, *args, **kwargs)` makes of it."""
        made = func(self, *args, **kwargs)
        if not isinstance(made, Image):
            raise InvalidError(f"Image.pipe: the function gave a {type(made).__name__}; it has to return an image")
        return made

    @contextmanager
    def imports(self) -> Iterator[None]:
        """Imports inside this may fail, but in containers of this very image."""
        try:
            yield
        except Exception as error:
            self.import_errors.append(error)
            if not isinstance(error, ImportError):
                warnings.warn(f"an import inside image.imports() raised {error!r}", stacklevel=3)

    # What becomes of it.

    def _variables_spec(self) -> list[wire.SecretSpec]:
        """Its environment variables, as what comes before all secrets of a function."""
        return [wire.SecretSpec(values=self._env, of_image=True)] if self._env else []

    def _spec(self, owner: str) -> wire.ImageSpec:
        """As the control service takes it; files are read now. Raises InvalidError that begins with `owner`."""
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        minor = ".".join(self._python.split(".")[:2])
        if minor not in ("", here):
            raise InvalidError(
                f"{owner}: its image has Python {self._python} and this program runs on Python {here}, and values "
                f"travel between the two: run the program with Python {minor}, or leave python_version out"
            )
        return wire.ImageSpec(
            python=self._python or here,
            registry=self._registry,
            steps=[step() for step in self._steps],
            workdir=self._workdir,
            interpreter=getattr(sys, "_base_executable", "") or sys.executable,
            once=self._once,
        )


def check(value: Any, owner: str) -> Image | None:
    """What `image=` was given. Raises InvalidError that begins with `owner`."""
    if value is not None and not isinstance(value, Image):
        raise InvalidError(f"{owner}: image= takes an Image, such as Image.debian_slim(), not {value!r}")
    return value


def _check_version(version: object) -> None:
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise InvalidError(f"Image.debian_slim(python_version={version!r}): write a version as text, such as '3.12'")
    if int(version.split(".")[1]) < OLDEST_MINOR:
        raise InvalidError(f"Image.debian_slim(python_version={version!r}): nomadfn runs on 3.{OLDEST_MINOR} and newer")


def _requirements(verb: str, given: Sequence[str | list[str]]) -> list[str]:
    names: list[Any] = []
    for one in given:
        names += one if isinstance(one, (list, tuple)) else [one]
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InvalidError(f"Image.{verb}: {name!r} is no package; give names as text, or lists of them")
        if name.lstrip().startswith("-"):
            raise InvalidError(f"Image.{verb}: {name!r} is an option; give it in extra_options=")
    return names


def _options(
    verb: str, find_links: Any, index_url: Any, extra_index_url: Any, pre: bool, extra_options: str
) -> list[str]:
    options: list[str] = []
    for name, value in (
        ("--find-links", find_links),
        ("--index-url", index_url),
        ("--extra-index-url", extra_index_url),
    ):
        if value is None:
            continue
        if not isinstance(value, str) or not value:
            raise InvalidError(f"Image.{verb}: {name[2:].replace('-', '_')}={value!r} must be an address as text")
        is_folder = "://" not in value and os.path.isdir(os.path.expanduser(value))
        options += [name, os.path.abspath(os.path.expanduser(value)) if is_folder else value]
    return [*options, *(["--pre"] if pre else []), *_split(verb, extra_options)]


def _split(verb: str, options: str) -> list[str]:
    try:
        return shlex.split(options)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidError(f"Image.{verb}: extra_options={options!r} is no command line: {error}") from None


def _file(verb: str, path: Any) -> Path:
    """The file, absolute; a container has none of it and asks for none."""
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidError(f"Image.{verb}: {path!r} is no path of a file")
    found = Path(path).expanduser().absolute()
    if not is_container() and not found.is_file():
        raise InvalidError(f"Image.{verb}: there is no file {found}")
    return found


def _read(verb: str, path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"Image.{verb}: {path} cannot be read: {error}") from None


def _dependencies(verb: str, path: Path, groups: Sequence[str]) -> list[str]:
    import tomllib

    try:
        project = tomllib.loads(_read(verb, path)).get("project", {})
    except tomllib.TOMLDecodeError as error:
        raise InvalidError(f"Image.{verb}: {path} is no TOML: {error}") from None
    if "dependencies" not in project:
        raise InvalidError(f"Image.{verb}: {path} has no [project] dependencies")
    names = list(project["dependencies"])
    known = project.get("optional-dependencies", {})
    for group in groups:
        if group not in known:
            there = ", ".join(sorted(known)) or "none"
            raise InvalidError(f"Image.{verb}: {path} has no optional dependencies {group!r}; there are {there}")
        names += known[group]
    return names
