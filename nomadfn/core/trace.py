"""A recorded trace under the policies as they are: `nomadfn simulate`.

A trace is JSON, one object a line. An arrival says `at` (seconds from the start), `function` and `run_s`; it may say
`caller`, `inputs` (so many at once, as one map), `priority` and `deadline_s`. A line with `function` and no `at` says
the function's settings. What comes out is set beside an oracle, which knows what will come: its containers are there
the moment they are needed and gone when they are not, at most as many as there may be, and take inputs as they came.
No policy needs fewer container-seconds.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nomadfn_agent import wire

from ..exception import InvalidError
from .limits import PRIORITIES
from .virtual import APP, Conditions, VirtualWorld

INPUTS_MAX = 1_000_000
HOPS = 4
"""From the caller to the container and back."""
AUTOSCALER = ("min_containers", "max_containers", "buffer_containers", "scaledown_window_s")
SETTINGS = (*AUTOSCALER, "max_inputs", "target_inputs", "max_batch_size", "batch_wait_ms")
AT_LEAST_ONE = ("max_containers", "max_inputs", "target_inputs")
ARRIVAL = ("at", "function", "run_s", "caller", "inputs", "priority", "deadline_s")
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float
    function: str
    run_s: float
    caller: str = "caller"
    inputs: int = 1
    priority: int = 0
    deadline_s: float | None = None


@dataclass(slots=True)
class Trace:
    arrivals: list[Arrival] = field(default_factory=list)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Function → what the trace says of its settings."""


def parse(lines: Iterable[str], name: str = "trace") -> Trace:
    """Raises InvalidError with the line that is wrong."""
    trace = Trace()
    total = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            said = json.loads(line)
        except ValueError as error:
            raise InvalidError(f"{where} is not JSON: {error}") from None
        if not isinstance(said, dict) or not isinstance(said.get("function"), str):
            raise InvalidError(f'{where}: each line is an object with "function", a name')
        known = ARRIVAL if "at" in said else ("function", *SETTINGS)
        for key in said.keys() - set(known):
            raise InvalidError(f'{where}: unknown key "{key}"; there are {", ".join(known)}')
        if "at" not in said:
            _check_settings(said, where)
            trace.settings.setdefault(said.pop("function"), {}).update(said)
            continue
        arrival = _arrival(said, where)
        total += arrival.inputs
        if total > INPUTS_MAX:
            raise InvalidError(f"{name} has more than {INPUTS_MAX:,} inputs; give a part of it")
        trace.arrivals.append(arrival)
    if not trace.arrivals:
        raise InvalidError(f'{name} has no arrivals: lines such as {{"at": 0.5, "function": "f", "run_s": 0.2}}')
    trace.arrivals.sort(key=lambda one: one.at)
    return trace


def _arrival(said: Mapping[str, Any], where: str) -> Arrival:
    at, run_s = _number(said, "at", where), _number(said, "run_s", where)
    inputs, priority = said.get("inputs", 1), said.get("priority", 0)
    if type(inputs) is not int or inputs < 1:
        raise InvalidError(f'{where}: "inputs" must be a whole number, 1 or more')
    if type(priority) is not int or priority not in PRIORITIES:
        raise InvalidError(f'{where}: "priority" must be a whole number from {PRIORITIES[0]} to {PRIORITIES[-1]}')
    deadline_s = None if said.get("deadline_s") is None else _number(said, "deadline_s", where)
    return Arrival(at, said["function"], run_s, str(said.get("caller", "caller")), inputs, priority, deadline_s)


def _check_settings(said: Mapping[str, Any], where: str) -> None:
    for key, value in said.items():
        least = 1 if key in AT_LEAST_ONE else 0
        kinds = (int, float) if key == "scaledown_window_s" else (int,)
        if key != "function" and value is not None and (type(value) not in kinds or not least <= value < math.inf):
            kind = "a number" if len(kinds) == 2 else "a whole number"
            raise InvalidError(f'{where}: "{key}" must be {kind}, {least} or more')


def _number(said: Mapping[str, Any], key: str, where: str) -> float:
    value = said.get(key)
    if type(value) not in (int, float) or not 0 <= value < math.inf:  # type: ignore[operator]
        raise InvalidError(f'{where}: "{key}" must be a number of seconds, 0 or more')
    return float(value)  # type: ignore[arg-type]


def simulate(trace: Trace, conditions: Conditions, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What comes of a trace, for each function and beside the oracle. `overrides` take the place of settings."""
    names = sorted({one.function for one in trace.arrivals})
    specs = [_spec(name, {**trace.settings.get(name, {}), **(overrides or {})}) for name in names]
    world = VirtualWorld(specs, conditions)
    for one in trace.arrivals:
        world.call(
            one.at,
            f"se-{one.caller}",
            one.function,
            [one.run_s] * one.inputs,
            priority=one.priority,
            deadline_s=one.deadline_s,
        )
    world.run()
    last = world.now
    end = last + max(one.autoscaler.scaledown_window_s for one in specs) + 1.0
    world.run(until=end)
    found = {spec.name: _figures(world, spec, end) for spec in specs}
    for spec in specs:
        found[spec.name]["oracle"] = oracle(
            spec, [one for one in trace.arrivals if one.function == spec.name], conditions
        )
    return {"seconds": last, "functions": found}


def _spec(name: str, said: Mapping[str, Any]) -> wire.FunctionSpec:
    settings = wire.AutoscalerSettings(**{key: said[key] for key in AUTOSCALER if said.get(key) is not None})
    most = settings.max_containers
    if most is not None and settings.min_containers > most:
        raise InvalidError(f"function {name}: min_containers={settings.min_containers} is more than {most}, the most")
    more = {key: said[key] for key in SETTINGS[len(AUTOSCALER) :] if said.get(key) is not None}
    return wire.FunctionSpec(name=name, autoscaler=settings, timeout_s=86_400.0, **more)


def _figures(world: VirtualWorld, spec: wire.FunctionSpec, end: float) -> dict[str, Any]:
    calls = [one for one in world.calls.values() if one.function == f"{APP}/{spec.name}"]
    containers = [one for one in world.all_containers if one.spec.name == spec.name]
    return {
        "inputs": sum(len(one.runs) for one in calls),
        "failed": sum(len(one.failed) for one in calls),
        "latency_s": percentiles([latency for one in calls for latency in one.latencies]),
        "container_s": world.container_seconds(spec.name, end),
        "starts": len(containers),
        "most_containers": _most_at_once([(one.ordered_at, one.ended_at or math.inf) for one in containers]),
    }


def oracle(spec: wire.FunctionSpec, arrivals: Iterable[Arrival], conditions: Conditions) -> dict[str, Any]:
    """Who knows what will come: no start takes time, no container idles. For batches it is a bound that none meets."""
    at_once = spec.max_inputs * max(1, spec.max_batch_size)
    limits = [one for one in (spec.autoscaler.max_containers, conditions.capacity) if one is not None]
    places = min(limits) * at_once if limits else None
    free: list[float] = []
    latencies: list[float] = []
    work_s = 0.0
    for one in arrivals:
        for _ in range(one.inputs):
            begin = one.at
            if places is not None and len(free) >= places:
                begin = max(begin, heapq.heappop(free))
            if one.deadline_s is not None and begin > one.at + one.deadline_s:
                heapq.heappush(free, begin)
                continue
            work_s += one.run_s
            if places is not None:
                heapq.heappush(free, begin + one.run_s)
            latencies.append(begin + one.run_s - one.at + HOPS * conditions.hop_s)
    return {"latency_s": percentiles(latencies), "container_s": work_s / at_once}


def percentiles(values: list[float]) -> dict[str, float | None]:
    """Nearest rank; None where there is nothing."""
    ordered = sorted(values)
    return {
        name: ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else None
        for name, part in PERCENTILES.items()
    }


def _most_at_once(spans: list[tuple[float, float]]) -> int:
    steps = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    most = there = 0
    for _, step in steps:
        there += step
        most = max(most, there)
    return most
