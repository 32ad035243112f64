"""`FunctionCall`: a call that was handed in and goes on by itself; its results, from any process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from nomadfn.exception import InvalidError, UnsupportedError

from .blocking import Pending, Verb, blocking, in_event_loop, run_async, run_sync
from .client import Client, default_client
from .errors import Reader

if TYPE_CHECKING:
    from nomadfn.call_graph import InputInfo

ANSWER_S = 5.0
"""How much longer than it was asked to wait the control service may take to say so."""
LONGEST_POLL_S = 30.0
PAGE = 256
"""Results that one question asks for."""
GATHER_WINDOW = 1_024
"""Questions of one `gather` that are under way at once."""


R = TypeVar("R")

_MODAL_ONLY = {
    "logs": "use `nomadfn app logs APP`, whose lines are marked with function and container",
    "get_gen": "a generator function is read with .remote_gen(...)",
}


class FunctionCall(Generic[R]):
    """One `.spawn` or `.spawn_map`. Results are kept for 7 days unless the cluster says otherwise."""

    object_id: str
    """Its id, for `FunctionCall.from_id` in another process."""
    _client: Client | None
    _function: str
    _total: int | None

    def __init__(self) -> None:
        raise InvalidError("a FunctionCall is made by fn.spawn(...) or FunctionCall.from_id(id)")

    @classmethod
    def _of(cls, client: Client | None, call: str, function: str = "", total: int | None = None) -> FunctionCall[Any]:
        self = cls.__new__(cls)
        self.object_id = call
        self._client = client
        self._function = function or f"call {call}"
        self._total = total
        return self

    @classmethod
    def from_id(cls, function_call_id: str, client: Any = None) -> FunctionCall[Any]:
        """The call with that id; an unknown or expired one raises at the first use."""
        _refuse_client(client)
        if not isinstance(function_call_id, str) or not function_call_id.startswith("fc-"):
            raise InvalidError(f"{function_call_id!r} is not the id of a call; such ids begin with 'fc-'")
        return cls._of(None, function_call_id)

    def __repr__(self) -> str:
        return f"FunctionCall.from_id({self.object_id!r})"

    def __reduce__(self) -> tuple[Callable[[str], FunctionCall[Any]], tuple[str]]:
        return FunctionCall.from_id, (self.object_id,)

    @blocking
    async def get(self, timeout: float | None = None, *, index: int = 0) -> Any:
        """The result of input `index`; what the function raised is raised.

        `timeout` is seconds: None waits, 0 only looks. Raises the builtin TimeoutError when the result is not
        there in time, OutputExpiredError when it is no longer kept, and NotFoundError for an unknown call.
        """
        if timeout is not None and timeout < 0:
            raise InvalidError(f"get(timeout={timeout!r}): give seconds, 0 to look without waiting, or None to wait")
        if index < 0:
            raise InvalidError(f"get(index={index!r}): the first input has index 0")
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            rest_s = LONGEST_POLL_S if deadline is None else max(0.0, deadline - time.monotonic())
            pending = self._ask(index, 1, min(rest_s, LONGEST_POLL_S))
            if deadline is not None and not await pending.within(rest_s + ANSWER_S):
                raise TimeoutError(
                    f"{self._function} has no result after {timeout} s, and the control service does not answer; "
                    f"ask again later"
                )
            body = await pending
            if body["indexes"]:
                return _value((await self._read(body))[0])
            total = body["num_inputs"]
            if body["closed"] and total is not None and index >= total:
                raise InvalidError(f"get(index={index}): {self!r} has {total} inputs, the last has index {total - 1}")
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{self._function} has no result yet, after {timeout} s; ask again later")

    @property
    def iter(self) -> IterVerb:
        """`call.iter(start=0, end=None)`: results in the inputs' order, each once it and those before it are there."""
        return IterVerb(self)

    @blocking
    async def num_inputs(self) -> int:
        """How many inputs the call has."""
        if self._total is None:
            info = await self._service().request("call.info", {"call": self.object_id})
            self._total = info["num_inputs"] if info["closed"] else None
            return int(info["num_inputs"] or 0)
        return self._total

    @blocking
    async def cancel(self, terminate_containers: bool = False) -> None:
        """Cancel the inputs that have no result; `terminate_containers` ends the containers that run one."""
        body = {"call": self.object_id, "terminate_containers": bool(terminate_containers)}
        await self._service().request("call.cancel", body)

    @blocking
    async def get_call_graph(self) -> list[InputInfo]:
        """The inputs of the call, and of the calls that they have made, as a tree: `nomadfn.call_graph.InputInfo`.

        Where this call was made by an input itself, the tree begins above it. At most 1,000 inputs; what those
        of `.remote` and `.map` came to is remembered until the control service is started again.
        """
        from nomadfn import call_graph

        service = self._service()
        body = await service.request("call.graph", {"call": self.object_id})
        if body["truncated"]:
            service.notice(f"the call graph of {self.object_id} is larger than what is shown of it")
        return call_graph.tree(body["nodes"])

    @blocking
    async def hydrate(self, client: Any = None) -> FunctionCall[R]:
        """Look it up now instead of at the first use. Raises NotFoundError or OutputExpiredError."""
        _refuse_client(client)
        await self._service().request("call.info", {"call": self.object_id})
        return self

    def __getattr__(self, name: str) -> Any:
        if name in _MODAL_ONLY:
            raise UnsupportedError(f"FunctionCall.{name} is not supported by nomadfn; {_MODAL_ONLY[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    gather: ClassVar[Verb[..., list[Any]]]
    """The results of several calls, in their order; the first exception among them is raised."""

    def _service(self) -> Client:
        return default_client() if self._client is None or self._client.broken else self._client

    def _ask(self, first: int, count: int, wait_s: float) -> Pending[Any]:
        body = {"call": self.object_id, "first": first, "count": count, "wait_s": wait_s}
        return self._service().start_request("call.outputs", body)

    async def _read(self, body: dict[str, Any]) -> list[tuple[bool, Any]]:
        reader = Reader(self._service().blobs, self._function, owns_blobs=False)
        columns = zip(body["statuses"], body["payloads"], strict=True)
        return [await reader.read_apart(status, data, body["codec"]) for status, data in columns]


class IterVerb:
    """`call.iter`: a plain generator when called, an async one by `.aio`."""

    __slots__ = ("_call",)

    def __init__(self, call: FunctionCall[Any]) -> None:
        self._call = call

    def __call__(self, start: int = 0, end: int | None = None) -> Iterator[Any]:
        if in_event_loop():
            raise InvalidError(
                "FunctionCall.iter would stop the running event loop; use `async for result in call.iter.aio()`"
            )
        return self._iterate(_Pages(self._call, start, end))

    def _iterate(self, pages: _Pages) -> Iterator[Any]:
        while page := run_sync(pages.next()):
            yield from map(_value, page)

    def aio(self, start: int = 0, end: int | None = None) -> AsyncIterator[Any]:
        return self._iterate_async(_Pages(self._call, start, end))

    async def _iterate_async(self, pages: _Pages) -> AsyncIterator[Any]:
        while page := await run_async(pages.next()):
            for outcome in page:
                yield _value(outcome)


class _Pages:
    """The results of one call from `start` to `end`, some at a time."""

    def __init__(self, call: FunctionCall[Any], start: int, end: int | None) -> None:
        if start < 0 or (end is not None and end < start):
            raise InvalidError(f"iter(start={start}, end={end}): indexes are 0 or more, and end is not below start")
        self._call = call
        self._next = start
        self._end = end

    async def next(self) -> list[tuple[bool, Any]]:
        """The next results, at least one; empty at the end."""
        while True:
            count = PAGE if self._end is None else min(PAGE, self._end - self._next)
            if count <= 0:
                return []
            body = await self._call._ask(self._next, count, LONGEST_POLL_S)
            if body["indexes"]:
                self._next += len(body["indexes"])
                return await self._call._read(body)
            total = body["num_inputs"]
            if body["closed"] and total is not None and self._next >= total:
                if max(self._next, self._end or 0) > total:
                    raise InvalidError(
                        f"iter(end={self._end}): {self._call!r} has {total} inputs, the last has index {total - 1}"
                    )
                return []


class _Bell:
    """Wakes who waits for any of several answers."""

    def __init__(self) -> None:
        self._signal: Pending[None] = Pending()

    def ring(self) -> None:
        self._signal.set(None)

    def fresh(self) -> Pending[None]:
        """What the next ring sets; look at the answers after this call."""
        self._signal = Pending()
        return self._signal


async def _gather(_: Any, *calls: FunctionCall[Any]) -> list[Any]:
    """The results of several calls, in their order; the first of them that fails raises its exception at once."""
    for call in calls:
        if not isinstance(call, FunctionCall):
            raise InvalidError(
                f"FunctionCall.gather takes calls, not {type(call).__name__}: FunctionCall.gather(*[f.spawn(x), ...])"
            )
    values: list[Any] = [None] * len(calls)
    bell = _Bell()
    asked: dict[int, Pending[Any]] = {}
    waiting = iter(range(len(calls)))
    left = len(calls)
    while left:
        signal = bell.fresh()
        for place in islice(waiting, GATHER_WINDOW - len(asked)):
            asked[place] = _ask_for(calls[place], bell)
        answered = [place for place, pending in asked.items() if pending.done]
        for place in answered:
            body = asked.pop(place).result()
            if body["indexes"]:
                values[place] = _value((await calls[place]._read(body))[0])
                left -= 1
            else:
                asked[place] = _ask_for(calls[place], bell)
        if not answered and left:
            await signal
    return values


def _ask_for(call: FunctionCall[Any], bell: _Bell) -> Pending[Any]:
    pending = call._ask(0, 1, LONGEST_POLL_S)
    pending.tell(bell.ring)
    return pending


def _refuse_client(client: Any) -> None:
    if client is not None:
        raise UnsupportedError(
            "FunctionCall.from_id(client=...) is not supported by nomadfn; leave it out, a profile says whom to ask"
        )


def _value(outcome: tuple[bool, Any]) -> Any:
    good, value = outcome
    if not good:
        raise value
    return value


FunctionCall.gather = Verb(_gather, None)
