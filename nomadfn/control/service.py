"""The control service: the core with its clock, its connections, its journal and its containers.

Everything happens on one event loop. An event changes the core at once; what follows from it is carried out
once for all events of one turn of the loop (`_settle`). The journal has a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from nomadfn_agent import wire

from nomadfn import ports
from nomadfn.control.address import Address
from nomadfn.control.agents import Agents
from nomadfn.control.blob_desk import BlobDesk
from nomadfn.control.clients import LOCAL_SESSION, Clients, resolve
from nomadfn.control.connections import Connection
from nomadfn.control.containers import Containers
from nomadfn.control.durable import DurableWriter, Pace
from nomadfn.control.function_secrets import FunctionSecrets
from nomadfn.control.logs import LogBook
from nomadfn.control.metrics import render, sample
from nomadfn.control.operations import Operations
from nomadfn.control.sealing import Seal
from nomadfn.control.streams import Streams
from nomadfn.control.sweep import sweep_blobs
from nomadfn.control.tokens import Identity, Tokens
from nomadfn.control.watchers import Watchers
from nomadfn.control.web_door import WebDoor
from nomadfn.core import effects
from nomadfn.core.core import Core
from nomadfn.core.state import blob_name
from nomadfn.exception import Error

TICK_RETRY_S = 0.25
CLOSE_S = 0.0005
"""A tick that comes so soon is not moved."""
RECOVER_S = 20.0
"""How long a new leader waits for the containers of the one before: longer than the cluster keeps one that is away."""
RECOVER_POLL_S = 0.01


def _in_whole_ms(delay_s: float) -> float:
    """uvloop rounds delays to milliseconds: a timer that goes off too early would be set anew again and again."""
    return max(1, math.ceil(delay_s * 1000)) / 1000


class Service:
    """One control service that leads. `main` builds it from adapters."""

    def __init__(
        self,
        core: Core,
        cluster: ports.Cluster,
        registry: ports.Registry,
        blobs: ports.Blobs,
        tokens: Tokens,
        address: Address,
        journal: ports.Journal,
        on_fatal: Callable[[Exception], None],
        secrets: ports.Secrets,
        seal: Seal = Seal(),
        pace: Pace = Pace(),
    ) -> None:
        self.core = core
        self.cluster = cluster
        self.registry = registry
        self.blobs = blobs
        self.desk = BlobDesk(blobs, core.state)
        self.tokens = tokens
        self.address = address
        self.logs = LogBook()
        self.seal = seal
        self.secrets = FunctionSecrets(secrets)
        self.operations = Operations(self)
        self.secrets.add_to(self.operations)
        self.clients = Clients(self)
        self.streams = Streams(self)
        self.containers = Containers(self)
        self.agents = Agents(self)
        self.watchers = Watchers(self)
        self.web = WebDoor(self)
        self.visible_waiters: dict[str, list[asyncio.Future[None]]] = {}
        self.gone_waiters: dict[str, list[asyncio.Future[None]]] = {}
        self.on_fatal = on_fatal
        self.closing = False
        self._clock_base = time.time() - time.monotonic()
        self.loop = asyncio.get_running_loop()
        self._journal_waiters: list[asyncio.Future[None]] = []
        self.collecting: list[Connection] | None = None
        """While effects are carried out: connections with frames that go out together when all are."""
        self._scheduled = True
        """Nothing is carried out before `start` has opened the cluster and knows what runs there already."""
        self._ticker: asyncio.TimerHandle | None = None
        self._wakes_at = 0.0
        """What the core's `wake_at` was when the ticker was set."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.writer = DurableWriter(
            journal,
            lambda number: self._threadsafe(self._on_durable, number),
            lambda error: self._threadsafe(on_fatal, error),
            pace,
        )
        core.open_session(LOCAL_SESSION)

    def now(self) -> float:
        """Unix time as it was at the start, plus the time since: it never goes back."""
        return self._clock_base + time.monotonic()

    async def start(self, expected: Callable[[], int] | None = None) -> None:
        """Serve. `expected` says how many containers of an earlier leader are not here again: they are waited for."""
        if expected is not None:
            self.core.hold_back(True)
        await self.cluster.open(self.containers.on_cluster_event)
        if expected is not None:
            self.keep(self._recover(expected))
        self.writer.start()
        self._tick()
        self.keep(sweep_blobs(self))

    async def _recover(self, expected: Callable[[], int]) -> None:
        start = time.monotonic()
        while (late := expected() + self.containers.awaited) and time.monotonic() - start < RECOVER_S:
            await asyncio.sleep(RECOVER_POLL_S)
        self.core.hold_back(False)
        self.poke()
        if (count := len(self.core.state.containers)) or late:
            self.log(f"{count:,} containers are back after {time.monotonic() - start:.1f} s, {late:,} are not")

    async def leave(self, release: Callable[[], None]) -> None:
        """Write what is there, `release` the lease, and let everybody go, the containers running."""
        self._end_tasks()
        await self._close_writer()
        await asyncio.to_thread(release)
        for connection in list(self.clients.sessions.values()):
            connection.close("another control service leads")
        self.containers.leave("another control service leads")
        self.agents.close("another control service leads")
        self.desk.close()

    def _end_tasks(self) -> None:
        self.closing = True
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        for task in list(self._tasks):
            task.cancel()

    async def close(self, why: str) -> None:
        """End every container, write what is there, close. Clients are told `why`."""
        self._end_tasks()
        await self.cluster.close()
        self.agents.close("the control service ends")
        for connection in list(self.clients.sessions.values()):
            connection.close(why)
        await self._close_writer()
        self.desk.close()

    async def _close_writer(self) -> None:
        if not await asyncio.to_thread(self.writer.close):
            self.log("the journal takes nothing: what was not acknowledged yet is not kept")

    def log(self, text: str) -> None:
        """A line for whoever looks after the service."""
        with contextlib.suppress(OSError):  # the log may lie on a disk that is full
            print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def _threadsafe(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before the journal's thread
            self.loop.call_soon_threadsafe(call, *args)

    # The loop's turns

    def poke(self) -> None:
        """Something changed: settle once, after the other events of this turn."""
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._settle)

    def _settle(self) -> None:
        self._scheduled = False
        try:
            self._carry_out_all()
        except Exception as error:
            # Half of what had to be done is done: no state that anybody should be served from.
            self.log(traceback.format_exc())
            self.on_fatal(error)

    def _carry_out_all(self) -> None:
        now = self.now()
        found = self.core.settle(now)
        self.collecting = [] if len(found) > 1 else None
        results = False
        for effect in found:
            if not results and type(effect) is effects.SendResults:
                results = True
                self._serve_containers()
            self._carry_out(effect)
        self.streams.acknowledge()
        if self.collecting is not None:
            written, self.collecting = self.collecting, None
            for connection in written:
                connection.send_collected()
        if self.core.wake_at < self._wakes_at:
            self._tick_sooner()
        batch, number = self.core.take_records()
        if batch:
            self.writer.write(batch, number)
        if self.writer.wants_snapshot(self.core.live_bytes):
            self.keep(self.writer.compact(self.core.snapshot(), self._settle))

    def _serve_containers(self) -> None:
        """Send containers what is collected: they need not wait until results are put together."""
        if self.collecting:
            served = [one for one in self.collecting if one.role == "runner"]
            self.collecting = [one for one in self.collecting if one.role != "runner"]
            for connection in served:
                connection.send_collected()

    def _tick(self) -> None:
        delay_s = TICK_RETRY_S
        try:
            delay_s = self.core.tick(self.now(), time.time())
            self.watchers.send_figures()
        except Exception as error:
            self.log(traceback.format_exc())
            self.on_fatal(error)
        self._settle()
        if not self.closing:
            self._next_tick = self.loop.time() + _in_whole_ms(delay_s)
            self._ticker = self.loop.call_at(self._next_tick, self._tick)
            self._tick_sooner()

    def _tick_sooner(self) -> None:
        """A batch may be due before the next tick."""
        self._wakes_at = self.core.wake_at
        if self._ticker is None or self.core.wake_at == math.inf:
            return
        at = self.loop.time() + _in_whole_ms(self.core.wake_at - self.now())
        if at < self._next_tick - CLOSE_S:
            self._ticker.cancel()
            self._next_tick = at
            self._ticker = self.loop.call_at(self._next_tick, self._tick)

    def _on_durable(self, number: int) -> None:
        self.core.durable(self.now(), number)
        for waiter in self._journal_waiters:
            resolve(waiter)
        self._journal_waiters.clear()
        self.poke()

    async def journal_reached(self, number: int) -> None:
        """Returns once every record up to `number` is durable. Ends with the service if that never comes."""
        while self.core.state.durable_number < number:
            waiter: asyncio.Future[None] = self.loop.create_future()
            self._journal_waiters.append(waiter)
            await waiter

    async def await_visible(self, call: str, timeout_s: float) -> None:
        """Returns when a durable call has something new to show, or after the time."""
        waiter: asyncio.Future[None] = self.loop.create_future()
        self.visible_waiters.setdefault(call, []).append(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout_s)
        finally:
            waiters = self.visible_waiters.get(call, [])
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                self.visible_waiters.pop(call, None)

    def _carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Deliver():
                self.containers.send(
                    effect.container,
                    wire.Deliver(
                        effect.call,
                        effect.deliveries,
                        effect.indexes,
                        effect.payloads,
                        [effect.codecs[0]] if len(set(effect.codecs)) == 1 else effect.codecs,
                        effect.method,
                    ),
                )
            case effects.DeliverBatch():
                self.containers.send(
                    effect.container,
                    wire.DeliverBatch(
                        effect.calls,
                        effect.deliveries,
                        effect.indexes,
                        effect.payloads,
                        effect.codecs,
                        effect.last,
                    ),
                )
            case effects.SendResults():
                self.clients.send_results(effect)
            case effects.SendParts() | effects.FeedTaken() | effects.Consumed() | effects.SendFeed():
                self.streams.carry_out(effect)
            case effects.Accept():
                self.clients.accepted(effect)
            case effects.Reject():
                self.clients.rejected(effect)
            case effects.Visible():
                for waiter in self.visible_waiters.pop(effect.call, ()):
                    resolve(waiter)
            case effects.Recall():
                self.containers.recall(effect)
            case effects.Interrupt():
                self.containers.send(effect.container, wire.Interrupt(effect.deliveries))
            case effects.StartContainer():
                self.containers.start(effect.container)
            case effects.StopContainer():
                self.containers.stop(effect)
            case effects.DropBlob():
                self.drop_blob(effect.reference)
            case effects.AppGone():
                self._app_gone(effect.app)
            case effects.Notice():
                self.watchers.notice(effect.app, effect.function, effect.text)
            case effects.SettingsReverted():
                self._in_background(
                    self.operations.overrides.reverted(effect.function), "a reverted setting was not kept"
                )
            case effects.FunctionGone():
                self._function_gone(effect.app, effect.name)
            case effects.FunctionChanged():
                pass

    # Connections

    def identify(self, bearer: str | None) -> Identity:
        return self.tokens.identify(bearer)

    def welcome(self, connection: Connection, hello: wire.Hello) -> bool:
        """A connection has said who it is; False ends it."""
        if hello.version != wire.VERSION:
            self.log(f"{hello.role} {hello.session} speaks version {hello.version} of the protocol, not {wire.VERSION}")
            return False
        if hello.role == "runner":
            return self.containers.welcome(connection, hello.again)
        return self.clients.welcome(connection, hello)

    def on_disconnect(self, connection: Connection) -> None:
        if connection.role == "runner":
            self.containers.on_disconnect(connection)
        elif connection.role == "agent":
            self.agents.on_disconnect(connection)
        else:
            self.clients.on_disconnect(connection)

    # The rest

    def drop_blob(self, reference: bytes) -> None:
        if name := blob_name(reference):
            self._in_background(self.desk.drop(name), "a blob was not deleted")

    def _app_gone(self, app: str) -> None:
        self.watchers.drop_app(app)
        self.containers.forget_app(app)
        for waiter in self.gone_waiters.pop(app, ()):
            resolve(waiter)
        self.logs.end(app)
        self._in_background(asyncio.to_thread(self.operations.forget_app, app), "the app was not forgotten")

    def _function_gone(self, app: str, name: str) -> None:
        self.containers.forget_function(app, name)
        self._in_background(self.operations.forget_function(app, name), "a function was not forgotten")

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task and hold on to it until it ends, or the service does."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _in_background(self, work: Coroutine[Any, Any, None], failed: str) -> None:
        """Something that nobody waits for; what goes wrong with it is logged."""

        async def run() -> None:
            try:
                await work
            except (Error, ValueError, OSError) as error:
                self.log(f"{failed}: {error}")

        self.keep(run())

    async def perform(self, operation: str, body: dict[str, Any], identity: Identity) -> Any:
        """One operation for somebody who is not on a websocket."""
        return await self.operations.perform(operation, body, identity, "")

    def trouble(self) -> str:
        """Why this service is not healthy, in words; empty while it is."""
        return self.writer.trouble

    async def metrics(self, bearer: str | None) -> bytes:
        self.tokens.require_scraper(bearer)
        return await asyncio.to_thread(render, sample(self))

    def leader(self) -> dict[str, Any]:
        """Where agents and clients find the control service that leads: this one."""
        address = self.address
        return {"http_url": address.http_url, "data_url": address.data_url, "epoch": self.core.state.epoch}

    async def follow_logs(self, app: str, tail: int) -> AsyncGenerator[dict[str, Any]]:
        id = self.operations.find_app(app).id
        async with contextlib.aclosing(self.logs.follow(id, tail)) as lines:
            async for line in lines:
                yield self.operations.log_line(line)
