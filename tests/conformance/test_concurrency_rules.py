"""semantics: concurrency and batching."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import nomadfn as modal
from nomadfn.exception import InvalidError


def test_plain_functions_run_in_threads_at_once_each_with_its_own_input(program: ModuleType) -> None:
    results = list(program.in_threads.map([4] * 4))
    assert all(met for met, _, _ in results)
    assert not any(main for _, main, _ in results)
    assert len({one for _, _, one in results}) == 4


def test_coroutines_run_as_tasks_on_one_loop_each_with_its_own_input(program: ModuleType) -> None:
    results = list(program.as_tasks.map([4] * 4))
    assert all(met for met, _, _ in results)
    assert len({loop for _, loop, _ in results}) == 1
    assert len({one for _, _, one in results}) == 4


def test_a_target_over_the_maximum_is_refused() -> None:
    with pytest.raises(InvalidError, match=r"target_inputs=5.*max_inputs=3"):
        modal.concurrent(max_inputs=3, target_inputs=5)


def test_the_autoscaler_aims_at_the_target_and_bursts_to_the_maximum() -> None:
    @modal.App("aim").function()
    @modal.concurrent(max_inputs=10, target_inputs=4)
    def f() -> None: ...

    assert f.spec is not None
    assert (f.spec.max_inputs, f.spec.target_inputs) == (10, 4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: modal.batched(max_batch_size=4), "wait_ms"),
        (lambda: modal.batched(wait_ms=4), "max_batch_size"),
        (lambda: modal.batched(4, 100), "by name"),  # type: ignore[arg-type]
        (lambda: modal.batched(max_batch_size=0, wait_ms=1), "max_batch_size"),
        (lambda: modal.batched(max_batch_size=1001, wait_ms=1), "1,000"),
        (lambda: modal.batched(max_batch_size=1, wait_ms=-1), "wait_ms"),
        (lambda: modal.batched(max_batch_size=1, wait_ms=600_001), "600,000"),
    ],
)
def test_batched_needs_both_by_name_and_in_their_ranges(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        make()


def test_callers_pass_single_items_and_the_function_gets_one_list_a_parameter(program: ModuleType) -> None:
    results = list(program.in_batches.map(range(4), "abcd"))
    assert results == [(0, "a", 4), (1, "b", 4), (2, "c", 4), (3, "d", 4)]


def test_the_timer_starts_at_the_first_input_and_then_the_batch_is_eligible(program: ModuleType) -> None:
    assert program.soon.remote(1) == 1


def test_what_is_no_list_fails_every_input_of_the_batch(program: ModuleType) -> None:
    results = list(program.gives_no_list.map(range(2), return_exceptions=True))
    assert all("Output of batched function gives_no_list must be a list" in str(one) for one in results)


def test_a_list_of_another_length_fails_every_input_of_the_batch(program: ModuleType) -> None:
    results = list(program.gives_too_few.map(range(2), return_exceptions=True))
    assert all(
        "Output of batched function gives_too_few must be a list of equal length as its inputs" in str(one)
        for one in results
    )


def test_an_exception_in_the_list_fails_its_own_input_only(program: ModuleType) -> None:
    results = list(program.one_bad_apple.map(range(3), return_exceptions=True))
    assert [results[0], results[2]] == [0, 2]
    assert isinstance(results[1], program.Unlucky)


def test_a_batched_method_forms_batches_too(program: ModuleType) -> None:
    assert list(program.Batcher().squares.map(range(3))) == [0, 1, 4]


def test_a_generator_cannot_be_batched() -> None:
    with pytest.raises(InvalidError, match="generator"):

        @modal.batched(max_batch_size=2, wait_ms=1)
        def numbers(x):  # type: ignore[no-untyped-def]
            yield x


def test_a_web_function_cannot_be_batched() -> None:
    with pytest.raises(InvalidError, match="batched"):

        @modal.App("refused").function()
        @modal.batched(max_batch_size=2, wait_ms=1)
        @modal.asgi_app()
        def site() -> None: ...


def test_a_batched_function_has_no_default_arguments() -> None:
    with pytest.raises(InvalidError, match="default"):

        @modal.batched(max_batch_size=2, wait_ms=1)
        def f(x, y=1):  # type: ignore[no-untyped-def]
            return x


def test_a_class_has_one_batched_method_and_no_other() -> None:
    with pytest.raises(InvalidError, match="batched"):

        @modal.App("refused").cls()
        class Two:
            @modal.batched(max_batch_size=2, wait_ms=1)
            def one(self, x):  # type: ignore[no-untyped-def]
                return x

            @modal.method()
            def other(self) -> int:
                return 1


def test_concurrent_stands_under_app_function() -> None:
    with pytest.raises(InvalidError, match="under"):

        @modal.concurrent(max_inputs=2)
        @modal.App("refused").function()
        def f() -> None: ...
