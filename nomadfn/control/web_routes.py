"""Which web function a request is for, and the address of each: by path, `/<app>/<function>`, and by host,
`<app>--<function>.<domain>`.

A deployed app has its own name there; one that `nomadfn run` has started has `<name>-dev`, like its run before, and
while several run under one name the newest. Its id is always good as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

from nomadfn_agent import wire

from nomadfn.core.limits import Bucket
from nomadfn.core.model import App, Function
from nomadfn.core.state import State
from nomadfn.core.variants import is_open

LOCAL_DOMAIN = "localhost"
"""Browsers and curl look for every name in it on this machine."""
NAME = "{name}"
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Route:
    """One web function, as requests find it."""

    function: Function
    method: str
    """Of a class; empty for a function."""
    web: wire.WebSpec
    root: str
    """What stands before the function's own path: empty where the host names it."""
    raw_root: bytes
    bucket: Bucket


class Routes:
    """`base_url` is how others see the gateway; with `{name}` in it, functions are told apart by their hosts."""

    def __init__(self, state: State, base_url: str) -> None:
        self.base_url = base_url
        self._state = state
        self._domain = _domain(base_url)
        self._version = -1
        self._paths: dict[bytes, Route] = {}
        self._hosts: dict[bytes, Route] = {}
        self._names: dict[str, str] = {}
        """Id of an app → what stands for it in addresses."""
        self._buckets: dict[str, Bucket] = {}

    def find(self, raw_path: bytes, headers: Headers) -> Route | None:
        """The function that a request is for."""
        if self._version != self._state.apps_version:
            self._rebuild()
        for name, value in headers:
            if name == b"host":
                if b"--" in value:
                    found = self._hosts.get(value.rpartition(b":")[0].lower() or value.lower())
                    found = found or self._hosts.get(value.lower())
                    if found is not None:
                        return found
                break
        parts = raw_path.split(b"/", 3)
        if len(parts) < 3:
            return None
        head = parts[1] + b"/" + parts[2]
        return self._paths.get(head) or (self._paths.get(unquote_to_bytes(head)) if b"%" in head else None)

    def url(self, function: Function, method: str = "") -> str:
        """Where a web function, or a method of a class, answers; empty for any other."""
        app = self._state.apps.get(function.app)
        web = dict(function.spec.webs).get(method) if function.spec.is_web else None
        if web is None or app is None:
            return ""
        if self._version != self._state.apps_version:
            self._rebuild()
        name, label = self._names.get(app.id, app.id), label_of(function.spec, method, web)
        if NAME not in self.base_url:
            return f"{self.base_url}/{name}/{label}"
        host = host_name(name, label)
        found = self._hosts.get(f"{host}.{self._domain}".encode())
        is_its_own = found is None or found.function.app == app.id
        return self.base_url.replace(NAME, host if is_its_own else host_name(app.id, label))

    def urls(self, app: App) -> dict[str, str]:
        """Of the app's web functions, by name."""
        return {
            full_name(one.spec, method): self.url(one, method)
            for one in app.functions.values()
            for method, _ in ([] if one.spec.variant_of or is_open(one.spec) else one.spec.webs)
        }

    def _rebuild(self) -> None:
        state = self._state
        self._version = state.apps_version
        self._paths, self._hosts, self._names = {}, {}, {}
        kept: dict[str, Bucket] = {}
        # Of two that claim one name a deployed app has it, and of two runs the newer one.
        apps = [app for app in state.apps.values() if not app.stopping]
        for app in sorted(apps, key=lambda one: (one.deployed, one.started), reverse=True):
            name = app.name if app.deployed else f"{app.name}-dev"
            for function in app.functions.values():
                if function.spec.is_web:
                    bucket = self._buckets.get(function.id) or self._make_bucket()
                    kept[function.id] = bucket
                    for shown in (name, app.id):
                        if self._add(shown, function, bucket):
                            self._names.setdefault(app.id, shown)
        self._buckets = kept

    def _make_bucket(self) -> Bucket:
        limits = self._state.limits
        return Bucket(limits.web_requests_per_s, limits.web_burst_s)

    def _add(self, shown: str, function: Function, bucket: Bucket) -> bool:
        """Make the function known under the app's name `shown`; False where another app has that."""
        added = False
        for method, web in function.spec.webs:
            label = label_of(function.spec, method, web)
            path = f"{shown}/{label}".encode()
            if path in self._paths:
                continue
            added = True
            self._paths[path] = Route(function, method, web, f"/{shown}/{label}", b"/" + path, bucket)
            at_host = Route(function, method, web, "", b"", bucket)
            for domain in {self._domain, LOCAL_DOMAIN}:
                self._hosts.setdefault(f"{host_name(shown, label)}.{domain}".encode(), at_host)
        return added


def full_name(spec: wire.FunctionSpec, method: str) -> str:
    """`f` for a function, `C.f` for a method of a class."""
    return f"{spec.program_name}.{method}" if method else spec.program_name


def label_of(spec: wire.FunctionSpec, method: str, web: wire.WebSpec) -> str:
    """What stands for it in addresses. A variant has its own name there, such as `C@3fa29c1d07.f`."""
    if not spec.variant_of:
        return web.label or full_name(spec, method)
    return f"{spec.name}.{method}" if method else spec.name


def host_name(app: str, label: str) -> str:
    """As a part of a host's name, which has no upper case, and of signs only the hyphen."""
    return "--".join(re.sub(r"[^a-z0-9]+", "-", one.lower()).strip("-") for one in (app, label))


def _domain(base_url: str) -> str:
    if NAME not in base_url:
        return LOCAL_DOMAIN
    return (urlsplit(base_url.replace(f"{NAME}.", "")).hostname or LOCAL_DOMAIN).lower()
