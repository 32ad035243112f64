"""One stream through many takeovers, from seeds: its reader gets every part once and in order, or is told why not.

A leader after the other is a fresh core; connections end with it, with what was on its way. The container keeps what is
not taken and says it again, the client says how far it is, and either may be back first.
"""

from __future__ import annotations

import heapq
import os
import random
from collections.abc import Callable

import pytest
from nomadfn_agent import wire
from nomadfn_agent.wire import payload as payloads

from nomadfn.core import effects
from nomadfn.core.calls import Submission
from nomadfn.core.core import Core

FIRST, LAST = map(int, os.environ.get("SIMULATION_SEEDS", "0:400").split(":"))
CHUNK = 100
WINDOW = 8
CALL, SESSION, APP = f"fc-{1:032x}", "se-1", "ap-1"
SPEC = wire.AppSpec(name="app", functions=[wire.FunctionSpec(name="f", is_generator=True)])


class World:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1_000.0
        self.epoch = 0
        self.parts = self.random.randint(0, 60)
        self.lost = False
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.container = Container(self)
        self.client = Client(self)
        self.core: Core
        self.lead()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay_s, self._count, action))

    def pause(self) -> float:
        return self.random.choice((0.0, 0.001, 0.01, 0.1, 0.5))

    def lead(self) -> None:
        """A control service begins to lead; the one before is gone with all connections to it."""
        self.epoch += 1
        self.core = Core(None, epoch=self.epoch, capacity=4, first_delivery=1_000 * self.epoch)
        self.core.restore_app(self.now, APP, SPEC, "", True, 1)
        self.client.link += 1
        self.container.link += 1
        self.after(self.pause(), self.client.connect)
        if self.epoch > 1:
            self.core.hold_back(True)
            if self.container.alive:
                found = self.core.container_found(self.now, "ct-1", APP, "f", 0)
                assert found is not None
                self.after(self.pause(), self.container.attach)
            epoch = self.epoch
            self.after(1.0, lambda: self.core.hold_back(False) if self.epoch == epoch else None)
        if self.random.random() < 0.7:
            self.after(self.random.uniform(0, 3), self.lead)
        elif self.random.random() < 0.3:
            self.after(self.random.uniform(0, 3), self.container.die)

    def run(self) -> None:
        for _ in range(20_000):
            if self.client.ended:
                return
            self.now, _, action = heapq.heappop(self._events)
            action()
            self.core.tick(self.now)
            for effect in self.core.settle(self.now):
                self._carry_out(effect)
            self.core.check_invariants()
            self.after(0.25, lambda: None)
        raise AssertionError(f"no end: {vars(self.client)}, {vars(self.container)}")

    def _carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.StartContainer(container):
                if not self.container.alive:
                    assert not self.client.attempt, "a stream that had begun is to be run again"
                    self.client.ended = True  # Nothing was given: it runs as if it were new.
                self.container.start(container.id)
            case effects.Deliver(_, _, deliveries) | effects.Interrupt(_, deliveries):
                begins = isinstance(effect, effects.Deliver)
                self.container.send(lambda: self.container.take(deliveries[0], begins))
            case effects.Consumed(_, delivery, number):
                self.container.send(lambda: self.container.consumed(delivery, number))
            case effects.SendParts() | effects.SendResults():
                self.client.send(lambda: self.client.receive(effect))


class Linked:
    """One end of a connection: what comes over it comes in order, and not after its end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.link = 0
        self._arrival = 0.0

    def send(self, action: Callable[[], None]) -> None:
        world, link = self.world, self.link
        self._arrival = max(self._arrival, world.now + world.pause())
        world.after(self._arrival - world.now, lambda: action() if self.link == link else None)


class Container(Linked):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.id = ""
        self.alive = True
        self.attached = False
        self.delivery = 0
        self.given = self.taken = 0
        self.done = False
        self._kept: list[tuple[int, int]] = []

    def start(self, id: str) -> None:
        if not self.id and self.alive:
            self.id, self.attached = id, True
            self.send(lambda: self.world.core.container_ready(self.world.now, id))

    def attach(self) -> None:
        if not self.alive:
            return
        self.id, self.attached = "ct-1", True
        held = [self.delivery] if self.delivery else []
        count = len(held)
        self.send(
            lambda: self.world.core.container_attached(self.world.now, "ct-1", 1, held, [CALL] * count, [0] * count)
        )
        for number, size in list(self._kept):
            self._tell(number, size)
        if self.done:
            self._end()

    def take(self, delivery: int, begins: bool) -> None:
        if begins:
            self.delivery = delivery
            self._later()
        elif delivery == self.delivery:
            self.delivery = 0

    def consumed(self, delivery: int, number: int) -> None:
        if delivery == self.delivery and number > self.taken:
            self.taken = number
            self._kept = [one for one in self._kept if one[0] > number]
            self._later()

    def die(self) -> None:
        self.alive = False
        self.world.lost = True
        self.link += 1
        id = self.id if self.world.epoch == 1 else "ct-1"
        if id:
            self.world.after(0.0, lambda: self.world.core.container_lost(self.world.now, id, "killed", ""))

    def _later(self) -> None:
        self.world.after(self.world.pause(), self._give)

    def _give(self) -> None:
        if not self.alive or not self.delivery or self.done or self.given - self.taken >= WINDOW:
            return
        if self.given == self.world.parts:
            self.done = True
            self._end()
            return
        size = min(self.world.random.randint(1, 3), self.world.parts - self.given)
        self.given += size
        self._kept.append((self.given, size))
        self._tell(self.given, size)
        self._later()

    def _tell(self, number: int, size: int) -> None:
        delivery, id = self.delivery, self.id
        data = [str(one).encode() for one in range(number - size + 1, number + 1)]
        self.send(lambda: self.world.core.parts(id, delivery, number, [0] * size, data))

    def _end(self) -> None:
        delivery, id = self.delivery, self.id
        self.send(lambda: self.world.core.outputs(self.world.now, id, [delivery], [wire.OK], [b""], 1))


class Client(Linked):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.attempt = self.received = self.taken = self.told = 0
        self.ended = False

    def connect(self) -> None:
        world = self.world
        attempt, told = self.attempt, self.told

        def arrive() -> None:
            world.core.open_session(SESSION)
            sub = Submission(CALL, f"{APP}/f", wire.REMOTE, 0, [b"x"], attempt=attempt)
            world.core.submit(world.now, SESSION, sub)
            world.core.parts_taken(SESSION, CALL, 0, told)

        self.send(arrive)

    def receive(self, effect: effects.SendParts | effects.SendResults) -> None:
        if self.ended:
            return
        if isinstance(effect, effects.SendResults):
            self.ended = True
            if effect.statuses == [wire.OK]:
                assert self.received == self.world.parts, f"{self.received} of {self.world.parts} parts have come"
            else:
                assert payloads.decode_failure(effect.payloads[0]).error == "InternalFailure"
                # A container that was busy when its leader went may have to be given up, and nothing else.
                assert self.world.lost or self.attempt, effect.payloads
            return
        assert self.attempt in (0, effect.attempt)
        self.attempt = effect.attempt
        first = effect.number - len(effect.payloads) + 1
        assert first <= self.received + 1, f"part {self.received + 1} is missing before {first}"
        assert effect.payloads == [str(one).encode() for one in range(first, effect.number + 1)]
        self.received = max(self.received, effect.number)
        self.world.after(self.world.pause(), self._take)

    def _take(self) -> None:
        self.taken = self.received
        if self.taken - self.told >= WINDOW // 4:
            self.told = self.taken
            told = self.told
            self.send(lambda: self.world.core.parts_taken(SESSION, CALL, 0, told))


@pytest.mark.parametrize("first", range(FIRST, LAST, CHUNK))
def test_a_stream_is_whole_through_every_takeover_or_its_reader_is_told(first: int) -> None:
    for seed in range(first, min(first + CHUNK, LAST)):
        try:
            World(seed).run()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
