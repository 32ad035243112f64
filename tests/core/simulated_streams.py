"""Streams of a simulated world: generators that give parts within a window, readers that take them at their pace."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nomadfn_agent import wire

from nomadfn.core import effects

if TYPE_CHECKING:
    from simulated_clients import Client, ClientCall
    from simulated_containers import Item, SimulatedContainer
    from simulation import World

WINDOW = 8
"""Parts that may be given and not taken."""
FRAME_PARTS = 3


def part_of(key: tuple[str, int], delivery: int, number: int) -> bytes:
    return f"{key[0]}[{key[1]}] {delivery} {number}".encode()


class Producer:
    """A generator that runs in a container: gives its parts in small frames, then does what its work says."""

    def __init__(self, container: SimulatedContainer, item: Item, then: Callable[[], None]) -> None:
        self.item = item
        self.given = 0
        self._consumed = 0
        self._container = container
        self._then = then
        self._waits = self._cancelled = False
        self._step()

    def consumed(self, number: int) -> None:
        assert number <= self.given, f"{self.item.key}: {number} parts are consumed, {self.given} were given"
        self._consumed = max(self._consumed, number)
        if self._waits and self.given - self._consumed < WINDOW:
            self._waits = False
            self._step()

    def cancel(self) -> None:
        self._cancelled = True
        if self._waits:
            self._waits = False
            self._step()

    def _step(self) -> None:
        world = self._container.world
        world.after(self.item.work.seconds / (1 + self.item.work.parts), self._give)

    def _give(self) -> None:
        container, item = self._container, self.item
        if not container.alive or item.delivery not in container.running:
            return
        if self._cancelled:
            container.cancel(item.delivery)
            return
        left = item.work.parts - self.given
        if left == 0:
            self._then()
            return
        count = min(left, container.world.random.randint(1, FRAME_PARTS), WINDOW - (self.given - self._consumed))
        payloads = [part_of(item.key, item.delivery, self.given + 1 + place) for place in range(count)]
        self.given += count
        container.give(item.delivery, self.given, payloads)
        if self.given - self._consumed < WINDOW:
            self._step()
        else:
            self._waits = True


class Reader:
    """Whoever iterates over one call: every part once, in its order, of one attempt."""

    def __init__(self, client: Client, call: ClientCall) -> None:
        self.attempt = 0
        self.received = 0
        self.taken = 0
        self.resumed = False
        """Its client has asked for the rest of an attempt, which may be gone."""
        self._client = client
        self._call = call
        self._told = 0
        self._takes = False

    def receive(self, effect: effects.SendParts) -> None:
        where = f"{effect.call}[{effect.index}]"
        assert self.attempt in (0, effect.attempt), f"{where}: parts of {self.attempt} and of {effect.attempt}"
        first = effect.number - len(effect.payloads) + 1
        assert first <= self.received + 1, f"{where}: part {self.received + 1} is missing before {first}"
        if 0 in self._call.results:
            assert effect.number <= self.received, f"{where}: a new part behind the result"
        for number, payload in enumerate(effect.payloads, first):
            assert payload == part_of((effect.call, effect.index), effect.attempt, number), f"{where}: {payload!r}"
        self.attempt = effect.attempt
        self.received = max(self.received, effect.number)
        self.take_more()

    def take_more(self) -> None:
        """Take what has come, some of it at a time."""
        if self._takes or self.taken >= self.received:
            return
        self._takes = True
        world = self._client.world
        world.after(world.random.choice((0.0, 0.0, 0.001, 0.05, 0.5)), self._take)

    def _take(self) -> None:
        self._takes = False
        if self._client.gone or 0 in self._call.refused:
            return
        self.taken = min(self.received, self.taken + self._client.world.random.randint(1, WINDOW))
        if self.taken - self._told >= WINDOW // 4:
            self.tell()
        self.take_more()

    def tell(self) -> None:
        """Say what is taken; what is lost with a connection is said again after it."""
        client, call, taken = self._client, self._call, self.taken
        self._told = taken
        if client.connected and taken:
            client.later(lambda: client.world.core.parts_taken(client.id, call.id, 0, taken))


def check_kept(world: World) -> None:
    """The core keeps no more of a stream than its window and a frame."""
    for (call, index), stream in world.core.state.streams.items():
        kept = sum(len(payloads) for _, _, payloads in stream.parts)
        assert kept <= WINDOW + FRAME_PARTS, f"{kept} parts of {call}[{index}] are kept"


def check_result(call: ClientCall, status: int, error: str, broken: bool) -> None:
    """Whether this may be what a stream ends with, after what its reader has got."""
    reader, work = call.reader, call.works[0]
    assert reader is not None
    if status in (wire.OK, wire.EXCEPTION):
        assert reader.received == work.parts, f"{call.id} ends with {reader.received} of {work.parts} parts"
    elif error == "InternalFailure":
        assert broken or reader.resumed or work.does == "poison", f"{call.id}: no container of it was lost"
