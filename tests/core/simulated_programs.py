"""What happens in a simulated world: the functions, the programs that call them, and the faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nomadfn_agent import wire
from simulated_clients import Client, ClientCall, Work, index_of

from nomadfn.core.limits import Limits

if TYPE_CHECKING:
    from simulation import World

LEVELS = 3


@dataclass
class Traits:
    """How a function behaves, beyond its definition."""

    run_s: float
    start_s: float
    start_fails: float = 0.0
    nests: list[int] = field(default_factory=list)
    hangs: bool = False
    poisons: bool = False
    streams: bool = False
    """It is a generator."""


class Programs:
    """Everything that one seed decides, but for the latencies."""

    def __init__(self, world: World) -> None:
        self.world = world
        rng = self.random = world.random
        self.calls: dict[str, ClientCall] = {}
        self.variants: dict[str, wire.Variation] = {}
        """By function id, as the registry has them."""
        self.removed: set[str] = set()
        """Functions that the latest deploy of their app does not have."""
        self.open_plans = 0
        self.idle_crashes = 0
        self.traits: list[Traits] = []
        self.capacity = rng.choice((None, 1, 2, 2, 4, 8))
        small = rng.random() < 0.4
        self.limits = (
            Limits(rng.randint(5, 40), total_inputs=rng.randint(10, 60), pending_spawns=rng.randint(5, 60))
            if small
            else Limits()
        )
        count = rng.randint(1, 3)
        self.specs = [self._function(index, count, small) for index in range(count)]
        self.spec = wire.AppSpec(name="deployed", functions=list(self.specs), code=wire.CodeRef(digest="1"))
        self.version = 1

    def _function(self, index: int, count: int, small: bool) -> wire.FunctionSpec:
        rng = self.random
        minimum = rng.choice((0, 0, 0, 1, 2))
        maximum = rng.choice((None, None, max(1, minimum), minimum + 3))
        traits = Traits(rng.choice((0.0002, 0.002, 0.03, 0.3, 1.0)), rng.choice((0.005, 0.05, 0.5)))
        traits.nests = list(range(index + 1, count)) if rng.random() < 0.5 else []
        if maximum is None and not small and rng.random() < 0.2:
            traits.nests.append(index)
        traits.hangs = not traits.nests and rng.random() < 0.25
        traits.poisons = rng.random() < 0.25
        traits.start_fails = rng.choice((0.0, 0.0, 0.0, 0.3, 1.0)) if not traits.nests else 0.0
        self.traits.append(traits)
        max_inputs = rng.choice((1, 1, 1, 3))
        batch_size = rng.choice((0, 0, 2, 5)) if not traits.nests else 0
        traits.streams = not traits.nests and not batch_size and rng.random() < 0.4
        return wire.FunctionSpec(
            name=f"f{index}",
            autoscaler=wire.AutoscalerSettings(
                min_containers=minimum,
                max_containers=maximum,
                buffer_containers=rng.choice((0, 0, 0, 2)),
                scaledown_window_s=rng.choice((2.0, 2.0, 5.0)),
            ),
            timeout_s=3.0 if traits.hangs else 100_000.0,
            startup_timeout_s=3.0,
            retries=wire.RetryPolicy(
                rng.choice((0, 0, 1, 3)), rng.choice((1.0, 2.0)), rng.choice((0.0, 0.01, 1.0)), max_delay_s=2.0
            ),
            max_inputs=max_inputs,
            target_inputs=rng.choice((None, None, 1, max_inputs - 1 or None)),
            is_async=rng.random() < 0.5,
            is_generator=traits.streams,
            max_batch_size=batch_size,
            batch_wait_ms=rng.choice((0, 5, 100)) if batch_size else 0,
            on_batch_error=rng.choice(("fail", "bisect")) if batch_size else "fail",
        )

    def begin(self) -> None:
        """Lay out who calls what and when, and what goes wrong meanwhile."""
        rng, world = self.random, self.world
        for number in range(rng.randint(1, 3)):
            self._plan_client(number)
        for _ in range(rng.choice((0, 0, 1, 2))):
            self._plan_at(rng.uniform(0.05, 5), world.crash)
        for _ in range(rng.choice((0, 0, 1, 3))):
            self._plan_at(rng.uniform(0.05, 5), world.compact)
        for _ in range(rng.choice((0, 0, 2, 5))):
            self._plan_at(rng.uniform(0.05, 4), self._lose_a_container)
        for _ in range(rng.choice((0, 0, 1, 3))):
            self._plan_at(rng.uniform(0.05, 5), self._override)
        for _ in range(rng.choice((0, 0, 0, 1, 2))):
            self._plan_at(rng.uniform(0.05, 4), self._deploy)

    def _plan_at(self, when: float, action: Callable[[], object]) -> None:
        self.open_plans += 1

        def happen() -> None:
            self.open_plans -= 1
            action()

        self.world.at(when, happen)

    def _plan_client(self, number: int) -> None:
        rng = self.random
        spec, app = None, "ap-deployed"
        if rng.random() < 0.4:
            app = f"ap-own{number}"
            spec = wire.AppSpec(name=f"own{number}", functions=list(self.specs))
        client = Client(self.world, f"se-{number}", app, spec)
        self.world.clients.append(client)
        start_s = rng.uniform(0, 1)
        self._plan_at(start_s, client.connect)
        for _ in range(rng.randint(1, 4)):
            self._plan_at(start_s + rng.uniform(0, 3), lambda: self._call(client))
        for _ in range(rng.choice((0, 0, 0, 1, 2))):
            cut_s = start_s + rng.uniform(0, 4)
            self._plan_at(cut_s, client.disconnect)
            away_s = rng.choice((0.001, 0.1, 2.0, 28.0, 40.0))
            self._plan_at(cut_s + away_s, client.connect)
        if rng.random() < 0.1:
            self._plan_at(start_s + rng.uniform(0, 4), client.vanish)
        if spec is not None and rng.random() < 0.4:
            self._plan_at(start_s + rng.uniform(1, 5), client.detach_and_end)

    def _call(self, client: Client) -> None:
        if client.gone:
            return
        rng = self.random
        call = self.make_call(client, rng.randrange(len(self.specs)))
        client.start(call)
        if call.reader is not None:
            for _ in range(rng.randint(0, 4)):
                client.start(self.make_call(client, index_of(call.function)))
        if rng.random() < 0.15:
            terminate = rng.random() < 0.3
            self._plan_at(
                self.world.elapsed + rng.choice((0.001, 0.1, 0.5, 2.0)), lambda: client.cancel(call, terminate)
            )

    def make_call(
        self, client: Client, function: int, *, nested_by: int | None = None, levels: int = LEVELS
    ) -> ClientCall:
        rng = self.random
        nested = nested_by is not None
        kind = rng.choice((wire.REMOTE, wire.MAP) if nested else (wire.REMOTE, wire.MAP, wire.SPAWN, wire.SPAWN_MAP))
        # A function that calls itself stops after a few levels.
        # Functions that never start fail slowly, a full limit at a time.
        most = 4 if nested else 12 if self.traits[function].start_fails else 50
        if self.traits[function].streams:
            kind = wire.REMOTE
        inputs = 1 if kind in (wire.REMOTE, wire.SPAWN) else rng.randint(1, most)
        if nested_by == function:
            kind, inputs = wire.REMOTE, 1
        else:
            levels = LEVELS
        call = ClientCall(
            id=f"fc-{len(self.calls):06d}",
            kind=kind,
            function=self._choose(client.app, function),
            works=[self._with_parts(function, self._work(function, i, levels)) for i in range(inputs)],
            priority=rng.choice((0, 0, 0, 1)),
            deadline_s=rng.uniform(0, 3) if rng.random() < 0.1 else None,
            window=rng.choice((3, 10, 30, 10_000)),
        )
        self.calls[call.id] = call
        return call

    def _with_parts(self, function: int, work: Work) -> Work:
        if not self.traits[function].streams:
            return work
        return work._replace(parts=self.random.choice((0, 1, 3, 10, 40)))

    def _choose(self, app: str, function: int) -> str:
        """The function itself, or one of a few variants of it."""
        known = self.world.core.state.apps.get(app)
        base = f"f{function}"
        if self.random.random() < 0.8 or known is None or known.stopping or base not in known.functions:
            return f"{app}/{base}"
        values = wire.FunctionSpec(name="", cpu=float(self.random.randint(1, 3)))
        variation = wire.Variation(base=base, fields=["cpu"], values=values)
        made, _ = self.world.core.put_variant(self.world.now, app, variation)
        self.variants[made.id] = variation
        return made.id

    def _work(self, function: int, salt: int, levels: int) -> Work:
        rng, traits = self.random, self.traits[function]
        seconds = traits.run_s * rng.uniform(0.5, 2)
        chance = rng.random()
        if traits.poisons and chance < 0.03:
            return Work("poison", seconds, salt=salt)
        if traits.hangs and chance > 0.97:
            return Work("hang", 0.0, salt=salt)
        if traits.nests and 0.3 < chance < 0.5 and levels > 0:
            return Work("nest", seconds, levels, rng.choice(traits.nests), salt)
        if 0.5 < chance < 0.6:
            return Work("raise", seconds, rng.randint(1, 4), salt=salt)
        return Work("ok", seconds, salt=salt)

    def _lose_a_container(self) -> None:
        """A crash that nobody's code is to blame for; of an idle one only once, three in a row are failed starts."""
        able = [one for one in self.world.containers.values() if one.ready]
        if not able:
            return
        container = self.random.choice(able)
        known = self.world.core.container(container.id)
        if known is None or (not known.held and self.idle_crashes):
            return
        self.idle_crashes += not known.held
        container.die("killed by SIGKILL")

    def _override(self) -> None:
        rng = self.random
        index = rng.randrange(len(self.specs))
        function = f"ap-deployed/f{index}"
        minimum = rng.randint(0, 3)
        settings: dict[str, int | float | None] = {"min_containers": minimum}
        settings["max_containers"] = rng.choice((None, max(minimum, 1), minimum + 4))
        if index in self.traits[index].nests:
            settings["max_containers"] = None
        if rng.random() < 0.5:
            settings["buffer_containers"] = rng.randint(0, 3)
        if function in self.removed:
            return
        self.world.note("override", function, sorted(settings.items(), key=str))
        self.world.core.override(function, settings)

    def _deploy(self) -> None:
        """A new revision; some leave a function out, which the next one brings back."""
        self.version += 1
        specs = list(self.specs)
        if self.random.random() < 0.4:
            left_out = specs.pop(self.random.randrange(len(specs)))
            self.removed = {f"ap-deployed/{left_out.name}"}
            self.world.orphan_calls_of(f"ap-deployed/{left_out.name}")
        else:
            self.removed = set()
        self.world.note("deploy", self.version, *sorted(self.removed))
        self.spec = wire.AppSpec(name="deployed", functions=specs, code=wire.CodeRef(digest=str(self.version)))
        self.world.core.deploy(self.world.now, "ap-deployed", self.spec, self.version)
        for spec in self.specs:
            self.world.lost(f"ap-deployed/{spec.name}")
