"""The control service: the core with its clock, its connections, its journal and its containers.

Everything happens on one event loop. An event changes the core at once; what follows from it is carried out
once for all events of one turn of the loop (`_settle`). The journal has a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine
from secrets import token_hex
from typing import Any

from nomadfn_agent import wire
from nomadfn_agent.wire import payload

from nomadfn import ports
from nomadfn.control.address import Address
from nomadfn.control.agents import Agents
from nomadfn.control.blob_desk import BlobDesk
from nomadfn.control.connections import Connection
from nomadfn.control.containers import Containers
from nomadfn.control.durable import DurableWriter, Pace
from nomadfn.control.function_secrets import FunctionSecrets
from nomadfn.control.logs import LogBook
from nomadfn.control.metrics import render, sample
from nomadfn.control.operations import Operations
from nomadfn.control.sealing import Seal
from nomadfn.control.sweep import sweep_blobs
from nomadfn.control.tokens import Identity, Tokens
from nomadfn.control.watchers import Watchers
from nomadfn.core import calls, effects
from nomadfn.core.core import Core
from nomadfn.core.model import NO_DEADLINE, Function
from nomadfn.core.state import blob_name
from nomadfn.exception import Error, InvalidError, ResourceExhaustedError

TICK_RETRY_S = 0.25
RECOVER_S = 20.0
"""How long a new leader waits for the containers of the one before: longer than the cluster keeps one that is away."""
RECOVER_POLL_S = 0.01
LOCAL_SESSION = "se-http"
"""The session of calls that come over HTTP; it is always there."""


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
        self.sessions: dict[str, Connection] = {}
        self.containers = Containers(self)
        self.agents = Agents(self)
        self.watchers = Watchers(self)
        self.visible_waiters: dict[str, list[asyncio.Future[None]]] = {}
        self.gone_waiters: dict[str, list[asyncio.Future[None]]] = {}
        self.submit_waiters: dict[str, asyncio.Future[None]] = {}
        """Calls made over HTTP that wait to be accepted."""
        self.on_fatal = on_fatal
        self.closing = False
        self._clock_base = time.time() - time.monotonic()
        self.loop = asyncio.get_running_loop()
        self._journal_waiters: list[asyncio.Future[None]] = []
        self._scheduled = True
        """Nothing is carried out before `start` has opened the cluster and knows what runs there already."""
        self._ticker: asyncio.TimerHandle | None = None
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
        for connection in list(self.sessions.values()):
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
        for connection in list(self.sessions.values()):
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
        for effect in self.core.settle(now):
            self._carry_out(effect)
        batch, number = self.core.take_records()
        if batch:
            self.writer.write(batch, number)
        if self.writer.wants_snapshot(self.core.live_bytes):
            self.keep(self.writer.compact(self.core.snapshot()))

    def _tick(self) -> None:
        delay_s = TICK_RETRY_S
        try:
            delay_s = self.core.tick(self.now())
            self.watchers.send_figures()
        except Exception as error:
            self.log(traceback.format_exc())
            self.on_fatal(error)
        self._settle()
        if not self.closing:
            self._ticker = self.loop.call_later(delay_s, self._tick)

    def _on_durable(self, number: int) -> None:
        self.core.durable(self.now(), number)
        for waiter in self._journal_waiters:
            _resolve(waiter)
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

    async def spawn(self, function: Function, arguments: bytes) -> str:
        """A durable call with JSON arguments; returns its id once it is safe. Raises `ResourceExhaustedError`."""
        id = f"fc-{int(self.now()):08x}{token_hex(12)}"
        large = payload.is_large(arguments)
        data = await self.desk.keep(arguments, function.app) if large else arguments
        waiter: asyncio.Future[None] = self.loop.create_future()
        self.submit_waiters[id] = waiter
        submission = calls.Submission(id, function.id, wire.SPAWN, 0, [data], wire.JSON, [0] if large else [])
        self.core.submit(self.now(), LOCAL_SESSION, submission)
        self.poke()
        await waiter
        return id

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
                    ),
                )
            case effects.SendResults():
                self._send_results(effect)
            case effects.Accept():
                self._accepted(effect)
            case effects.Reject():
                self._rejected(effect)
            case effects.Visible():
                for waiter in self.visible_waiters.pop(effect.call, ()):
                    _resolve(waiter)
            case effects.Recall():
                self.cluster.recall(effect.container, max(effect.deliveries))
            case effects.Interrupt():
                self.containers.send(effect.container, wire.Interrupt(effect.deliveries))
            case effects.StartContainer():
                self.containers.start(effect.container)
            case effects.StopContainer():
                self.containers.stop(effect)
            case effects.DropBlob():
                self._drop_blob(effect.reference)
            case effects.AppGone():
                self._app_gone(effect.app)
            case effects.Notice():
                self.watchers.notice(effect.app, effect.function, effect.text)
            case effects.FunctionChanged():
                pass

    # Clients

    def identify(self, bearer: str | None) -> Identity:
        return self.tokens.identify(bearer)

    def welcome(self, connection: Connection, hello: wire.Hello) -> bool:
        """A connection has said who it is; False ends it."""
        if hello.version != wire.VERSION:
            self.log(f"{hello.role} {hello.session} speaks version {hello.version} of the protocol, not {wire.VERSION}")
            return False
        if hello.role == "runner":
            return self.containers.welcome(connection, hello.again)
        if connection.identity.container != hello.parent or hello.session == LOCAL_SESSION:
            return False
        former = self.sessions.get(hello.session)
        if former is not None:
            if former.identity != connection.identity:
                return False
            former.close()
        self.sessions[hello.session] = connection
        resumed = self.core.open_session(hello.session, hello.parent, hello.seen)
        limits = self.core.state.limits
        connection.send(
            wire.Welcome(
                version=wire.VERSION,
                epoch=self.core.state.epoch,
                resumed=resumed,
                blobs=self.blobs.folder,
                http_url=self.address.http_url,
                map_window=limits.map_in_flight,
                max_payload_bytes=limits.payload_bytes,
                max_function_bytes=limits.function_bytes,
                target=self.address.target,
                blobs_mark=self.blobs.mark,
            )
        )
        self.poke()
        return True

    def on_client_frame(self, connection: Connection, frame: wire.ClientFrame) -> None:
        match frame:
            case wire.Submit():
                self._submit(connection, frame)
            case wire.Ack():
                self.core.acknowledge(connection.id, frame.number)
            case wire.Request():
                self.keep(self._answer(connection, frame))
            case wire.Hello():
                connection.close()

    def _submit(self, connection: Connection, frame: wire.Submit) -> None:
        now = self.now()
        try:
            connection.identity.require_app(frame.function.partition("/")[0])
            self.core.submit(
                now,
                connection.id,
                calls.Submission(
                    frame.call,
                    frame.function,
                    frame.kind,
                    frame.first,
                    frame.payloads,
                    frame.codec,
                    frame.refs,
                    frame.priority,
                    NO_DEADLINE if frame.deadline_s is None else now + frame.deadline_s,
                ),
            )
        except Error as error:
            name = type(error).__name__
            connection.send(wire.Rejected(frame.call, frame.first, len(frame.payloads), name, str(error)))
        self.poke()

    async def _answer(self, connection: Connection, request: wire.Request) -> None:
        try:
            body = await self.operations.perform(request.operation, request.body, connection.identity, connection.id)
            reply = wire.Reply(request.id, body)
        except Error as error:
            reply = wire.Reply(request.id, None, type(error).__name__, str(error))
        except (KeyError, TypeError, ValueError) as error:
            reply = wire.Reply(
                request.id, None, "InvalidError", f"{request.operation}: the request is wrong: {error!r}"
            )
        except Exception as error:
            self.log(f"{request.operation} failed: {error!r}")
            reply = wire.Reply(request.id, None, "InternalError", f"{request.operation} failed: {error!r}")
        connection.send(reply)

    def _send_results(self, effect: effects.SendResults) -> None:
        connection = self.sessions.get(effect.session)
        if connection is not None:
            connection.send(
                wire.Results(effect.number, effect.call, effect.indexes, effect.statuses, effect.payloads, effect.codec)
            )

    def _accepted(self, effect: effects.Accept) -> None:
        if effect.session == LOCAL_SESSION:
            _resolve(self.submit_waiters.pop(effect.call, None))
        elif (connection := self.sessions.get(effect.session)) is not None:
            connection.send(wire.Accepted(effect.call, effect.first, effect.count))

    def _rejected(self, effect: effects.Reject) -> None:
        if effect.session == LOCAL_SESSION:
            waiter = self.submit_waiters.pop(effect.call, None)
            if waiter is not None and not waiter.done():
                waiter.set_exception(_error_of(effect))
        elif (connection := self.sessions.get(effect.session)) is not None:
            connection.send(
                wire.Rejected(
                    effect.call,
                    effect.first,
                    effect.count,
                    effect.error,
                    effect.message,
                    effect.retry_after_s,
                    effect.limit,
                    effect.value,
                    effect.maximum,
                )
            )

    def on_disconnect(self, connection: Connection) -> None:
        if connection.role == "runner":
            self.containers.on_disconnect(connection)
        elif connection.role == "agent":
            self.agents.on_disconnect(connection)
        elif self.sessions.get(connection.id) is connection:
            del self.sessions[connection.id]
            self.watchers.drop_session(connection.id)
            self.core.detach_session(self.now(), connection.id)
            if connection.identity.container:
                # A client inside a container that is gone does not come back.
                container = self.core.container(connection.identity.container)
                if container is None:
                    self.core.end_session(self.now(), connection.id)
            self.poke()

    # The rest

    def _drop_blob(self, reference: bytes) -> None:
        if name := blob_name(reference):
            self._in_background(self.desk.drop(name), "a blob was not deleted")

    def _app_gone(self, app: str) -> None:
        self.watchers.drop_app(app)
        self.containers.forget_app(app)
        for waiter in self.gone_waiters.pop(app, ()):
            _resolve(waiter)
        self.logs.end(app)
        self._in_background(asyncio.to_thread(self.operations.forget_app, app), "the app was not forgotten")

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


def _resolve(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _error_of(effect: effects.Reject) -> Exception:
    from nomadfn import exception

    if effect.error == "ResourceExhaustedError":
        return ResourceExhaustedError(
            effect.message,
            limit=effect.limit,
            value=effect.value,
            maximum=effect.maximum,
            retry_after_s=effect.retry_after_s,
        )
    kind = getattr(exception, effect.error, exception.InternalError)
    return kind(effect.message) if issubclass(kind, Exception) else InvalidError(effect.message)
