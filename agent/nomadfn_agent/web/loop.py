"""A web function's loop: every request is a task on one event loop, on the thread that reads the link as well."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from .. import context
from ..kept import Item
from ..units import Tasks, Unit
from ..wire import (
    EXCEPTION,
    OK,
    Ack,
    Consumed,
    Deliver,
    DeliverBatch,
    Drain,
    Fed,
    Feed,
    Interrupt,
    Part,
    Returned,
    Withdraw,
)
from ..wire import decode_to_runner as decode
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


class WebTasks(Tasks):
    """Serves one application. `prepare` comes before everything else."""

    def prepare(self) -> None:
        """Make the application, and have it start. Raises what it raises."""
        self._loop = make_event_loop()
        asyncio.set_event_loop(self._loop)
        self._tasks = {}
        self._flushing = False
        self._exchanges: dict[int, Exchange] = {}
        self._dirty: list[Exchange] = []
        """What has something to send at the end of this turn."""
        self._app = make_application(self._functions[""], self._code.bind.spec)
        self._lifespan = Lifespan(self._app)
        self._loop.run_until_complete(self._lifespan.start())

    def serve(self, messages: Sequence[bytes] = ()) -> None:
        """Answer requests until the control service says `Drain`; ends the process when the link is lost for good."""
        self._end = self._loop.create_future()
        self._loop.call_soon(self._take, messages)
        self._listen()
        self._loop.run_until_complete(self._end)
        self._send()
        self._loop.run_until_complete(self._lifespan.stop())
        self._before_send()

    # What comes from the control service.

    def _take(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            match decode(message):
                case DeliverBatch(calls, deliveries, indexes, payloads):
                    self._on_deliver(calls, deliveries, indexes, payloads)
                case Deliver(call, deliveries, indexes, payloads):
                    self._on_deliver([call] * len(deliveries), deliveries, indexes, payloads)
                case Feed(delivery, number, payloads):
                    if (exchange := self._exchanges.get(delivery)) is not None:
                        for place, payload in enumerate(payloads, number - len(payloads) + 1):
                            exchange.feed(place, decode_to_app(payload))
                case Consumed(delivery, number):
                    if (exchange := self._exchanges.get(delivery)) is not None:
                        exchange.consumed(number)
                case Interrupt(deliveries):
                    self._stop(frozenset(deliveries))
                case Withdraw(deliveries):
                    self._outbox.flush()
                    self._outbox.tell(Returned(self._withdraw(frozenset(deliveries))))
                case Ack(number):
                    self._outbox.kept.acknowledge(number)
                case Drain():
                    self._draining = True
        self._fill()

    def _on_deliver(self, calls: Sequence[str], deliveries: list[int], indexes: list[int], data: list[bytes]) -> None:
        for call, delivery, index, payload in zip(calls, deliveries, indexes, data, strict=True):
            self._exchanges[delivery] = Exchange(delivery, decode_request(payload), self)
            self._waiting.append([(delivery, call, index, b"", 0, "")])

    def _withdraw(self, deliveries: frozenset[int]) -> list[int]:
        withdrawn = super()._withdraw(deliveries)
        for delivery in withdrawn:
            del self._exchanges[delivery]
        return withdrawn

    def _held(self) -> list[Item]:
        """Whoever waited for these is gone with the control service that had their connections."""
        return []

    def _find_next(self, link: Link, error: LinkClosed) -> None:
        self._loop.call_soon_threadsafe(self._abandon_all)
        super()._find_next(link, error)

    def _abandon_all(self) -> None:
        self._withdraw(frozenset(self._exchanges) - frozenset(self._running))
        for first in list(self._running):
            self._interrupt(first)

    def _interrupt(self, first: int) -> None:
        """The application is told that the client is gone; some time later it is cancelled."""
        if (exchange := self._exchanges.get(first)) is not None:
            exchange.disconnect()
            self._loop.call_later(CANCEL_S, self._cancel, first)

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
        [item] = unit
        delivery, started_ns = item[0], time.perf_counter_ns()
        exchange = self._exchanges[delivery]
        context.running.set((item[1], item[2]))
        status = OK
        try:
            await self._app(exchange.scope(self._lifespan.state), exchange.receive, exchange.send)
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


def make_event_loop() -> asyncio.AbstractEventLoop:
    """The fastest one that is there."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    loop: Any = uvloop.new_event_loop()
    return loop  # type: ignore[no-any-return]
