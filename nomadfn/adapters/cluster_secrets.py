"""Secrets of a cluster, where its people keep them already: Nomad variables, and keys of Consul.

    my-secret         the Nomad variable nomadfn/secrets/my-secret
    nomad:team/db     another Nomad variable of the same namespace
    consul:team/db    a key of Consul that holds one JSON object of strings

They are read with the control service's own tokens, whenever a container starts.
"""

from __future__ import annotations

import json
import re

from nomadfn.adapters.consul_store import ConsulDeniedError, ConsulStore
from nomadfn.adapters.nomad_api import NomadApi
from nomadfn.core import environment
from nomadfn.exception import InvalidError, NotFoundError, PermissionDeniedError

FOLDER = "nomadfn/secrets/"
PATH = re.compile(r"(?=.{1,128}$)[a-zA-Z0-9_~-]+(/[a-zA-Z0-9_~-]+)*")
"""What Nomad takes for a variable's path, and no empty part, by which it could be another one's."""
KEY = re.compile(r"(?!(.*/)?\.{1,2}(/|$))[a-zA-Z0-9_.~-]+(/[a-zA-Z0-9_.~-]+)*")
"""Keys of Consul that stand in a URL as they are, without a part that leads elsewhere."""
RESERVED = "nomad/"
"""Below it are Nomad's own and those of jobs, the control services' tokens among them."""
OWN_KEYS = "nomadfn/"


class ClusterSecrets:
    """The `Secrets` port over one Nomad namespace and one Consul."""

    def __init__(self, nomad: NomadApi, consul: ConsulStore) -> None:
        self._nomad = nomad
        self._consul = consul

    def read(self, name: str) -> dict[str, str]:
        kind, _, place = name.partition(":")
        values = self._key(place) if kind == "consul" else self._variable(name)
        return environment.check(values, f"the secret {name}")

    def write(self, name: str, values: dict[str, str], *, replace: bool = False) -> None:
        path = FOLDER + environment.check_name(name)
        try:
            self._nomad.put_variable(path, values, new=not replace)
        except PermissionDeniedError as error:
            keys = " ".join(f"{key}=…" for key in values)
            raise PermissionDeniedError(
                f"the control service may not write the secret {name} ({error}). Write it yourself: "
                f"`nomad var put -namespace={self._nomad.address.namespace} {path} {keys}`; or let the token have "
                f"write on variables {FOLDER}*"
            ) from None

    def delete(self, name: str) -> None:
        path = FOLDER + environment.check_name(name)
        self._variable(name)
        try:
            self._nomad.delete_variable(path)
        except PermissionDeniedError as error:
            raise PermissionDeniedError(
                f"the control service may not delete the secret {name} ({error}). Delete it yourself: "
                f"`nomad var purge -namespace={self._nomad.address.namespace} {path}`; or let the token have destroy "
                f"on variables {FOLDER}*"
            ) from None

    def names(self) -> dict[str, float]:
        try:
            found = self._nomad.variables(FOLDER)
        except PermissionDeniedError as error:
            raise PermissionDeniedError(
                f"the control service may not list secrets ({error}); let its token have list on variables {FOLDER}*"
            ) from None
        return {one["Path"].removeprefix(FOLDER): one["ModifyTime"] / 1e9 for one in found}

    def _variable(self, name: str) -> dict[str, str]:
        elsewhere = name.startswith("nomad:")
        path = name.removeprefix("nomad:") if elsewhere else FOLDER + environment.check_name(name)
        if not PATH.fullmatch(path) or path.startswith(RESERVED):
            raise InvalidError(
                f"the secret {name!r} is no path of a Nomad variable for programs: up to 128 letters, digits and "
                f"-_~/, and not below {RESERVED}"
            )
        namespace = self._nomad.address.namespace
        try:
            return self._nomad.variable(path)
        except NotFoundError:
            make = f"`nomad var put -namespace={namespace} {path} KEY=…`"
            make = make if elsewhere else f"`nomadfn secret create {name} KEY=-`, or {make}"
            raise NotFoundError(
                f"there is no secret {name} (the Nomad variable {path} in the namespace {namespace}); make it with "
                f"{make}"
            ) from None
        except PermissionDeniedError as error:
            raise PermissionDeniedError(
                f"the control service may not read the secret {name}: let its token have read on variables {path} "
                f"({error})"
            ) from None

    def _key(self, key: str) -> dict[str, str]:
        if not KEY.fullmatch(key) or key.startswith(OWN_KEYS):
            raise InvalidError(
                f"the secret 'consul:{key}' is no key for programs: letters, digits and -_.~ between slashes, and not "
                f"below {OWN_KEYS}"
            )
        try:
            entry = self._consul.get(key)
        except ConsulDeniedError as error:
            raise PermissionDeniedError(
                f'the control service may not read the secret consul:{key}: {error} and key "{key}" {{ policy = '
                '"read" }'
            ) from None
        if entry is None:
            raise NotFoundError(
                f"there is no secret consul:{key}, a key of Consul; make it with `consul kv put {key} @FILE`, the file "
                'holding one JSON object: {"KEY": "value"}'
            )
        try:
            values = json.loads(entry.value)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise InvalidError(f'the secret consul:{key} is no JSON object; it must be one of strings: {{"KEY": …}}')
        return values
