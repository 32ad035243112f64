"""The secrets of functions: looked up when an app is deployed, and read when a container starts.

So a wrong name is told to who deploys, a value that was changed reaches the containers that start from then on, and
no value stands anywhere but in the store that keeps it and in the containers.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from nomadfn_agent import wire

from nomadfn import ports
from nomadfn.control.sealing import OTHER_TOKEN
from nomadfn.control.tokens import Identity
from nomadfn.core import environment
from nomadfn.exception import ConflictError, InvalidError, ServiceError

if TYPE_CHECKING:
    from nomadfn.control.operations import Operations

PATIENCE_S = 15.0
"""How long a container waits for a store that does not answer; it waits itself for half a minute to be told."""
PAUSE_S = 0.5
READS_AT_ONCE = 8


class FunctionSecrets:
    """Over the store that keeps them."""

    def __init__(self, store: ports.Secrets) -> None:
        self._store = store
        self._reading = asyncio.Semaphore(READS_AT_ONCE)

    def add_to(self, operations: Operations) -> None:
        operations.add("secret.write", self._write)
        operations.add("secret.list", self._list)
        operations.add("secret.delete", self._delete)

    async def check(self, app: wire.AppSpec) -> None:
        """Whether all that its functions name is there now. Raises what `ports.Secrets.read` does."""
        for spec in app.functions:
            if spec.sealed:
                raise ConflictError(f"{app.name}, function {spec.name}: it {OTHER_TOKEN}")
        await asyncio.gather(*(self._read(one) for spec in app.functions for one in environment.named(spec)))

    async def environment(self, spec: wire.FunctionSpec) -> dict[str, str]:
        """What a container of the function gets. Raises what `ports.Secrets.read` does."""
        if spec.sealed:
            raise ConflictError(f"its app {OTHER_TOKEN}")
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                values = {one.name: await self._read(one) for one in environment.named(spec)}
            except ServiceError:
                if time.monotonic() + PAUSE_S > until:
                    raise
                await asyncio.sleep(PAUSE_S)
            else:
                return environment.merge(spec, values)

    async def _read(self, secret: wire.SecretSpec) -> dict[str, str]:
        async with self._reading:
            values = await asyncio.to_thread(self._store.read, secret.name)
        environment.has_keys(secret, values)
        return values

    async def _write(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        identity.require_owner()
        name = str(body["name"])
        values = environment.check(body["values"], f"the secret {name}")
        if not values:
            raise InvalidError(f"the secret {name} would hold nothing; give it at least one KEY")
        await asyncio.to_thread(self._store.write, name, values, replace=bool(body.get("replace")))
        return {}

    async def _list(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        identity.require_owner()
        return await asyncio.to_thread(self._store.names)

    async def _delete(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        identity.require_owner()
        await asyncio.to_thread(self._store.delete, str(body["name"]))
        return {}
