"""`/metrics` as Prometheus reads it: by its own parser, over the core of a service that runs."""

from __future__ import annotations

import pytest
from nomadfn_agent import wire
from prometheus_client.parser import text_string_to_metric_families

from nomadfn.control import metrics
from nomadfn.control.durable import APPEND_BOUNDS_S
from nomadfn.control.tokens import Tokens
from nomadfn.core import calls
from nomadfn.core.core import Core
from nomadfn.core.state import OTHERS, TOTALS_MAX, State
from nomadfn.exception import AuthError, PermissionDeniedError

OWNER, SCRAPER = "nf_" + "o" * 43, "nf_" + "m" * 43


def app_of(name: str) -> wire.AppSpec:
    one_container = wire.AutoscalerSettings(max_containers=1)
    return wire.AppSpec(name=name, functions=[wire.FunctionSpec(name="f", autoscaler=one_container)])


def figures(core: Core, **changes: object) -> metrics.Figures:
    values = {
        "epoch": 7,
        "capacity": 4,
        "sessions": 2,
        "agents": 1,
        "last_segment": 12,
        "lag": 3,
        "journal_bytes": 4096,
        "append_counts": [1, 2] + [0] * (len(APPEND_BOUNDS_S) - 2) + [1],
        "append_s": 11.5,
        "rows": metrics.rows_of(core.state),
    }
    return metrics.Figures(**(values | changes))  # type: ignore[arg-type]


def read(page: bytes) -> dict[str, float]:
    """Every sample by its name and labels, as Prometheus would store it."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page.decode()):
        assert family.documentation, family.name
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sample.labels.items())
            assert f"{sample.name}{{{labels}}}" not in found
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def worked(core: Core, count: int = 3) -> None:
    """A run of an app: `count` inputs of which one fails and one is cancelled, and the run ends."""
    core.open_session("se-1")
    core.start_app(0.0, "ap-1", app_of("sums"), "se-1")
    core.submit(0.0, "se-1", calls.Submission("fc-1", "ap-1/f", wire.MAP, 0, [b"x"] * count))
    core.settle(0.0)
    [container] = core.state.containers
    core.container_ready(0.1, container, 2)
    core.settle(0.1)
    core.outputs(0.2, container, [1, 2], [wire.OK | wire.REF, wire.EXCEPTION], [b"", b""], 1000)
    core.cancel_call(0.3, "fc-1")
    core.settle(0.3)


def test_the_page_of_a_leader_counts_what_became_of_inputs() -> None:
    core = Core()
    worked(core)
    found = read(metrics.render(figures(core)))
    of_function = "app=sums,function=f"
    assert found["nomadfn_leader{}"] == 1
    assert found["nomadfn_epoch{}"] == 7
    assert found[f"nomadfn_inputs_accepted_total{{{of_function}}}"] == 3
    for outcome in ("succeeded", "failed", "cancelled"):
        assert found[f"nomadfn_inputs_finished_total{{{of_function},outcome={outcome}}}"] == 1
    assert found[f"nomadfn_inputs_pending{{{of_function}}}"] == 0
    assert found[f"nomadfn_containers{{{of_function},state=ready}}"] == 1
    assert found[f"nomadfn_containers_wanted{{{of_function}}}"] == 0
    assert found["nomadfn_journal_append_seconds_count{}"] == 4
    assert found["nomadfn_journal_append_seconds_bucket{le=0.001}"] == 3
    assert found["nomadfn_journal_append_seconds_bucket{le=+Inf}"] == 4
    assert found["nomadfn_journal_append_seconds_sum{}"] == 11.5
    assert found["process_resident_memory_bytes{}"] > 0


def test_totals_outlive_the_app_of_one_run_and_go_on_with_the_next() -> None:
    core = Core()
    worked(core)
    core.end_session(0.4, "se-1")
    core.settle(0.4)
    [container] = core.state.containers
    core.container_lost(0.5, container, "ended")
    core.settle(0.5)
    assert not core.state.functions
    name = "nomadfn_inputs_accepted_total{app=sums,function=f}"
    assert read(metrics.render(figures(core)))[name] == 3
    core.open_session("se-2")
    core.start_app(1.0, "ap-2", app_of("sums"), "se-2")
    core.submit(1.0, "se-2", calls.Submission("fc-2", "ap-2/f", wire.MAP, 0, [b"x"]))
    assert read(metrics.render(figures(core)))[name] == 4


def test_what_is_replayed_counts_for_nothing() -> None:
    first = Core()
    first.deploy(0.0, "ap-1", app_of("sums"), 1)
    first.open_session("se-1")
    first.submit(0.0, "se-1", calls.Submission("fc-1", "ap-1/f", wire.SPAWN, 0, [b"x"]))
    records, _ = first.take_records()
    second = Core()
    second.restore_app(0.0, "ap-1", app_of("sums"), "", True, 1)
    second.replay(records)
    second.end_replay(0.0)
    found = read(metrics.render(figures(second)))
    assert found["nomadfn_inputs_accepted_total{app=sums,function=f}"] == 0
    assert found["nomadfn_inputs_pending{app=sums,function=f}"] == 1


def test_a_loss_and_a_retry_are_counted_each_as_its_own() -> None:
    core = Core()
    core.open_session("se-1")
    again = wire.FunctionSpec(name="f", retries=wire.RetryPolicy(max_retries=1, initial_delay_s=0.0))
    core.start_app(0.0, "ap-1", wire.AppSpec(name="sums", functions=[again]), "se-1")
    core.submit(0.0, "se-1", calls.Submission("fc-1", "ap-1/f", wire.REMOTE, 0, [b"x"]))
    core.settle(0.0)
    [container] = core.state.containers
    core.container_ready(0.1, container, 1)
    core.settle(0.1)
    core.outputs(0.2, container, [1], [wire.EXCEPTION], [b""], 1000)
    core.settle(0.2)
    core.tick(5.0)
    core.settle(5.0)
    assert core.container(container).held  # type: ignore[union-attr]
    core.container_lost(5.1, container, "killed")
    found = read(metrics.render(figures(core)))
    assert found["nomadfn_inputs_retried_total{app=sums,function=f}"] == 1
    assert found["nomadfn_inputs_lost_total{app=sums,function=f}"] == 1
    assert found["nomadfn_inputs_finished_total{app=sums,function=f,outcome=failed}"] == 0


def test_names_that_nobody_bounds_do_not_make_the_page_longer_and_longer() -> None:
    state = State(Core().state.limits)
    kept = [state.totals_of(f"app-{number}", "f") for number in range(TOTALS_MAX + 50)]
    assert len(state.totals) == TOTALS_MAX + 1
    assert kept[-1].app == OTHERS
    assert state.totals_of("app-0", "f") is kept[0]


def test_a_label_may_hold_any_character() -> None:
    core = Core()
    core.state.totals_of('a"b\\c\nd', "f").accepted = 5
    found = read(metrics.render(figures(core)))
    assert found['nomadfn_inputs_accepted_total{app=a"b\\c\nd,function=f}'] == 5


def test_the_page_of_a_standby_says_that_it_stands_by_and_nothing_of_functions() -> None:
    found = read(metrics.render(None))
    assert found["nomadfn_leader{}"] == 0
    assert not [name for name in found if name.startswith(("nomadfn_inputs", "nomadfn_epoch"))]


def test_only_the_owner_and_the_holder_of_the_token_for_it_read_metrics() -> None:
    tokens = Tokens(OWNER, metrics=SCRAPER)
    tokens.require_scraper(OWNER)
    tokens.require_scraper(SCRAPER)
    for wrong in (None, "", "nf_" + "x" * 43):
        with pytest.raises(AuthError):
            tokens.require_scraper(wrong)
    with pytest.raises(PermissionDeniedError):
        tokens.require_scraper(tokens.issue("ct-1", "ap-1"))
    with pytest.raises(AuthError):
        tokens.identify(SCRAPER)
    with pytest.raises(AuthError):
        Tokens(OWNER).require_scraper("")
