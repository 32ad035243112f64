"""Clients: their sessions, what they hand in and ask, and what they are sent."""

from __future__ import annotations

import asyncio
from secrets import token_hex
from typing import TYPE_CHECKING

from nomadfn_agent import wire
from nomadfn_agent.wire import payload

from nomadfn.control.connections import Connection
from nomadfn.core import calls, effects
from nomadfn.core.model import NO_DEADLINE, Function
from nomadfn.core.schedules import SCHEDULER
from nomadfn.exception import Error, InvalidError, ResourceExhaustedError

if TYPE_CHECKING:
    from nomadfn.control.service import Service

LOCAL_SESSION = "se-http"
"""The session of calls that come over HTTP; it is always there."""


class Clients:
    """Who is connected as a client, and the calls made over HTTP."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._core = service.core
        self.sessions: dict[str, Connection] = {}
        self.submit_waiters: dict[str, asyncio.Future[None]] = {}
        """Calls made over HTTP that wait to be accepted."""

    async def spawn(
        self,
        function: Function,
        arguments: bytes,
        priority: int = 0,
        deadline_s: float | None = None,
        method: str = "",
    ) -> str:
        """A durable call with JSON arguments; returns its id once it is safe. Raises `ResourceExhaustedError`."""
        id = f"fc-{int(self._service.now()):08x}{token_hex(12)}"
        large = payload.is_large(arguments)
        data = await self._service.desk.keep(arguments, function.app) if large else arguments
        waiter: asyncio.Future[None] = self._service.loop.create_future()
        self.submit_waiters[id] = waiter
        now = self._service.now()
        refs = [0] if large else []
        submission = calls.Submission(
            id,
            function.id,
            wire.SPAWN,
            0,
            [data],
            wire.JSON,
            refs,
            priority,
            deadline_of(now, deadline_s),
            method=method,
        )
        self._core.submit(now, LOCAL_SESSION, submission)
        self._service.poke()
        await waiter
        return id

    def welcome(self, connection: Connection, hello: wire.Hello) -> bool:
        """A client is there, for the first time or again; False ends the connection."""
        if connection.identity.container != hello.parent or hello.session in (LOCAL_SESSION, SCHEDULER):
            return False
        former = self.sessions.get(hello.session)
        if former is not None:
            if former.identity != connection.identity:
                return False
            former.close()
        self.sessions[hello.session] = connection
        resumed = self._core.open_session(hello.session, hello.parent, hello.seen)
        limits = self._core.state.limits
        connection.send(
            wire.Welcome(
                version=wire.VERSION,
                epoch=self._core.state.epoch,
                resumed=resumed,
                blobs=self._service.blobs.folder,
                http_url=self._service.address.http_url,
                map_window=limits.map_in_flight,
                max_payload_bytes=limits.payload_bytes,
                max_function_bytes=limits.function_bytes,
                target=self._service.address.target,
                blobs_mark=self._service.blobs.mark,
            )
        )
        self._service.poke()
        return True

    def on_frame(self, connection: Connection, frame: wire.ClientFrame) -> None:
        match frame:
            case wire.Submit():
                self._submit(connection, frame)
            case wire.Ack():
                self._core.acknowledge(connection.id, frame.number)
            case wire.Taken():
                self._core.parts_taken(connection.id, frame.call, frame.index, frame.number)
                self._service.poke()
            case wire.Request():
                self._service.keep(self._answer(connection, frame))
            case wire.Hello():
                connection.close()

    def _submit(self, connection: Connection, frame: wire.Submit) -> None:
        now = self._service.now()
        try:
            connection.identity.require_app(frame.function.partition("/")[0])
            self._core.submit(
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
                    deadline_of(now, frame.deadline_s),
                    frame.parent,
                    frame.method,
                    attempt=frame.attempt,
                ),
            )
        except Error as error:
            name = type(error).__name__
            connection.send(wire.Rejected(frame.call, frame.first, len(frame.payloads), name, str(error)))
        self._service.poke()

    async def _answer(self, connection: Connection, request: wire.Request) -> None:
        try:
            body = await self._service.operations.perform(
                request.operation, request.body, connection.identity, connection.id
            )
            reply = wire.Reply(request.id, body)
        except Error as error:
            reply = wire.Reply(request.id, None, type(error).__name__, str(error))
        except (KeyError, TypeError, ValueError) as error:
            reply = wire.Reply(
                request.id, None, "InvalidError", f"{request.operation}: the request is wrong: {error!r}"
            )
        except Exception as error:
            self._service.log(f"{request.operation} failed: {error!r}")
            reply = wire.Reply(request.id, None, "InternalError", f"{request.operation} failed: {error!r}")
        connection.send(reply)

    def send_results(self, effect: effects.SendResults) -> None:
        if effect.session == LOCAL_SESSION:
            self._service.streams.on_results(effect)
        elif (connection := self.sessions.get(effect.session)) is not None:
            connection.send_results(
                wire.Results(effect.number, effect.call, effect.indexes, effect.statuses, effect.payloads, effect.codec)
            )

    def accepted(self, effect: effects.Accept) -> None:
        if effect.session == LOCAL_SESSION:
            resolve(self.submit_waiters.pop(effect.call, None))
        elif (connection := self.sessions.get(effect.session)) is not None:
            connection.send(wire.Accepted(effect.call, effect.first, effect.count))

    def rejected(self, effect: effects.Reject) -> None:
        if effect.session == LOCAL_SESSION:
            self._service.streams.rejected(effect)
            waiter = self.submit_waiters.pop(effect.call, None)
            if waiter is not None and not waiter.done():
                waiter.set_exception(error_of(effect))
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
        if self.sessions.get(connection.id) is connection:
            del self.sessions[connection.id]
            self._service.watchers.drop_session(connection.id)
            self._core.detach_session(self._service.now(), connection.id)
            if connection.identity.container:
                # A client inside a container that is gone does not come back.
                container = self._core.container(connection.identity.container)
                if container is None:
                    self._core.end_session(self._service.now(), connection.id)
            self._service.poke()


def deadline_of(now: float, deadline_s: float | None) -> float:
    """A deadline in seconds from now as a time of the core's clock. Raises InvalidError for what is no such number."""
    if deadline_s is None:
        return NO_DEADLINE
    if not 0 <= deadline_s < NO_DEADLINE:
        raise InvalidError(f"a deadline of {deadline_s} is wrong: it is a number of seconds, 0 or more")
    return now + deadline_s


def resolve(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def error_of(effect: effects.Reject) -> Exception:
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
