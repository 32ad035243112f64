"""A web function's loop: every request is a task on one event loop, on the thread that reads the link as well."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import traceback
from collections.abc import Sequence

from .. import context
from ..kept import Item
from ..loops import make_event_loop
from ..units import Both, Unit
from ..wire import EXCEPTION, OK, Consumed, Deliver, DeliverBatch, Fed, Feed, Part, ToRunnerFrame
from ..wire.link import Link, LinkClosed
from ..wire.outcome import Raised
from ..wire.outcome import encode as encode_outcome
from ..wire.web import decode_request, decode_to_app, encode
from .apps import make_application
from .exchange import Exchange
from .lifespan import Lifespan

CANCEL_S = 1.0
"""How long the application may take to end by itself what nobody waits for any more."""
NOTHING = encode([])
TEXT_MAX = 1000
"""Of what the application raised: its traceback is in the log."""


class WebTasks(Both):
    """Serves the application of a function, or those of a class beside its other methods. `prepare` comes first."""

    def prepare(self) -> None:
        """Make each application, and have it start. Raises what it raises."""
        instance, spec = self._instance, self._code.bind.spec
        self._loop = (instance.loop if instance is not None else None) or make_event_loop()
        if instance is not None:
            instance.loop = self._loop
        asyncio.set_event_loop(self._loop)
        self._exchanges: dict[int, Exchange] = {}
        self._dirty: list[Exchange] = []
        """What has something to send at the end of this turn."""
        self._apps: dict[str, Lifespan] = {}
        """By method; the empty name is the function itself."""
        for method, web in spec.webs:
            name = f"{spec.program_name}.{method}" if method else spec.name
            app = Lifespan(make_application(self._functions[method], name, web, spec.max_inputs))
            self._loop.run_until_complete(app.start())
            self._apps[method] = app

    def serve(self, messages: Sequence[bytes] = ()) -> None:
        """Answer requests until the control service says `Drain`; ends the process when the link is lost for good."""
        try:
            super().serve(messages)
        finally:
            for app in self._apps.values():
                self._loop.run_until_complete(app.stop())
            self._before_send()

    def _make_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    # What comes from the control service.

    def _on_frame(self, frame: ToRunnerFrame) -> None:
        match frame:
            case DeliverBatch(calls, deliveries, indexes, payloads) if "" in self._apps:
                self._on_requests("", calls, deliveries, indexes, payloads)
            case Deliver(call, deliveries, indexes, payloads, _, method) if method in self._apps:
                self._on_requests(method, [call] * len(deliveries), deliveries, indexes, payloads)
            case Feed(delivery, number, payloads) if (exchange := self._exchanges.get(delivery)) is not None:
                for place, payload in enumerate(payloads, number - len(payloads) + 1):
                    exchange.feed(place, decode_to_app(payload))
            case Consumed(delivery, number) if (exchange := self._exchanges.get(delivery)) is not None:
                exchange.consumed(number)
            case _:
                super()._on_frame(frame)

    def _on_requests(
        self, method: str, calls: Sequence[str], deliveries: list[int], indexes: list[int], data: list[bytes]
    ) -> None:
        for call, delivery, index, payload in zip(calls, deliveries, indexes, data, strict=True):
            self._exchanges[delivery] = Exchange(delivery, decode_request(payload), self)
            self._waiting.append([(delivery, call, index, b"", 0, method)])

    def _withdraw(self, deliveries: frozenset[int]) -> list[int]:
        withdrawn = super()._withdraw(deliveries)
        for delivery in withdrawn:
            self._exchanges.pop(delivery, None)
        return withdrawn

    def _held(self) -> list[Item]:
        """Whoever waits for a request is gone with the control service that has the connections."""
        return [item for item in super()._held() if item[5] not in self._apps]

    def _find_next(self, link: Link, error: LinkClosed) -> None:
        self._loop.call_soon_threadsafe(self._abandon_all)
        super()._find_next(link, error)

    def _abandon_all(self) -> None:
        requests = frozenset(self._exchanges)
        self._withdraw(requests - frozenset(self._running))
        for first in requests & frozenset(self._running):
            self._interrupt(first)

    def _interrupt(self, first: int) -> None:
        """The application is told that the client is gone; some time later it is cancelled."""
        if (exchange := self._exchanges.get(first)) is None:
            return super()._interrupt(first)
        exchange.disconnect()
        self._loop.call_later(CANCEL_S, self._cancel, first)
        return None

    def _cancel(self, first: int) -> None:
        if (task := self._tasks.get(first)) is not None:
            task.cancel()

    # What goes to it.

    def tell(self, frame: Part | Fed) -> None:
        self._before_send()
        self._outbox.tell(frame)

    def flush_soon(self, exchange: Exchange) -> None:
        """Have `exchange.flush` called at the end of this turn."""
        self._dirty.append(exchange)
        self._schedule()

    def _schedule(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        dirty, self._dirty = self._dirty, []
        for exchange in dirty:
            exchange.flush()
        self._send()

    async def _run(self, unit: Unit) -> None:
        item = unit[0]
        app = self._apps.get(item[5])
        if app is None:
            return await super()._run(unit)
        delivery, started_ns = item[0], time.perf_counter_ns()
        exchange = self._exchanges[delivery]
        context.running.set((item[1], item[2]))
        status = OK
        try:
            await app.app(exchange.scope(app.state), exchange.receive, exchange.send)
        except BaseException as error:
            if self._in_child:
                traceback.print_exc()
            elif not exchange.finished or not isinstance(error, asyncio.CancelledError):
                raised = self._code.describe(error)
                print(raised.traceback.rstrip(), file=sys.stderr)
                status = OK if exchange.finished else EXCEPTION
                payload = encode_outcome(Raised(b"", raised.type_name, raised.text[:TEXT_MAX], ""))
        if self._in_child:
            self._before_send()
            os._exit(0)
        if status == OK:
            rest = exchange.rest()
            payload = encode(rest) if rest else NOTHING
        else:
            exchange.flush()
            exchange.done = True
        del self._exchanges[delivery], self._running[delivery], self._tasks[delivery]
        self._cancelled.discard(delivery)
        self._outbox.put(item, status, payload, time.perf_counter_ns() - started_ns)
        self._schedule()
        if self._waiting or self._draining:
            self._fill()
        return None
