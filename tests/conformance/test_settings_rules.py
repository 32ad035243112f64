"""semantics: autoscaler settings, and GPUs. What is wrong is refused when the program is imported."""

from __future__ import annotations

from typing import Any

import pytest

import nomadfn as modal
from nomadfn.core.autoscaler import Member, Sample, wanted
from nomadfn.exception import DeprecationError, InvalidError, UnsupportedError


def define(**settings: Any) -> Any:
    @modal.App("settings").function(**settings)
    def f(x: int) -> int:
        return x

    return f


def test_the_defaults_are_0_unlimited_0_and_60_seconds() -> None:
    settings = define().spec.autoscaler
    assert (settings.min_containers, settings.max_containers) == (0, None)
    assert (settings.buffer_containers, settings.scaledown_window_s) == (0, 60)


@pytest.mark.parametrize(
    "settings",
    [
        {"min_containers": -1},
        {"min_containers": 1.5},
        {"min_containers": "2"},
        {"max_containers": 0},
        {"max_containers": True},
        {"buffer_containers": -1},
        {"scaledown_window": 1},
        {"scaledown_window": 3601},
    ],
)
def test_a_setting_out_of_its_range_is_an_invalid_error_that_names_it(settings: dict[str, Any]) -> None:
    [name] = settings
    with pytest.raises(InvalidError, match=name):
        define(**settings)


def test_min_over_max_names_both_numbers() -> None:
    with pytest.raises(InvalidError, match=r"min_containers=5.*max_containers=3"):
        define(min_containers=5, max_containers=3)


def test_a_wrong_window_names_the_range() -> None:
    with pytest.raises(InvalidError, match=r"2 to 3,600"):
        define(scaledown_window=4000)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("keep_warm", "min_containers"),
        ("concurrency_limit", "max_containers"),
        ("container_idle_timeout", "scaledown_window"),
        ("allow_concurrent_inputs", "concurrent"),
    ],
)
def test_an_old_name_is_a_deprecation_error_naming_the_new_one(old: str, new: str) -> None:
    with pytest.raises(DeprecationError, match=new):
        define(**{old: 2})


def sample(**values: Any) -> Sample:
    settings = values.pop("settings", {})
    ready = [Member(f"c{n}", n, None) for n in range(values.pop("ready", 0))]
    rest: dict[str, Any] = {"pending": 0, "running": 0, "slow": 0, "mean_run_s": None, "target": 1, "batch_size": 0}
    rest |= {"starting": 0, "draining": 0, "ready": ready}
    return Sample(settings=define(**settings).spec.autoscaler, **(rest | values))


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({}, 0),
        ({"pending": 7, "running": 3}, 10),
        ({"pending": 7, "running": 3, "target": 4}, 3),
        ({"settings": {"min_containers": 2}}, 2),
        ({"pending": 9, "settings": {"max_containers": 4}}, 4),
        ({"settings": {"buffer_containers": 3}}, 0),
        ({"pending": 2, "settings": {"buffer_containers": 3}}, 5),
        ({"pending": 2, "settings": {"buffer_containers": 3, "max_containers": 4}}, 4),
        ({"pending": 33, "batch_size": 32}, 2),
    ],
)
def test_wanted_is_demand_plus_buffer_between_min_and_max(values: dict[str, Any], count: int) -> None:
    assert wanted(sample(**values)).count == count


def test_pending_counts_for_no_more_containers_than_drain_it_within_a_second() -> None:
    assert wanted(sample(pending=1000, mean_run_s=0.001)).count == 1
    assert wanted(sample(pending=1000, mean_run_s=0.1)).count == 100


@pytest.mark.parametrize("gpu", ["L40S", "H100:4", "A100-80GB", "any", ["H100", "A100-80GB"]])
def test_known_gpus_are_taken(gpu: Any) -> None:
    assert define(gpu=gpu).spec.gpu


def test_an_unknown_gpu_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidError, match=r"(?s)Z9000.*L40S"):
        define(gpu="Z9000")


def test_a_list_of_gpus_whose_counts_differ_is_refused() -> None:
    with pytest.raises(InvalidError, match="count"):
        define(gpu=["H100:2", "A100:4"])


def test_a_setting_that_only_modal_has_is_an_unsupported_error_that_says_what_to_do() -> None:
    with pytest.raises(UnsupportedError, match=r"is not supported by nomadfn; "):
        define(volumes={"/data": object()})


@pytest.mark.parametrize("name", ["Sandbox", "Volume", "NetworkFileSystem", "Proxy"])
def test_a_name_that_only_modal_has_is_an_unsupported_error(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name} is not supported by nomadfn; "):
        getattr(modal, name)


@pytest.mark.parametrize("timeout", [0, 86_401, "5"])
def test_a_timeout_is_from_1_to_86400_seconds(timeout: Any) -> None:
    with pytest.raises(InvalidError, match="timeout"):
        define(timeout=timeout)


def test_a_timeout_is_300_seconds_unless_given_and_the_startup_timeout_is_as_long() -> None:
    assert (define().spec.timeout_s, define().spec.startup_timeout_s) == (300, 300)
    assert define(timeout=10).spec.startup_timeout_s == 10


def test_a_number_of_retries_waits_a_second_before_each() -> None:
    policy = define(retries=3).spec.retries
    assert (policy.max_retries, policy.backoff_coefficient, policy.initial_delay_s) == (3, 1.0, 1.0)


def test_retries_have_the_documented_defaults() -> None:
    policy = define(retries=modal.Retries(max_retries=3)).spec.retries
    assert (policy.backoff_coefficient, policy.initial_delay_s, policy.max_delay_s) == (2.0, 1.0, 60.0)


@pytest.mark.parametrize(
    "wrong",
    [{"backoff_coefficient": 0.5}, {"backoff_coefficient": 11}, {"initial_delay": 61}, {"max_delay": -1}],
)
def test_retries_out_of_their_ranges_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match=next(iter(wrong))):
        modal.Retries(max_retries=1, **wrong)
