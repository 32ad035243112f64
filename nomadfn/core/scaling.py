"""From what the state shows to what each function's pool shall be: sample, share, decide, apply."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain

from msgspec.structs import replace

from . import autoscaler, placement, pool
from .effects import FunctionChanged, StartContainer
from .model import READY, STARTING, STOPPING, Container, Function
from .state import State
from .tally import tally

INTERVAL_S = 0.25
"""How often a function that has containers or work is looked at, whatever happens."""
BUSY_INTERVAL_S = 0.01
"""The least time between two looks at a function whose inputs come and go."""


def scale(state: State, now: float) -> None:
    """Look at the functions whose turn it is; start, drain and stop containers."""
    soon = now + BUSY_INTERVAL_S
    for function in state.dirty.values():
        # An event too soon after the last look is looked at soon, not only at the next regular time.
        if function.next_decision > soon:
            function.next_decision = soon
    turn = [function for function in state.active.values() if _is_due(state, now, function)]
    if turn:
        _look(state, now, turn)
    for function in state.dirty.values():
        if now < function.next_decision < state.wake_at:
            state.wake_at = function.next_decision


def _look(state: State, now: float, turn: list[Function]) -> None:
    samples = {function.id: sample(state, now, function) for function in turn}
    for function in state.active.values():
        if function.id in samples:
            function.want = _want(state, function, samples[function.id])
        elif function.want is None or function.id in state.dirty:
            function.want = _want(state, function, sample(state, now, function))
    wants = [function.want for function in state.active.values() if function.want is not None]
    grants = placement.share(wants, state.capacity, state.capacity_reason)
    for function in turn:
        grant = grants[function.id]
        granted = _with_grant(samples[function.id], grant)
        apply(state, now, function, autoscaler.decide(granted), grant.reason)
        function.last_decision = now
        function.next_decision = now + INTERVAL_S
        if granted.stops:
            function.next_stops = now + INTERVAL_S
    for function in [one for one in state.active.values() if _is_quiet(one)]:
        function.want = None
        del state.active[function.id]


def _is_due(state: State, now: float, function: Function) -> bool:
    if function.next_decision <= now:
        return True
    return function.id in state.dirty and (not function.containers or now - function.last_decision >= BUSY_INTERVAL_S)


def _is_quiet(function: Function) -> bool:
    return (
        not function.containers
        and not function.waiting_inputs
        and not function.running_inputs
        and not (function.settings.min_containers and function.app)
    )


class _Ready(Collection[autoscaler.Member]):
    """The ready containers of a function, made into members only for a plan that has to name some."""

    def __init__(self, now: float, function: Function) -> None:
        self._now = now
        self._function = function

    def __len__(self) -> int:
        return self._function.ready

    def __contains__(self, member: object) -> bool:
        return any(one == member for one in self)

    def __iter__(self) -> Iterator[autoscaler.Member]:
        for one in self._function.containers.values():
            if one.state == READY:
                yield autoscaler.Member(one.id, one.index, None if one.held else self._now - one.idle_since)


def sample(state: State, now: float, function: Function) -> autoscaler.Sample:
    """What the autoscaler has to know. Inputs that are in a container beyond its slots still wait."""
    sums = tally(function)
    # Inputs that have to run alone leave no slot beside them, and need a container that has none in use.
    alone = bool(function.queue.alone)
    stopped = state.apps[function.app].stopping if function.app in state.apps else True
    return autoscaler.Sample(
        settings=function.settings,
        pending=function.waiting_inputs + sums.ahead,
        running=sums.all_slots if alone else sums.busy,
        slow=sums.slow_slots if alone else sums.slow,
        mean_run_s=function.mean_run_s,
        target=function.target,
        batch_size=function.spec.max_batch_size,
        starting=sums.starting,
        ready=_Ready(now, function),
        holding=sums.holding,
        stops=function.next_stops <= now,
        draining=sums.draining,
        ceiling=0 if stopped else None,
    )


def _want(state: State, function: Function, one: autoscaler.Sample) -> placement.Want:
    wanted = autoscaler.wanted(one)
    callers = chain(function.queue.callers(), (one.call.caller for part in function.queue.alone for one in part))
    inner = any(session.parent for caller in callers if (session := state.sessions.get(caller)) is not None)
    return placement.Want(
        function=function.id,
        # Containers that only finish what they have are in the way, and no substitute for new ones.
        wanted=wanted.count + one.draining,
        buffer=wanted.buffer,
        minimum=function.settings.min_containers,
        has=len(function.containers),
        blocked=tally(function).blocked,
        draining=one.draining,
        inner=inner,
        name=function.spec.name,
    )


def _with_grant(one: autoscaler.Sample, grant: placement.Grant) -> autoscaler.Sample:
    if one.ceiling == 0:
        return one
    return replace(one, ceiling=grant.count, ceiling_reason=grant.reason, yields=grant.yields)


def apply(state: State, now: float, function: Function, plan: autoscaler.Scale, limited_by: str) -> None:
    """Carry out one plan and remember it when it changed something."""
    changed = plan.count != function.wanted or bool(plan.stop or plan.drain)
    function.wanted = plan.count
    function.blocked = limited_by or function.unplaced
    if plan.start and now < function.retry_start_at:
        function.blocked = f"the last starts failed; the next one is in {function.retry_start_at - now:.0f} s"
    elif plan.start and _waits_for_port(state, function):
        function.blocked = "its server's port is one of this machine's, so it has one container at a time"
    elif plan.start:
        changed = True
        taken = [container.index for container in function.containers.values()]
        count = 1 if _owns_port(state, function) else plan.start
        for index in placement.next_indexes(taken, count):
            state.effects.append(StartContainer(pool.add(state, now, function, index)))
    for id in (*plan.stop, *plan.drain):
        pool.stop(state, function.containers[id], plan.reason)
    if changed:
        function.decisions.append((now, plan.count, plan.reason))
        state.effects.append(FunctionChanged(function))


def _owns_port(state: State, function: Function) -> bool:
    """Whether two containers of the function would listen on one port."""
    return state.shares_ports and function.spec.is_web and any(web.port for _, web in function.spec.webs)


def _waits_for_port(state: State, function: Function) -> bool:
    return bool(function.containers) and _owns_port(state, function)


def drain_outdated(state: State, function: Function) -> None:
    """After a new revision: containers of the old one end when their inputs are done."""
    for container in list(function.containers.values()):
        if container.revision != function.revision and container.state in (STARTING, READY):
            pool.stop(state, container, f"revision {function.revision} was deployed")


def counts(function: Function) -> tuple[int, int]:
    """Containers that are ready, and those that are starting."""
    return function.ready, tally(function).starting


def containers_in_order(function: Function) -> list[Container]:
    return sorted(function.containers.values(), key=lambda one: (one.state == STOPPING, one.index))
