"""The short way of a small request: a response that comes whole is written at once, without a task of its own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec
from nomadfn_agent import wire
from nomadfn_agent.wire import web

from nomadfn.control import whole_responses
from nomadfn.control.visits import Outcome, Visit
from nomadfn.control.web_front import Application
from nomadfn.control.web_routes import Route

if TYPE_CHECKING:
    from nomadfn.control.service import Service


class QuickVisit(Visit):
    """`cycle` is uvicorn's for this request, `peer` its connection. `go_on` gives an application for the long way."""

    __slots__ = ("_cycle", "_go_on", "_is_over", "_peer")

    def __init__(
        self,
        service: Service,
        route: Route,
        payload: bytes,
        codec: int,
        cycle: Any,
        peer: Any,
        go_on: Callable[[QuickVisit | None], Application | None],
    ) -> None:
        self._cycle = cycle
        self._peer = peer
        self._go_on = go_on
        self._is_over = False
        """The short way is: the response is written, the client is gone, or a task sees to it."""
        super().__init__(service, route.function, route.method, payload, codec)

    def _end(self, ended: Outcome) -> None:
        if not self._is_over and not isinstance(ended, Exception) and ended[0] == wire.OK:
            start = _whole(ended[1])
            if start is not None and not self._peer.flow.write_paused:
                self.outcome = ended
                self.complete = self._is_over = True
                self._peer.on_lost = None
                self._go_on(None)
                self._write(start)
                return
        super()._end(ended)
        self._take_long_way()

    def _on_parts(self, number: int, statuses: list[int], payloads: list[bytes]) -> None:
        super()._on_parts(number, statuses, payloads)
        self._take_long_way()

    def lose(self) -> None:
        super().lose()
        if not self._is_over:
            self._is_over = True
            self._go_on(None)

    def _take_long_way(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._peer.run(self._cycle, self._go_on(self))

    def _write(self, start: web.Start) -> None:
        peer, send = self._peer, self._cycle.send
        if whole_responses.write(start, self._cycle, peer.transport):
            return
        peer.cork.put()
        try:
            _step(send({"type": "http.response.start", "status": start.status, "headers": start.headers}))
            _step(send({"type": "http.response.body", "body": start.data}))
        except Exception as error:  # what no client could be sent
            self._service.log(f"{self.function.id} sent a response that is none of HTTP: {error}")
            peer.transport.close()
        finally:
            peer.cork.pull()


def _whole(payload: bytes) -> web.Start | None:
    """The response, where all of it is one message."""
    try:
        messages = web.decode_from_app(payload)
    except msgspec.DecodeError:
        return None
    if len(messages) != 1 or type(messages[0]) is not web.Start or messages[0].more:
        return None
    return messages[0]


def _step(work: Coroutine[Any, Any, None]) -> None:
    """Run to its end what does not wait for anything."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise RuntimeError("the connection takes no more")
