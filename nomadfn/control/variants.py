"""Variants as clients ask for them, and where a restart finds them: spawns may wait for one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from nomadfn_agent import wire

from nomadfn.control.overrides import check_settings
from nomadfn.control.tokens import Identity
from nomadfn.core import variants
from nomadfn.core.model import App, Function
from nomadfn.exception import Error, InvalidError, NotFoundError

if TYPE_CHECKING:
    from nomadfn.control.operations import Operations
    from nomadfn.control.service import Service

PREFIX = "variants/"


class Variants:
    """A part of `Operations`, with the same form of a method."""

    def __init__(self, service: Service, operations: Operations) -> None:
        self._service = service
        self._state = service.core.state
        self._writing = asyncio.Lock()
        """Held while the registry is changed, so that what is said last stands there."""
        self._unsaved: dict[str, asyncio.Task[None]] = {}
        """By the id of a variant that the registry may not have yet."""
        operations.add("function.variant", self._variant)

    async def _variant(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        """The variant of a function with these `arguments` and changes (a `Variation`), made if it is not there."""
        function = self._service.core.function(str(body["function_id"]))
        identity.require_app(function.app)
        changes = msgspec.convert(body.get("variation") or {"base": ""}, wire.Variation)
        found = await self.resolve(function, dict(body.get("arguments") or {}), changes)
        return {"function_id": found.id}

    async def resolve(
        self, base: Function, arguments: Mapping[str, Any], changes: wire.Variation = wire.Variation(base="")
    ) -> Function:
        """The function itself where nothing differs. A new variant is in the registry when this returns.

        Raises InvalidError, ResourceExhaustedError, or what a secret is refused with.
        """
        if base.variation is not None:
            raise InvalidError(f"{base.spec.name} is a variant itself; ask for one of {base.variation.base}")
        variation = _checked(base.spec, arguments, changes)
        if not (variation.arguments or variation.fields or variation.autoscaler):
            return base
        app = self._state.apps.get(base.app)
        if app is None:
            raise NotFoundError(f"{base.spec.name} is not running here any more; deploy it again")
        if variants.name_of(variation) not in app.functions and "secrets" in variation.fields:
            await self._service.secrets.check(wire.AppSpec(name=app.name, functions=[variation.values]))
        function, known = self._service.core.put_variant(self._service.now(), app.id, variation)
        self._service.poke()
        if not known and not self._service.address.private:
            self._unsaved[function.id] = self._service.loop.create_task(self._save(app, function))
        if (saving := self._unsaved.get(function.id)) is not None:
            await asyncio.shield(saving)
        return function

    async def _save(self, app: App, function: Function) -> None:
        assert function.variation is not None
        values = self._service.seal.close(wire.AppSpec(name=app.name, functions=[function.variation.values]))
        sealed = msgspec.structs.replace(function.variation, values=values.functions[0])
        try:
            async with self._writing:
                entry = msgspec.to_builtins(sealed)
                await asyncio.to_thread(self._service.registry.put, _key(app.id, function.spec.name), entry)
        finally:
            del self._unsaved[function.id]

    def restore(self) -> None:
        """After a restart, when the apps are there again."""
        now = self._service.now()
        for key, entry in self._service.registry.list(PREFIX, self._service.log).items():
            app_id = key.removeprefix(PREFIX).partition("/")[0]
            if app_id not in self._state.apps:
                continue
            try:
                variation = msgspec.convert(entry, wire.Variation)
                values = self._service.seal.open(wire.AppSpec(name="", functions=[variation.values])).functions[0]
                if values.sealed:
                    raise InvalidError("its values were sealed under another NOMADFN_TOKEN")
                self._service.core.put_variant(now, app_id, msgspec.structs.replace(variation, values=values))
            except (Error, msgspec.ValidationError) as error:
                self._service.log(f"{key} in the registry is not brought back: {error}")

    async def forget(self, app_id: str, name: str) -> None:
        """The app has it no more, unless it has it again by now."""
        async with self._writing:
            app = self._state.apps.get(app_id)
            if app is None or name not in app.functions:
                await asyncio.to_thread(self._service.registry.delete, _key(app_id, name))

    def forget_app(self, app_id: str) -> None:
        """Blocks."""
        for key in self._service.registry.list(f"{PREFIX}{app_id}/", self._service.log):
            self._service.registry.delete(key)


def _key(app_id: str, name: str) -> str:
    return f"{PREFIX}{app_id}/{name}"


def _checked(spec: wire.FunctionSpec, arguments: Mapping[str, Any], changes: wire.Variation) -> wire.Variation:
    """What differs from the function, in the one form that it has. Raises InvalidError."""
    if unknown := (set(changes.fields) - set(variants.SETTINGS)) | (set(changes.autoscaler) - set(variants.AUTOSCALER)):
        raise InvalidError(f"a variant cannot change {', '.join(sorted(unknown))}; this service may be an older one")
    check_settings(spec.name, {**msgspec.structs.asdict(spec.autoscaler), "min_containers": 0, **changes.autoscaler})
    defaults = {one.name: one.default for one in spec.parameters}
    texts = variants.arguments(spec, arguments)
    return wire.Variation(
        base=spec.name,
        arguments={name: text for name, text in texts.items() if text != defaults[name]},
        autoscaler=changes.autoscaler,
        fields=sorted(changes.fields),
        values=changes.values,
    )
