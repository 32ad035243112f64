"""Containers of a simulated world: they start late or never, run inputs, answer recalls late, and die."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from nomadfn_agent import wire
from nomadfn_agent.wire import payload as payloads
from simulated_clients import Client, Work
from simulated_streams import Producer

from nomadfn.core import effects

if TYPE_CHECKING:
    from simulation import World

CANCELLED = payloads.encode(payloads.Failure("InputCancellation", "interrupted"))
STOPPED = "exit code 0"


Order = (
    effects.Deliver
    | effects.DeliverBatch
    | effects.Recall
    | effects.Interrupt
    | effects.StopContainer
    | effects.Consumed
)


class Item(NamedTuple):
    delivery: int
    key: tuple[str, int]
    work: Work
    payload: bytes


class SimulatedContainer:
    """One container: starts after a while, runs what it is given in order, answers recalls when it comes to it."""

    def __init__(self, world: World, id: str, function: int, slots: int) -> None:
        self.world = world
        self.id = id
        self.function = function
        self.slots = slots
        self.ready = False
        self.alive = True
        self.condemned = False
        """The core has ordered its end at once."""
        self.queue: list[Item] = []
        self.running: dict[int, Item] = {}
        self.units: dict[int, set[int]] = {}
        """What takes a slot: a delivery, or a batch by its first one, and what of it still runs."""
        self._batch: list[Item] = []
        self._wholes: dict[int, list[Item]] = {}
        """First deliveries in the queue that stand for a whole batch."""
        self.interrupted: set[int] = set()
        self.outstanding: set[int] = set()
        """Deliveries that the core has sent and heard nothing of."""
        self._producers: dict[int, Producer] = {}
        self._outputs: list[tuple[int, int, bytes, float]] = []
        self._arrival = 0.0
        self._departure = 0.0
        self._children: list[Client] = []

    # Life

    def start(self) -> None:
        world = self.world
        traits = world.programs.traits[self.function]
        delay_s = traits.start_s * world.random.uniform(0.5, 2)
        if world.random.random() < traits.start_fails:
            way = world.random.randrange(3)
            if way == 0:
                world.after(delay_s, self._fail_start)
            elif way == 1:
                world.after(delay_s, lambda: self.die("exit code 3"))
            # Else it never gets ready, and `startup_timeout` has to end it.
            return
        world.after(delay_s, self._get_ready)

    def _fail_start(self) -> None:
        if self.alive:
            self._send(lambda: self.world.core.container_start_failed(self.world.now, self.id, "ImportError"))
            self.world.after(0.01, lambda: self.die("exit code 1"))

    def _get_ready(self) -> None:
        if self.alive:
            self.ready = True
            self._send(lambda: self.world.core.container_ready(self.world.now, self.id, self.slots))

    def die(self, what: str) -> None:
        if not self.alive:
            return
        world = self.world
        self.alive = self.ready = False
        if what != STOPPED:
            world.lost(f"{world.apps_of[self.id]}/f{self.function}")
        for item in self.running.values():
            world.end_run(item.key, self)
            if (producer := self._producers.get(item.delivery)) is not None and producer.given:
                world.broken.add(item.key)
        self.queue.clear()
        self.running.clear()
        self.units.clear()
        for child in self._children:
            child.vanish()
        soon = world.elapsed + world.latency()
        # The news of its end may overtake its last outputs.
        at = max(soon, self._departure) if world.random.random() < 0.5 else soon

        def report() -> None:
            world.containers.pop(self.id)
            world.core.container_lost(world.now, self.id, what, "")

        world.at(at, world.in_this_epoch(report))

    def _send(self, action: Callable[[], None]) -> None:
        world = self.world
        self._departure = max(self._departure, world.elapsed + world.latency())
        world.at(self._departure, world.in_this_epoch(action))

    # What the core asks

    def receive(self, effect: Order) -> None:
        if isinstance(effect, effects.Deliver | effects.DeliverBatch):
            self.outstanding.update(effect.deliveries)
        elif isinstance(effect, effects.Interrupt):
            self.interrupted.update(effect.deliveries)
        elif isinstance(effect, effects.StopContainer):
            self.condemned = self.condemned or not effect.grace_s
            left = self.outstanding - self.interrupted
            assert not effect.grace_s or not left, f"{self.id} is stopped ({effect.reason}) with {sorted(left)}"
        world = self.world
        self._arrival = max(self._arrival, world.elapsed + world.latency())
        world.at(self._arrival, lambda: self._take(effect))

    def _take(self, effect: Order) -> None:
        if not self.alive:
            return
        match effect:
            case effects.Deliver():
                for delivery, index, payload in zip(effect.deliveries, effect.indexes, effect.payloads, strict=True):
                    self.queue.append(Item(delivery, (effect.call, index), Work.decode(payload), payload))
                self._pump()
            case effects.DeliverBatch():
                self._take_batch(effect)
            case effects.Recall():
                slow = self.world.random.random() < 0.1
                wait_s = self.world.random.uniform(0, 6) if slow else self.world.latency()
                self.world.after(wait_s, lambda: self._give_back(effect.deliveries))
            case effects.Consumed():
                if effect.delivery in self.running:
                    self._producers[effect.delivery].consumed(effect.number)
            case effects.Interrupt():
                self._give_back(effect.deliveries)
                stubborn = self.world.random.random() < 0.2
                for delivery in effect.deliveries:
                    if delivery in self.running and not stubborn:
                        self.cancel(delivery)
                    elif delivery in self._producers:
                        self._producers[delivery].cancel()  # It ends at its next part, whatever its code catches.
            case effects.StopContainer():
                wait_s = 0.0 if effect.grace_s == 0 else self.world.random.uniform(0, min(effect.grace_s, 0.1))
                self.world.after(wait_s, lambda: self.die(STOPPED if effect.grace_s else "killed by SIGKILL"))

    def _give_back(self, deliveries: list[int]) -> None:
        if not self.alive:
            return
        withdrawn = [item.delivery for item in self.queue if item.delivery in deliveries]
        for first in [one for one in withdrawn if one in self._wholes]:
            # A batch that has not begun goes on without what was cancelled of it.
            whole = [item for item in self._wholes.pop(first) if item.delivery not in deliveries]
            if whole:
                position = [item.delivery for item in self.queue].index(first)
                self.queue.insert(position + 1, whole[0])
                self._wholes[whole[0].delivery] = whole
        self.queue = [item for item in self.queue if item.delivery not in deliveries]
        self._flush()

        def arrive() -> None:
            self.outstanding -= set(withdrawn)
            self.world.core.returned(self.world.now, self.id, withdrawn)

        self._send(arrive)

    # Running

    def _take_batch(self, effect: effects.DeliverBatch) -> None:
        for column in zip(effect.deliveries, effect.calls, effect.indexes, effect.payloads, strict=True):
            delivery, call, index, payload = column
            self._batch.append(Item(delivery, (call, index), Work.decode(payload), payload))
        if effect.last:
            first = self._batch[0]
            self.queue.append(first)
            self._wholes[first.delivery], self._batch = self._batch, []
            self._pump()

    def _pump(self) -> None:
        while self.alive and self.queue and len(self.units) < self.slots:
            item = self.queue.pop(0)
            whole = self._wholes.pop(item.delivery, [item])
            self.units[item.delivery] = {one.delivery for one in whole}
            for one in whole:
                self.running[one.delivery] = one
                self.world.begin_run(one.key, self)
            if any(one.work.does == "hang" and not one.work.parts for one in whole):
                continue  # With a batch, all of it hangs.
            longest = max(one.work.seconds for one in whole)
            if len(whole) > 1 and self._raises(whole):
                self.world.after(longest, lambda whole=whole: self._raise_for(whole))  # type: ignore[misc]
                continue
            for one in whole:
                self._run(one._replace(work=one.work._replace(seconds=longest)) if len(whole) > 1 else one)

    def _raises(self, whole: list[Item]) -> bool:
        """Whether the function raises for this batch, all of which is to be run again by halves."""
        works = [one.work for one in whole]
        spec = self.world.programs.specs[self.function]
        if spec.on_batch_error != "bisect" or any(work.does == "poison" for work in works):
            return False
        raising = [one.work.does == "raise" and self.world.raised(one.key) <= one.work.times for one in whole]
        return any(raising)  # each of them counts its attempt

    def _raise_for(self, whole: list[Item]) -> None:
        for one in whole:
            if one.delivery in self.running:
                self._finish(one.delivery, wire.BATCH_RAISED, b"")

    def cancel(self, delivery: int) -> None:
        self._finish(delivery, wire.FAILURE, CANCELLED)

    def give(self, delivery: int, number: int, payloads: list[bytes]) -> None:
        """Send parts of what runs."""
        statuses = [wire.OK] * len(payloads)
        self._send(lambda: self.world.core.parts(self.id, delivery, number, statuses, payloads))

    def _run(self, item: Item) -> None:
        if item.work.parts:
            self._producers[item.delivery] = Producer(self, item, lambda: self._go_on(item))
        else:
            self._go_on(item)

    def _go_on(self, item: Item) -> None:
        world, work = self.world, item.work
        match work.does:
            case "poison":
                world.after(work.seconds, lambda: self._crash(item))
            case "hang":
                pass
            case "nest":
                child = Client(world, f"se-{self.id}-{item.delivery}", world.apps_of[self.id], None, self.id)
                self._children.append(child)
                world.clients.append(child)
                child.connect()
                call = world.programs.make_call(child, work.function, nested_by=self.function, levels=work.times - 1)
                call.on_done = lambda: self._nested(item, child)
                child.start(call)
            case _:
                world.after(work.seconds, lambda: self._complete(item))

    def _crash(self, item: Item) -> None:
        if item.delivery in self.running:
            self.die("killed by SIGSEGV")

    def _nested(self, item: Item, child: Client) -> None:
        self.world.after(item.work.seconds, lambda: self._complete(item))
        self.world.after(item.work.seconds, child.end)

    def _complete(self, item: Item) -> None:
        if item.delivery not in self.running:
            return
        if item.work.does == "raise" and self.world.raised(item.key) <= item.work.times:
            self._finish(item.delivery, wire.EXCEPTION, b"raised")
        else:
            self._finish(item.delivery, wire.OK, b"done " + item.payload)

    def _finish(self, delivery: int, status: int, payload: bytes) -> None:
        item = self.running.pop(delivery)
        for first, left in list(self.units.items()):
            left.discard(delivery)
            if not left:
                del self.units[first]
        self.world.end_run(item.key, self)
        self._outputs.append((delivery, status, payload, item.work.seconds))
        if len(self._outputs) == 1:
            self.world.after(self.world.random.choice((0.0, 0.001, 0.003)), self._flush)
        self._pump()

    def _flush(self) -> None:
        if not self._outputs or not self.alive:
            return
        batch, self._outputs = self._outputs, []
        deliveries = [one[0] for one in batch]
        run_ns = int(sum(one[3] for one in batch) * 1e9)

        def arrive() -> None:
            self.outstanding -= set(deliveries)
            self.world.core.outputs(
                self.world.now, self.id, deliveries, [one[1] for one in batch], [one[2] for one in batch], run_ns
            )

        self._send(arrive)
        if self.world.random.random() < 0.05:
            self._send(arrive)
