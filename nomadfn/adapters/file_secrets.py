"""Secrets of one machine: a file for each in a folder, which only their owner may read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nomadfn.core import environment
from nomadfn.exception import AlreadyExistsError, InvalidError, NotFoundError, ServiceError

SUFFIX = ".json"


class FileSecrets:
    """The `Secrets` port over the folder `folder`, which is made when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> dict[str, str]:
        path = self._path(name)
        try:
            values = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise self._missing(name) from None
        except (OSError, ValueError) as error:
            raise InvalidError(f"the secret {name} cannot be read from {path}: {_reason(error)}") from None
        if not isinstance(values, dict):
            raise InvalidError(f"the secret {name} cannot be read: {path} is no JSON object")
        return environment.check(values, f"the secret {name}")

    def write(self, name: str, values: dict[str, str], *, replace: bool = False) -> None:
        path = self._path(name)
        temporary = path.with_name(f".{name}.{os.getpid()}")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(values, file)
                    file.flush()
                    os.fsync(file.fileno())
                if replace:
                    temporary.replace(path)
                else:
                    os.link(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except FileExistsError:
            raise AlreadyExistsError(f"there is a secret {name} already, in {self._folder}") from None
        except OSError as error:
            raise ServiceError(f"the secret {name} cannot be written to {path}: {_reason(error)}") from None

    def delete(self, name: str) -> None:
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            raise self._missing(name) from None
        except OSError as error:
            raise ServiceError(f"the secret {name} cannot be deleted: {_reason(error)}") from None

    def names(self) -> dict[str, float]:
        found = {path.stem: path.stat().st_mtime for path in self._folder.glob(f"*{SUFFIX}")}
        return {name: found[name] for name in sorted(found) if environment.NAME.fullmatch(name)}

    def _path(self, name: str) -> Path:
        if name.startswith(environment.KINDS):
            raise InvalidError(
                f"the secret {name!r} is one of a cluster; on this machine give it a name, and make it with "
                "`nomadfn secret create NAME KEY=-`"
            )
        return self._folder / (environment.check_name(name) + SUFFIX)

    def _missing(self, name: str) -> NotFoundError:
        return NotFoundError(
            f"there is no secret {name} in {self._folder}; make it with `nomadfn secret create {name} KEY=-`"
        )


def _reason(error: Exception) -> str:
    """Why, and never what stands in the file."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is no JSON"
