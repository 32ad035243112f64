"""`Secret`: environment variables for a function that its program need not spell out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nomadfn_agent import wire
from nomadfn_agent.context import is_container

from nomadfn.core import environment
from nomadfn.exception import InvalidError, UnsupportedError

MODAL_ONLY = {
    "objects": "use `nomadfn secret create`, `list` and `delete`",
    "hydrate": "a secret is looked up when its app is deployed or run; leave it out",
    "info": "use `nomadfn secret list`",
    "update": "use `nomadfn secret create --force`",
    "create_deployed": "use `nomadfn secret create`",
}


class _Meta(type):
    def __getattr__(cls, name: str) -> Any:
        _refuse(name)
        raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")


class Secret(metaclass=_Meta):
    """Environment variables for functions: `@app.function(secrets=[Secret.from_name("database")])`.

    A function's secrets apply in their order and `env=` after them: what comes later wins. Inside a container,
    which imports the program, too, a secret that reads this machine's files or environment is empty.
    """

    _shown: str
    _load: Callable[[], wire.SecretSpec]

    def __init__(self) -> None:
        raise InvalidError("a Secret is made by Secret.from_name, from_dict, from_dotenv or from_local_environ")

    @classmethod
    def _make(cls, shown: str, load: Callable[[], wire.SecretSpec]) -> Secret:
        self = cls.__new__(cls)
        self._shown = shown
        self._load = load
        return self

    @classmethod
    def from_dict(cls, env_dict: Mapping[str, str | None] = {}) -> Secret:
        """Values that the program has already. What is None is left out."""
        if not isinstance(env_dict, Mapping):
            raise InvalidError(f"Secret.from_dict needs a dictionary of strings, not {type(env_dict).__name__}")
        given = {name: value for name, value in env_dict.items() if value is not None}
        spec = wire.SecretSpec(values=environment.check(given, "Secret.from_dict"))
        return cls._make(f"from_dict([{', '.join(spec.values)}])", lambda: spec)

    @classmethod
    def from_name(cls, name: str, *, required_keys: Iterable[str] = (), **settings: Any) -> Secret:
        """One that is kept where the function runs, read whenever a container starts.

        On a cluster also `"nomad:a/path"` for any Nomad variable, and `"consul:a/key"` for a JSON object in Consul.
        When the app is deployed or run, NotFoundError is raised for one that is not there or lacks a required key.
        """
        _refuse_settings("from_name", settings)
        if not isinstance(name, str) or not name.startswith(environment.KINDS):
            environment.check_name(name)
        keys = [required_keys] if isinstance(required_keys, str) else list(required_keys)
        spec = wire.SecretSpec(name=name, required_keys=keys)
        return cls._make(f"from_name({name!r})", lambda: spec)

    @classmethod
    def from_dotenv(
        cls, path: str | os.PathLike[str] | None = None, *, filename: str = ".env", **settings: Any
    ) -> Secret:
        """The variables of the next file called `filename`, in the working directory or above it.

        With `path`, a file or a folder such as `__file__`, it is looked for from there. It is read when the app is
        deployed or run; that there is none raises InvalidError then.
        """
        _refuse_settings("from_dotenv", settings)
        return cls._make(f"from_dotenv({filename!r})", lambda: _read_dotenv(path, filename))

    @classmethod
    def from_local_environ(cls, env_keys: Iterable[str]) -> Secret:
        """These variables of this program's own environment. Raises InvalidError for one that is not set."""
        if is_container():
            return cls.from_dict()
        keys = list(env_keys)
        for key in keys:
            if key not in os.environ:
                raise InvalidError(f"Secret.from_local_environ: {key} is not set in this program's environment")
        return cls.from_dict({key: os.environ[key] for key in keys})

    def _spec(self) -> wire.SecretSpec:
        """As the control service takes it; files are read now."""
        return self._load()

    def __repr__(self) -> str:
        return f"Secret.{self._shown}"

    def __reduce__(self) -> tuple[Callable[[], Secret], tuple[()]]:
        return Secret.from_dict, ()  # A function that is sent by value takes no secret along.

    def __getattr__(self, name: str) -> Any:
        _refuse(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def read_dotenv_file(path: Path) -> dict[str, str]:
    """The variables of a file in the `.env` format; a name without a value is left out."""
    from dotenv import dotenv_values

    found = {name: value for name, value in dotenv_values(path).items() if value is not None}
    return environment.check(found, str(path))


def _read_dotenv(path: str | os.PathLike[str] | None, filename: str) -> wire.SecretSpec:
    start = Path.cwd() if path is None else Path(path).resolve()
    if not start.exists():
        raise InvalidError(f"Secret.from_dotenv: there is no file or folder {start}")
    folder = start if start.is_dir() else start.parent
    for one in (folder, *folder.parents):
        if (one / filename).is_file():
            return wire.SecretSpec(values=read_dotenv_file(one / filename))
    raise InvalidError(
        f"Secret.from_dotenv: there is no file {filename} in {folder} or above it; make one, or give path="
    )


def _refuse_settings(of: str, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if value is not None:
            raise UnsupportedError(f"Secret.{of}({key}=...) is not supported by nomadfn; leave it out")


def _refuse(name: str) -> None:
    if name in MODAL_ONLY:
        raise UnsupportedError(f"Secret.{name} is not supported by nomadfn; {MODAL_ONLY[name]}")
