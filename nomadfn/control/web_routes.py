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

LOCAL_DOMAIN = "localhost"
"""Browsers and curl look for every name in it on this machine."""
NAME = "{name}"
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Route:
    """One web function, as requests find it."""

    function: Function
    app: App
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

    def url(self, function: Function) -> str:
        """Where a web function answers; empty for any other, or where the gateway is not open."""
        app = self._state.apps.get(function.app)
        if function.spec.web is None or app is None or not self.base_url:
            return ""
        if self._version != self._state.apps_version:
            self._rebuild()
        name, label = self._names.get(app.id, app.id), label_of(function)
        if NAME not in self.base_url:
            return f"{self.base_url}/{name}/{label}"
        host = host_name(name, label)
        found = self._hosts.get(f"{host}.{self._domain}".encode())
        is_its_own = found is None or found.function is function
        return self.base_url.replace(NAME, host if is_its_own else host_name(app.id, label))

    def urls(self, app: App) -> dict[str, str]:
        """Of the app's web functions, by name."""
        return {name: self.url(one) for name, one in app.functions.items() if one.spec.web is not None}

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
                if function.spec.web is None:
                    continue
                bucket = self._buckets.get(function.id) or Bucket(
                    state.limits.web_requests_per_s, state.limits.web_burst_s
                )
                kept[function.id] = bucket
                for shown in (name, app.id):
                    if self._add(shown, app, function, bucket):
                        self._names.setdefault(app.id, shown)
        self._buckets = kept

    def _add(self, shown: str, app: App, function: Function, bucket: Bucket) -> bool:
        """Make the function known under the app's name `shown`; False where another app has that."""
        web = function.spec.web
        assert web is not None
        label = label_of(function)
        path = f"{shown}/{label}".encode()
        if path in self._paths:
            return False
        self._paths[path] = Route(function, app, web, f"/{shown}/{label}", b"/" + path, bucket)
        at_host = Route(function, app, web, "", b"", bucket)
        for domain in {self._domain, LOCAL_DOMAIN}:
            self._hosts.setdefault(f"{host_name(shown, label)}.{domain}".encode(), at_host)
        return True


def label_of(function: Function) -> str:
    web = function.spec.web
    return (web.label if web is not None else "") or function.spec.name


def host_name(app: str, label: str) -> str:
    """As a part of a host's name, which has no upper case, and of signs only the hyphen."""
    return "--".join(re.sub(r"[^a-z0-9]+", "-", one.lower()).strip("-") for one in (app, label))


def _domain(base_url: str) -> str:
    if NAME not in base_url:
        return LOCAL_DOMAIN
    return (urlsplit(base_url.replace(f"{NAME}.", "")).hostname or LOCAL_DOMAIN).lower()
