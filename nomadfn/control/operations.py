"""What can be asked of a control service, by name: the same over the websocket and over HTTP.

A body is a dict of plain values, and so is what comes back. An operation raises an error of
`nomadfn.exception`; one that misses a key or has a wrong type raises KeyError, TypeError or ValueError.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from nomadfn_agent import wire

from nomadfn.control.call_operations import CallOperations
from nomadfn.control.containers import needs_for
from nomadfn.control.dict_operations import DictOperations
from nomadfn.control.history import History
from nomadfn.control.input_operations import InputOperations
from nomadfn.control.live_settings import LiveSettings
from nomadfn.control.overrides import PREFIX, Overrides, entry_of
from nomadfn.control.queue_operations import QueueOperations
from nomadfn.control.schedules import schedule_of
from nomadfn.control.tokens import Identity
from nomadfn.control.variants import Variants
from nomadfn.core import environment, scaling
from nomadfn.core.model import CONTAINER_STATES, App, Function
from nomadfn.exception import ConflictError, InvalidError, NotFoundError, ServiceError
from nomadfn.version import __version__

if TYPE_CHECKING:
    from nomadfn.control.service import Service

STOP_TIMEOUT_S = 30.0

Operation = Callable[[dict[str, Any], Identity, str], Awaitable[Any]]


class Operations:
    """One method an operation; `session` is the websocket's, or empty for a request over HTTP."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._core = service.core
        self._state = service.core.state
        self._history = History(service.registry, service.seal)
        self.overrides = Overrides(service)
        self.prepare: Callable[[str, wire.ImageSpec], None] = lambda function, environment: None
        """Has a function's environment made, where it is known before any container which machine needs it."""
        self._operations: dict[str, Operation] = {
            "status": self._status,
            "app.start": self._start_app,
            "app.stop": self._stop_app,
            "app.detach": self._detach_app,
            "app.deploy": self._deploy,
            "app.watch": self._watch,
            "app.history": self._list_versions,
            "app.rollback": self._roll_back,
            "app.list": self._list_apps,
            "app.info": self._show_app,
            "app.logs": self._app_logs,
            "function.lookup": self._lookup,
            "function.stats": self._stats,
            "function.list": self._list_functions,
            "function.web_url": self._web_url,
            "function.explain": self._explain,
        }
        self.variants = Variants(service, self)
        CallOperations(service, self)
        InputOperations(service, self)
        LiveSettings(service, self)
        DictOperations(service, self)
        QueueOperations(service, self)

    def add(self, name: str, operation: Operation) -> None:
        """An operation that only one of the worlds has."""
        self._operations[name] = operation

    @property
    def kept_blobs(self) -> set[str]:
        """Blobs that nothing runs with now and that a rollback would need."""
        return self._history.blobs

    async def perform(self, operation: str, body: dict[str, Any], identity: Identity, session: str) -> Any:
        found = self._operations.get(operation)
        if found is None:
            raise InvalidError(f"there is no operation {operation}; client and service may be of different versions")
        return await found(body, identity, session)

    # Apps

    async def _start_app(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        identity.require_owner()
        spec = msgspec.convert(body["spec"], wire.AppSpec)
        app_id = str(body["app_id"])
        if not session:
            raise InvalidError("an ephemeral app needs a session; deploy it instead")
        existing = self._state.apps.get(app_id)
        if existing is not None and (existing.deployed or existing.session not in ("", session)):
            raise ConflictError(f"app id {app_id} belongs to another session")
        if existing is None:
            await self._check(spec)
        await self._service.web.open_for(spec)
        functions = self._core.start_app(self._service.now(), app_id, spec, session)
        self._prepare(spec, functions)
        self._service.poke()
        if not self._service.address.private:
            await self._remember(self._state.apps[app_id], spec)
        return {"functions": functions, "web_urls": self._service.web.urls(self._state.apps[app_id])}

    async def _check(self, spec: wire.AppSpec) -> None:
        """Raises one of nomadfn's errors for what cannot run here, whatever comes."""
        for function in spec.functions:
            self._service.cluster.check(needs_for(spec.name, function))
        await self._service.secrets.check(spec)

    def _prepare(self, spec: wire.AppSpec, functions: dict[str, str]) -> None:
        """Have the environments of the app's functions made by the time that somebody calls them."""
        for function in spec.functions:
            if function.image is not None:
                self.prepare(functions[function.name], function.image)

    async def _deploy(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        identity.require_owner()
        return await self._put_in_force(msgspec.convert(body["spec"], wire.AppSpec))

    async def _put_in_force(self, spec: wire.AppSpec, note: str = "") -> Any:
        await self._check(spec)
        await self._service.web.open_for(spec)
        app_id = self._state.deployed.get(spec.name) or f"ap-{secrets.token_hex(11)}"
        former = self._state.apps.get(app_id)
        version = former.version + 1 if former is not None else 1
        functions, changed = self._core.deploy(self._service.now(), app_id, spec, version, time.time())
        self._prepare(spec, functions)
        self._service.poke()
        app = self._state.apps[app_id]
        await self._remember(app, spec)
        await self._blocking(self._history.record, version, spec, self._service.now(), note)
        for function in app.functions.values():
            await self.overrides.drop(app, function)
        done = {"app_id": app_id, "version": version, "functions": functions, "changed": changed, "note": note}
        return {**done, "web_urls": self._service.web.urls(app)}

    async def _list_versions(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        identity.require_owner()
        app = self.find_app(str(body["app"]))
        versions = await self._blocking(self._history.list, app.name)
        return {"app": app.name, "version": app.version, "versions": versions}

    async def _roll_back(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        """Deploy an earlier version anew; without `version`, the one before the one in force."""
        identity.require_owner()
        app = self.find_app(str(body["app"]))
        version = body.get("version")
        if version is None:
            versions = await self._blocking(self._history.list, app.name)
            version = next((one["version"] for one in versions if one["version"] < app.version), None)
            if version is None:
                raise NotFoundError(f"{app.name} has no earlier version to go back to")
        spec = await self._blocking(self._history.spec, app.name, int(version))
        return await self._put_in_force(spec, f"version {version} again")

    async def _remember(self, app: App, spec: wire.AppSpec) -> None:
        """Put the app where a restart finds it."""
        entry = {
            "id": app.id,
            "deployed": app.deployed,
            "session": app.session,
            "version": app.version,
            "at": app.deployed_at,
            "spec": msgspec.to_builtins(self._service.seal.close(spec)),
        }
        await self._blocking(self._service.registry.put, f"apps/{app.id}", entry)

    def restore(self) -> None:
        """After a restart: the apps of the registry, with their settings. Before the journal is replayed."""
        now = self._service.now()
        for entry in self._service.registry.list("apps/").values():
            spec = self._service.seal.open(msgspec.convert(entry["spec"], wire.AppSpec))
            was = entry["session"], entry["deployed"], entry["version"], entry.get("at", now)
            self._core.restore_app(now, entry["id"], spec, *was)
        self.variants.restore()
        self._history.load()
        self.overrides.restore()

    def forget_app(self, app_id: str) -> None:
        """A stopped app is not brought back. Blocks."""
        registry = self._service.registry
        entry = registry.get(f"apps/{app_id}") or {}
        registry.delete(f"apps/{app_id}")
        name = entry["spec"]["name"] if entry.get("deployed") else app_id
        for key in registry.list(f"{PREFIX}{name}/", self._service.log):
            registry.delete(key)
        self.variants.forget_app(app_id)
        if entry.get("deployed"):
            self._history.forget(name)

    async def forget_function(self, app_id: str, name: str) -> None:
        """What the registry has of a function that its app has no more."""
        await self.variants.forget(app_id, name)
        app = self._state.apps.get(app_id)
        if app is not None and name not in app.functions:
            await self.overrides.forget(app, name)

    async def _blocking(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(call, *args)

    async def _stop_app(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        identity.require_owner()
        app = self.find_app(str(body["app_id"]))
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._service.gone_waiters.setdefault(app.id, []).append(gone)
        cancelled = self._core.stop_app(self._service.now(), app.id)
        self._service.poke()
        try:
            await asyncio.wait_for(gone, STOP_TIMEOUT_S)
        except TimeoutError:
            raise ServiceError(f"{app.name} was told to stop, but some of its containers are still there") from None
        return {"cancelled": cancelled}

    async def _detach_app(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        identity.require_owner()
        if self._service.address.private:
            raise InvalidError("a private control service ends with its program; start one that stays: `nomadfn up`")
        app = self.find_app(str(body["app_id"]))
        self._core.detach_app(app.id)
        key = f"apps/{app.id}"
        entry = await self._blocking(self._service.registry.get, key)
        if entry is not None:
            await self._blocking(self._service.registry.put, key, {**entry, "session": ""})
        return {}

    async def _watch(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        identity.require_owner()
        app = self.find_app(str(body["app_id"]))
        self._service.watchers.add(
            app.id, session, logs=bool(body.get("logs", True)), figures=bool(body.get("stats", True))
        )
        return {}

    def find_app(self, name_or_id: str) -> App:
        """Raises `NotFoundError`, with the names that there are."""
        app = self._state.apps.get(self._state.deployed.get(name_or_id, name_or_id))
        if app is None:
            named = [one for one in self._state.apps.values() if one.name == name_or_id]
            if len(named) == 1:
                return named[0]
            if named:
                raise NotFoundError(f"{len(named)} runs of {name_or_id} are there; give an id of `nomadfn app list`")
            known = ", ".join(sorted(self._state.deployed)) or "none"
            raise NotFoundError(f"no app {name_or_id} is there; deployed apps: {known}")
        return app

    def find_function(self, app_name: str, name: str, identity: Identity) -> Function:
        if identity.container:
            own = self._state.apps.get(identity.app)
            app = own if own is not None and own.name == app_name else self.find_app(app_name)
        else:
            app = self.find_app(app_name)
        identity.require_app(app.id)
        owner, _, method = name.rpartition(".")
        function = app.functions.get(name) or app.functions.get(owner)
        if function is None or (function.spec.name != name and function.spec.method(method) is None):
            there = [one.spec for one in app.functions.values() if one.variation is None]
            known = [one for spec in there for one in _callable_names(spec)]
            raise NotFoundError(f"app {app.name} has no function {name}; it has {', '.join(sorted(known))}")
        return function

    async def _list_apps(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        identity.require_owner()
        return [self._describe_app(app) for app in self._state.apps.values()]

    async def _show_app(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        identity.require_owner()
        app = self.find_app(str(body["app"]))
        functions = [self._describe_function(app, function) for function in app.functions.values()]
        return {**self._describe_app(app), "deployed_at": app.deployed_at, "function_list": functions}

    def _describe_app(self, app: App) -> dict[str, Any]:
        functions = app.functions.values()
        kind = "stopping" if app.stopping else "deployed" if app.deployed else "running" if app.session else "detached"
        return {
            "app_id": app.id,
            "name": app.name,
            "state": kind,
            "version": app.version or None,
            "functions": len(app.functions),
            "containers": sum(len(one.containers) for one in functions),
            "pending": sum(one.waiting_inputs for one in functions),
            "running": sum(one.running_inputs for one in functions),
            "started_at": app.started,
        }

    async def _app_logs(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        identity.require_owner()
        app = self.find_app(str(body["app"]))
        return {"lines": [self.log_line(line) for line in self._service.logs.tail(app.id, int(body["tail"]))]}

    def log_line(self, line: wire.Log) -> dict[str, Any]:
        return {
            "container": line.container,
            "function": line.function,
            "index": line.index,
            "stream": line.stream,
            "text": line.text,
        }

    # Functions

    async def _lookup(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        name = str(body["name"])
        function = self.find_function(str(body["app"]), name, identity)
        return {
            "function_id": function.id,
            "spec": _shown(function),
            "web_url": self._service.web.url(function),
            "method": name.removeprefix(function.spec.name).removeprefix("."),
        }

    async def _web_url(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        function = self._core.function(str(body["function_id"]))
        identity.require_app(function.app)
        return {"url": self._service.web.url(function, str(body.get("method", "")))}

    async def _stats(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        function = self._core.function(str(body["function_id"]))
        identity.require_app(function.app)
        room = sum(max(0, one.slots - len(one.held)) for one in function.containers.values() if one.state == 1)
        return {
            "backlog": function.waiting_inputs,
            "num_total_runners": function.ready,
            "num_running_inputs": function.running_inputs,
            "input_headroom": room,
        }

    async def _list_functions(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        identity.require_owner()
        wanted = body.get("app")
        apps = [self.find_app(str(wanted))] if wanted else list(self._state.apps.values())
        return [self._describe_function(app, function) for app in apps for function in app.functions.values()]

    def _describe_function(self, app: App, function: Function) -> dict[str, Any]:
        ready, starting = scaling.counts(function)
        return {
            "app": app.name,
            "app_id": app.id,
            "name": function.spec.name,
            "function_id": function.id,
            "pending": function.waiting_inputs,
            "running": function.running_inputs,
            "containers": ready,
            "starting": starting,
            "settings": msgspec.to_builtins(function.settings),
            "overridden": bool(function.overrides or function.temporary),
            "changed": entry_of(function),
            "methods": [one.name for one in function.spec.methods],
            "variant_of": function.spec.variant_of,
            "arguments": function.spec.arguments,
            "changes": _changes(function),
            "web_url": self._service.web.url(function),
            "web_urls": [self._service.web.url(function, method) for method, _ in function.spec.webs],
            **schedule_of(self._state, function),
        }

    async def _explain(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        function = self.find_function(str(body["app"]), str(body["name"]), identity)
        app = self._state.apps[function.app]
        now = self._service.now()
        containers = [
            {
                "container": one.id,
                "index": one.index,
                "state": CONTAINER_STATES[one.state],
                "held": len(one.held),
                "idle_s": None if one.held else round(now - one.idle_since, 3),
                "pid": one.pid,
                "waits_for": "" if one.pid else one.preparing,
            }
            for one in scaling.containers_in_order(function)
        ]
        return {
            **self._describe_function(app, function),
            "spec": _shown(function),
            "run_time_s": function.mean_run_s,
            "containers": containers,
            "wanted": function.wanted,
            "decisions": [{"at": at, "count": count, "reason": reason} for at, count, reason in function.decisions],
            "blocked": function.blocked,
            "last_error": function.last_error,
        }

    def figures(self, function: Function) -> wire.Stats:
        ready, starting = scaling.counts(function)
        return wire.Stats(
            function=function.id,
            name=function.spec.name,
            pending=function.waiting_inputs,
            running=function.running_inputs,
            containers=ready,
            starting=starting,
            wanted=function.wanted,
            reason=function.decisions[-1][2] if function.decisions else "",
        )

    async def _status(self, body: dict[str, Any], identity: Identity, session: str) -> Any:
        identity.require_owner()
        functions = self._state.functions.values()
        address = self._service.address
        return {
            "version": __version__,
            "pid": os.getpid(),
            "web_url": self._service.web.base_url,
            "target": address.target,
            "uptime_s": self._service.now() - address.started_at,
            "epoch": self._state.epoch,
            "capacity": self._service.cluster.capacity,
            "capacity_reason": self._service.cluster.capacity_reason,
            "containers": len(self._state.containers),
            "apps": len(self._state.apps),
            "functions": len(self._state.functions),
            "pending": sum(one.waiting_inputs for one in functions),
            "running": sum(one.running_inputs for one in functions),
            "journal_bytes": self._service.writer.size_bytes,
            "data_dir": address.data_dir,
            "http_url": address.http_url,
        }


def _shown(function: Function) -> Any:
    return msgspec.to_builtins(environment.without_values(function.spec))


def _callable_names(spec: wire.FunctionSpec) -> list[str]:
    """What can be called: a function, or the methods of a class."""
    return [f"{spec.name}.{one.name}" for one in spec.methods] or [spec.name]


def _changes(function: Function) -> dict[str, Any]:
    """What a variant has that its base has not, without values of variables."""
    variation = function.variation
    if variation is None:
        return {}
    values = msgspec.to_builtins(environment.without_values(variation.values))
    return {**variation.autoscaler, **{field: values[field] for field in variation.fields}}
