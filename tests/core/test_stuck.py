"""Short inputs beside long ones: nothing waits behind a long one, and the others' work is hardly disturbed by it."""

from __future__ import annotations

from nomadfn_agent import wire
from test_core import World, of

from nomadfn.core import effects
from nomadfn.core.pool import QUIET_S, STUCK_S, ahead
from nomadfn.core.virtual import Conditions, VirtualWorld

SHORT_S = 0.0001
NO_OP_S = 1e-6
LONG_S = 1.0
INPUTS = 10_000


def a_world(containers: int = 2) -> tuple[World, dict[str, effects.Deliver]]:
    """A function whose inputs are short, and containers that hold 20 of them each."""
    world = World(capacity=containers, autoscaler=wire.AutoscalerSettings(min_containers=containers))
    world.submit(b"x")
    world.start(containers)
    (deliver,) = of(world.settle(), effects.Deliver)
    world.answer(deliver, run_s=SHORT_S)
    world.submit(*[b"x"] * 20 * containers)
    return world, {one.container: one for one in of(world.settle(), effects.Deliver)}


def begin(world: World, deliver: effects.Deliver, count: int, stuck_s: float = 0.0) -> None:
    """The first `count` of these are done."""
    part = deliver.deliveries[:count]
    results = [wire.OK] * count, [b"r"] * count
    run_ns, stuck_ns = int(SHORT_S * 1e9) * count, int(stuck_s * 1e9)
    world.core.outputs(world.now, deliver.container, part, *results, run_ns, stuck_ns)


def test_one_long_input_does_not_change_how_much_is_sent_ahead() -> None:
    world, given = a_world(1)
    (deliver,) = given.values()
    function = world.core.function(world.function)
    before = ahead(function)
    world.core.outputs(world.now, deliver.container, deliver.deliveries[:1], [wire.OK], [b""], int(LONG_S * 1e9))
    assert ahead(function) > before / 8
    begin(world, effects.Deliver(deliver.container, "", deliver.deliveries[1:], [], [], []), 19)
    assert ahead(function) == before


def test_a_function_that_has_become_slow_is_soon_known_as_slow() -> None:
    world, given = a_world(1)
    (deliver,) = given.values()
    for delivery in deliver.deliveries[:10]:
        world.core.outputs(world.now, deliver.container, [delivery], [wire.OK], [b""], 100_000_000)
    assert ahead(world.core.function(world.function)) == 0


def test_a_container_with_nothing_to_do_has_the_others_asked_sooner() -> None:
    world, given = a_world()
    (one, first), (two, second) = given.items()
    begin(world, second, 20)
    assert of(world.wait(QUIET_S / 2), effects.Recall) == []
    (recall,) = of(world.wait(STUCK_S - QUIET_S), effects.Recall)
    assert (recall.container, recall.deliveries) == (one, first.deliveries[1:])
    world.core.returned(world.now, one, recall.deliveries)
    assert {deliver.container for deliver in of(world.settle(), effects.Deliver)} == {two}


def test_outputs_from_before_a_long_input_are_no_progress() -> None:
    """They are sent beside it. Else the container would get more ahead, and be asked for it late."""
    world, given = a_world()
    (one, first), (two, second) = given.items()
    world.now += STUCK_S
    begin(world, second, 5)
    begin(world, first, 5, stuck_s=STUCK_S)
    world.submit(*[b"x"] * 100)
    found = world.settle()
    assert {deliver.container for deliver in of(found, effects.Deliver)} == {two}
    (recall,) = of(world.wait(QUIET_S), effects.Recall)
    assert (recall.container, recall.deliveries) == (one, first.deliveries[6:])


def test_what_is_given_out_is_not_shared_with_a_container_that_is_stuck() -> None:
    """Nor is anything kept for it: the others get all there is. What it gives makes it one of them again."""
    world, given = a_world()
    (one, first), (two, second) = given.items()
    begin(world, second, 20)
    (recall,) = of(world.wait(STUCK_S), effects.Recall)
    world.core.returned(world.now, one, recall.deliveries)
    world.submit(*[b"x"] * 200)
    found = of(world.settle(), effects.Deliver)
    assert {deliver.container for deliver in found} == {two}
    assert sum(len(deliver.deliveries) for deliver in found) == 1 + ahead(world.core.function(world.function))
    world.submit(*[b"x"] * 100)
    begin(world, first, 1)
    assert one in {deliver.container for deliver in of(world.settle(), effects.Deliver)}


def test_a_map_with_long_inputs_takes_little_longer_than_without() -> None:
    """Four containers, ten long inputs. Processor time costs nothing here: it is what waiting adds."""
    ratio = short_ones_s(long=10) / short_ones_s(long=0)
    assert ratio < 2.0, f"{ratio:.2f} × alone"


def short_ones_s(long: int) -> float:
    """Until the last short one is done, without the time in which all containers were in a long one."""
    settings = wire.AutoscalerSettings(min_containers=4, max_containers=4)
    world = VirtualWorld([wire.FunctionSpec(name="f", autoscaler=settings)], Conditions(hop_s=0.0003))
    world.call(0.0, "me", "f", [NO_OP_S] * INPUTS)
    world.run()
    started = world.now
    every = INPUTS // long if long else INPUTS + 1
    runs = [LONG_S if number % every == every // 2 and long else NO_OP_S for number in range(INPUTS)]
    call = world.call(started, "me", "f", runs)
    world.run()
    last = max(at for index, at in call.done_at.items() if runs[index] == NO_OP_S)
    spans = sorted((at - LONG_S, at) for index, at in call.done_at.items() if runs[index] == LONG_S)
    return last - started - blocked_s(spans, last)


def blocked_s(spans: list[tuple[float, float]], until: float) -> float:
    total_s, running, since = 0.0, 0, 0.0
    for at, change in sorted([(begun, 1) for begun, _ in spans] + [(ended, -1) for _, ended in spans]):
        if running == 4:
            total_s += max(0.0, min(at, until) - since)
        running, since = running + change, at
    return total_s
