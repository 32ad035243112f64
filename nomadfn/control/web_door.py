"""The gateway of one control service: bound when it is needed first, or from the start, and imported when needed."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from nomadfn_agent import wire

from nomadfn.control.web_front import WebFront
from nomadfn.core.model import App, Function
from nomadfn.exception import ConflictError

if TYPE_CHECKING:
    from nomadfn.control.gateway import Gateway
    from nomadfn.control.service import Service
    from nomadfn.control.settings import Settings

PORT_FILE = "web_port"


class WebDoor:
    """Without `prepare` or `adopt` there is no gateway, and web functions have no address."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings: Settings | None = None
        self._front: WebFront | None = None
        self._gateway: Gateway | None = None
        self._opening = asyncio.Lock()

    def prepare(self, settings: Settings, *, private: bool) -> None:
        """Say with which settings it opens. A service that stays takes its port now, the one that it had before."""
        self._settings = settings
        if not private:
            self._front = _bind_again(settings, settings.data_dir / PORT_FILE)

    def adopt(self, settings: Settings, front: WebFront) -> None:
        """Open behind a listener that is there already."""
        self._settings, self._front = settings, front

    @property
    def base_url(self) -> str:
        """How others see the gateway; empty while it has no address."""
        return "" if self._front is None else self._front.base_url

    async def open_for(self, spec: wire.AppSpec) -> None:
        """Where the app has web functions: be open."""
        if any(one.is_web for one in spec.functions):
            await self.open()

    async def open(self) -> None:
        """Answer, if it does not already. Raises `ConflictError` when its port is taken."""
        settings = self._settings
        if settings is None or self._gateway is not None:
            return
        async with self._opening:
            if self._gateway is None:
                make = await asyncio.to_thread(_import_gateway)
                self._front = self._front or WebFront.bound(settings, settings.web_port, is_private=True)
                await self._front.start()
                gateway = make(self._service, self._front.base_url, settings.web_max_body_bytes)
                self._front.lead(gateway)
                self._gateway = gateway

    async def leave(self) -> None:
        """Another control service will lead: take no more requests, and let the open ones end for a short time."""
        if self._gateway is not None and self._front is not None:
            self._front.lead(None)
            await self._gateway.drain()

    async def close(self) -> None:
        await self.leave()
        if self._front is not None:
            await self._front.close()

    def url(self, function: Function, method: str = "") -> str:
        """Where a web function, or a method of a class, answers; empty for any other."""
        return "" if self._gateway is None else self._gateway.routes.url(function, method)

    def urls(self, app: App) -> dict[str, str]:
        return {} if self._gateway is None else self._gateway.routes.urls(app)


def _bind_again(settings: Settings, memory: Path) -> WebFront:
    """On the port of the settings, else on the one of the time before, which `memory` has, else on a free one."""
    front: WebFront | None = None
    if not settings.web_port:
        with contextlib.suppress(OSError, ValueError, ConflictError):
            front = WebFront.bound(settings, int(memory.read_text()))
    front = front or WebFront.bound(settings, settings.web_port)
    if not settings.web_port:
        with contextlib.suppress(OSError):
            memory.write_text(f"{front.port}\n")
    return front


def _import_gateway() -> type[Gateway]:
    from nomadfn.control import web_server  # noqa: F401  here, not on the event loop
    from nomadfn.control.gateway import Gateway

    return Gateway
