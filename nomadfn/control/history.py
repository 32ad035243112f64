"""The last versions of each deployed app, so that one of them can be put in force again.

They stand in the registry beside the apps; the code of every one of them is kept.
"""

from __future__ import annotations

from typing import Any

import msgspec
from nomadfn_agent import wire

from nomadfn import ports
from nomadfn.control.sealing import Seal
from nomadfn.exception import NotFoundError

KEPT = 10
"""Versions of an app that are kept, the one in force among them."""


class History:
    """Calls block, but for `blobs`."""

    def __init__(self, registry: ports.Registry, seal: Seal) -> None:
        self._registry = registry
        self._seal = seal
        self._digests: dict[str, set[str]] = {}
        """Key → the blobs that the version needs."""

    @property
    def blobs(self) -> set[str]:
        """The names of all blobs that a kept version needs."""
        return set().union(*self._digests.values())

    def load(self) -> None:
        """After a restart, before anything else."""
        for key, entry in self._registry.list("versions/").items():
            self._digests[key] = _digests(msgspec.convert(entry["spec"], wire.AppSpec))

    def record(self, version: int, spec: wire.AppSpec, now: float, note: str = "") -> None:
        key = _key(spec.name, version)
        entry = {"version": version, "at": now, "note": note, "spec": msgspec.to_builtins(self._seal.close(spec))}
        self._digests[key] = _digests(spec)
        self._registry.put(key, entry)
        for old in sorted(self._registry.list(f"versions/{spec.name}/"))[:-KEPT]:
            self._registry.delete(old)
            self._digests.pop(old, None)

    def forget(self, app: str) -> None:
        for key in self._registry.list(f"versions/{app}/"):
            self._registry.delete(key)
            self._digests.pop(key, None)

    def list(self, app: str) -> list[dict[str, Any]]:
        """The newest first: version, when it was deployed (unix s), functions, digest of the code, note."""
        entries = reversed(self._registry.list(f"versions/{app}/").values())
        return [
            {
                "version": entry["version"],
                "at": entry["at"],
                "functions": [one["name"] for one in entry["spec"]["functions"]],
                "code": entry["spec"]["code"]["digest"],
                "note": entry["note"],
            }
            for entry in entries
        ]

    def spec(self, app: str, version: int) -> wire.AppSpec:
        """Raises `NotFoundError`, with the versions that there are."""
        entry = self._registry.get(_key(app, version))
        if entry is None:
            kept = ", ".join(str(one["version"]) for one in self.list(app)) or "none"
            raise NotFoundError(f"version {version} of {app} is not kept; there are {kept}")
        return self._seal.open(msgspec.convert(entry["spec"], wire.AppSpec))


def _key(app: str, version: int) -> str:
    return f"versions/{app}/{version:08}"


def _digests(spec: wire.AppSpec) -> set[str]:
    return {spec.code.digest, *(function.serialized_ref for function in spec.functions)} - {""}
