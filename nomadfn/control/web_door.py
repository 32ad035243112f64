"""Where the gateway listens: bound when it is first needed, or from the start, and imported when it is needed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomadfn_agent import wire

from nomadfn.control.serving import bind, url
from nomadfn.core.model import App, Function
from nomadfn.exception import ConflictError

if TYPE_CHECKING:
    from nomadfn.control.gateway import Gateway
    from nomadfn.control.service import Service
    from nomadfn.control.settings import Settings

PORT_FILE = "web_port"


class WebDoor:
    """The gateway of one control service. Without `prepare` there is none, and web functions have no address."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings: Settings | None = None
        self._memory: Path | None = None
        self._listener: socket.socket | None = None
        self._gateway: Gateway | None = None
        self._server: Any = None
        self._opening: asyncio.Lock | None = None
        self.base_url = ""

    def prepare(self, settings: Settings, *, private: bool = False) -> None:
        """Say with which settings it opens. A service that stays takes its port now, the one that it had before."""
        self._settings = settings
        if not private:
            self._memory = settings.data_dir / PORT_FILE
            self._bind(settings)

    def adopt(self, settings: Settings, listener: socket.socket) -> None:
        """The same on a socket that is bound already."""
        self._settings = settings
        self._take(listener, settings.web_url, settings)

    async def open_for(self, spec: wire.AppSpec) -> None:
        """Where the app has web functions: be open."""
        if any(one.web is not None for one in spec.functions):
            await self.open()

    async def open(self) -> None:
        """Serve, if it does not already. Raises `ConflictError` when its port is taken."""
        settings = self._settings
        if settings is None or self._server is not None:
            return
        self._opening = self._opening or asyncio.Lock()
        async with self._opening:
            if self._server is not None:
                return
            if self._listener is None:
                self._bind(settings)
            assert self._listener is not None
            gateway, make_server = await asyncio.to_thread(_import)
            self._gateway = gateway(self._service, self.base_url, settings.web_max_body_bytes)
            server = make_server(
                self._gateway, self._listener, settings.web_header_timeout_s, settings.web_max_header_bytes
            )
            await server.start()
            self._server = server

    async def close(self) -> None:
        """Take no more requests, and let the open ones end for a short time."""
        if self._server is not None:
            await self._server.close()
        elif self._listener is not None:
            self._listener.close()

    def url(self, function: Function) -> str:
        """Where a web function answers; empty for any other."""
        return "" if self._gateway is None else self._gateway.routes.url(function)

    def urls(self, app: App) -> dict[str, str]:
        return {} if self._gateway is None else self._gateway.routes.urls(app)

    def _bind(self, settings: Settings) -> None:
        is_own = self._memory is None  # a private service's, beside the one that the settings are for
        former = self._former_port() if not settings.web_port else 0
        listener: socket.socket | None = None
        if former:
            with contextlib.suppress(ConflictError):
                listener = bind(settings.web_host, former, "web_port")
        listener = listener or bind(settings.web_host, settings.web_port, "web_port")
        self._take(listener, "" if is_own else settings.web_url, settings)
        if self._memory is not None and not settings.web_port:
            with contextlib.suppress(OSError):
                self._memory.write_text(f"{listener.getsockname()[1]}\n")

    def _take(self, listener: socket.socket, base_url: str, settings: Settings) -> None:
        self._listener = listener
        self.base_url = base_url or url("http", _shown(settings.web_host), listener.getsockname()[1])

    def _former_port(self) -> int:
        try:
            return 0 if self._memory is None else int(self._memory.read_text())
        except (OSError, ValueError):
            return 0


def _shown(host: str) -> str:
    """An address at which others find what listens everywhere."""
    return socket.gethostname() if host in ("0.0.0.0", "::", "[::]") else host


def _import() -> tuple[Any, Any]:
    from nomadfn.control.gateway import Gateway
    from nomadfn.control.web_server import make_server

    return Gateway, make_server
