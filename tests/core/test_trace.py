"""Traces: reading them, what comes of them, and the oracle that they are set beside."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nomadfn_agent import wire

from nomadfn.core import trace as traces
from nomadfn.core.trace import Arrival
from nomadfn.core.virtual import Conditions
from nomadfn.exception import InvalidError

QUICK = Conditions(start_s=0.5, hop_s=0.0)


def lines(*said: dict[str, Any]) -> list[str]:
    return [json.dumps(one) for one in said]


def test_a_cold_start_and_an_idle_container_are_what_the_oracle_does_not_have() -> None:
    trace = traces.parse(lines({"at": 1.0, "function": "f", "run_s": 2.0}))
    found = traces.simulate(trace, QUICK)["functions"]["f"]
    assert found["latency_s"]["p50"] == pytest.approx(2.5)
    assert found["container_s"] == pytest.approx(0.5 + 2.0 + 60.0, abs=0.5)
    assert (found["inputs"], found["failed"], found["starts"], found["most_containers"]) == (1, 0, 1, 1)
    assert found["oracle"] == {"latency_s": dict.fromkeys(traces.PERCENTILES, 2.0), "container_s": 2.0}


def test_the_settings_of_the_trace_hold_and_those_that_are_given_take_their_place() -> None:
    arrivals = [{"at": 1.0, "function": "f", "run_s": 1.0, "caller": f"c{number}"} for number in range(8)]
    trace = traces.parse(lines({"function": "f", "max_containers": 2, "scaledown_window_s": 2}, *arrivals))
    assert traces.simulate(trace, QUICK)["functions"]["f"]["most_containers"] == 2
    found = traces.simulate(trace, QUICK, {"max_containers": 8, "min_containers": 8})["functions"]["f"]
    assert found["most_containers"] == 8
    assert found["latency_s"]["max"] == pytest.approx(1.0), "all of them are warm"


def test_inputs_past_their_deadline_are_counted_as_failed() -> None:
    late = {"at": 1.0, "function": "f", "run_s": 1.0, "inputs": 3, "deadline_s": 0.1}
    found = traces.simulate(traces.parse(lines(late)), QUICK)["functions"]["f"]
    assert (found["inputs"], found["failed"], found["latency_s"]["p50"]) == (3, 3, None)


def test_one_trace_gives_one_result() -> None:
    rng = random.Random(3)
    said = [{"at": rng.uniform(0, 20), "function": rng.choice("fg"), "run_s": rng.uniform(0, 1)} for _ in range(300)]
    first, second = (traces.simulate(traces.parse(lines(*said)), QUICK) for _ in range(2))
    assert first == second


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0, 30), st.floats(0.001, 5), st.integers(1, 20)), min_size=1, max_size=25),
    st.integers(1, 5),
)
def test_no_policy_needs_less_than_the_oracle_or_is_done_before_it(
    said: list[tuple[float, float, int]], most: int
) -> None:
    arrivals = [{"at": at, "function": "f", "run_s": run_s, "inputs": inputs} for at, run_s, inputs in said]
    trace = traces.parse(lines({"function": "f", "max_containers": most, "scaledown_window_s": 2}, *arrivals))
    found = traces.simulate(trace, QUICK)
    one = found["functions"]["f"]
    assert one["inputs"] == sum(inputs for _, _, inputs in said)
    assert one["failed"] == 0
    assert one["container_s"] >= one["oracle"]["container_s"] - 1e-6
    assert one["most_containers"] <= most
    assert one["latency_s"]["max"] >= max(run_s for _, run_s, _ in said) - 1e-6


def test_the_oracle_has_no_more_places_than_there_may_be() -> None:
    spec = wire.FunctionSpec(name="f", autoscaler=wire.AutoscalerSettings(0, 4))
    arrivals = [Arrival(0.0, "f", 1.0, inputs=8)]
    assert traces.oracle(spec, arrivals, QUICK)["latency_s"]["max"] == 2.0
    assert traces.oracle(spec, arrivals, Conditions(capacity=1, hop_s=0.0))["latency_s"]["max"] == 8.0
    ten = wire.FunctionSpec(name="f", autoscaler=wire.AutoscalerSettings(0, 1), max_inputs=10)
    assert traces.oracle(ten, arrivals, QUICK) == {
        "latency_s": dict.fromkeys(traces.PERCENTILES, 1.0),
        "container_s": 0.8,
    }


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "each line is an object"),
        ('{"at": 1, "run_s": 1}', '"function", a name'),
        ('{"at": -1, "function": "f", "run_s": 1}', '"at" must be a number'),
        ('{"at": 1, "function": "f"}', '"run_s" must be a number'),
        ('{"at": 1, "function": "f", "run_s": true}', '"run_s" must be a number'),
        ('{"at": 1, "function": "f", "run_s": 1, "inputs": 0}', '"inputs" must be'),
        ('{"at": 1, "function": "f", "run_s": 1, "priority": 101}', "-100 to 100"),
        ('{"at": 1, "function": "f", "run_s": 1, "calller": "x"}', 'unknown key "calller"'),
        ('{"function": "f", "max_containers": "eight"}', '"max_containers" must be a whole number, 1 or more'),
        ('{"function": "f", "scaledown_window_s": -2}', '"scaledown_window_s" must be a number, 0 or more'),
        ('{"function": "f", "max": 1}', 'unknown key "max"'),
        ('{"at": 1, "function": "f", "run_s": 1, "inputs": 2000000}', "more than 1,000,000 inputs"),
    ],
)
def test_a_line_that_is_wrong_is_named(line: str, part: str) -> None:
    with pytest.raises(InvalidError, match=r"t\.jsonl") as caught:
        traces.parse(['{"at": 1, "function": "f", "run_s": 1}', line], "t.jsonl")
    assert part in str(caught.value)


def test_a_trace_without_arrivals_shows_what_one_looks_like() -> None:
    with pytest.raises(InvalidError, match=r'"run_s": 0\.2'):
        traces.parse(["", '{"function": "f", "max_containers": 3}'])
