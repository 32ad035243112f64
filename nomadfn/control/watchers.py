"""Those who watch an app: what its containers write, and its figures as they change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nomadfn_agent import wire

from nomadfn.control.connections import LOG_BACKLOG_BYTES
from nomadfn.core.model import Function

if TYPE_CHECKING:
    from nomadfn.control.service import Service

FIGURES_INTERVAL_S = 0.1
TOLD = -1.0
BLOCKED_NOTICE_S = 1.0
"""A function that wants more containers than it can have for this long says so."""


class Watchers:
    """Which sessions watch which apps, and what each has been shown."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._apps: dict[str, dict[str, tuple[bool, bool]]] = {}
        """App → session → whether it watches logs, and figures."""
        self._figures: dict[str, wire.Stats] = {}
        self._figures_at = 0.0
        self._blocked_since: dict[str, float] = {}

    def add(self, app: str, session: str, *, logs: bool, figures: bool) -> None:
        self._apps.setdefault(app, {})[session] = logs, figures

    def drop_session(self, session: str) -> None:
        for watchers in self._apps.values():
            watchers.pop(session, None)

    def drop_app(self, app: str) -> None:
        self._apps.pop(app, None)
        for id in [id for id in self._figures if id.startswith(f"{app}/")]:
            self._figures.pop(id, None)
            self._blocked_since.pop(id, None)

    def notice(self, app: str, function: str, text: str) -> None:
        """A line of the service itself among an app's output."""
        self.publish(wire.Log("", 0, text + "\n", app, function, -1))

    def publish(self, line: wire.Log) -> None:
        self._service.logs.add(line)
        for session, (wants_logs, _) in self._apps.get(line.app, {}).items():
            connection = self._service.clients.sessions.get(session)
            if connection is None or not wants_logs:
                continue
            if connection.backlog_bytes > LOG_BACKLOG_BYTES:
                connection.skipped += 1
                continue
            if connection.skipped:
                text = f"({connection.skipped:,} pieces of output were left out: this terminal is too slow)\n"
                connection.send(wire.Log("", 0, text, line.app))
                connection.skipped = 0
            connection.send(line)

    def send_figures(self) -> None:
        """To those who watch: what changed of each function, some times a second."""
        now = self._service.now()
        if now - self._figures_at < FIGURES_INTERVAL_S:
            return
        self._figures_at = now
        for app_id, watchers in self._apps.items():
            app = self._service.core.state.apps.get(app_id)
            if app is None or not watchers:
                continue
            for function in app.functions.values():
                self._notice_blocked(now, function)
                figures = self._service.operations.figures(function)
                if self._figures.get(function.id) == figures:
                    continue
                self._figures[function.id] = figures
                for session, (_, wants_figures) in watchers.items():
                    if wants_figures and (connection := self._service.clients.sessions.get(session)) is not None:
                        connection.send(figures)

    def _notice_blocked(self, now: float, function: Function) -> None:
        """Say once what keeps a function from the containers it wants."""
        since = self._blocked_since.get(function.id)
        if since == TOLD:
            return
        if not function.blocked:
            self._blocked_since.pop(function.id, None)
        elif since is None:
            self._blocked_since[function.id] = now
        elif now - since > BLOCKED_NOTICE_S:
            self._blocked_since[function.id] = TOLD
            waits = f"waits for a place: {function.unplaced}" if function.unplaced else f"limited by {function.blocked}"
            self.notice(function.app, function.spec.name, waits)
