"""`@concurrent` and `@batched`: what they leave in the spec, and every way to use them wrongly."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

import nomadfn
from nomadfn.exception import InvalidError

names = itertools.count()


def spec_of(decorator: Callable[..., Any], function: Callable[..., Any] | None = None) -> Any:
    app: Any = nomadfn.App(f"partial-{next(names)}")

    def embed(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    return app.function()(decorator(function or embed)).spec


def test_concurrency_reaches_the_spec() -> None:
    one = spec_of(nomadfn.concurrent(max_inputs=10, target_inputs=8))
    assert (one.max_inputs, one.target_inputs, one.max_batch_size) == (10, 8, 0)
    assert spec_of(nomadfn.concurrent(max_inputs=3)).target_inputs is None


def test_batching_reaches_the_spec() -> None:
    one = spec_of(nomadfn.batched(max_batch_size=32, wait_ms=100))
    assert (one.max_batch_size, one.batch_wait_ms, one.max_inputs) == (32, 100, 1)


def test_both_go_together_in_either_order() -> None:
    batched, concurrent = nomadfn.batched(max_batch_size=4, wait_ms=0), nomadfn.concurrent(max_inputs=2)
    for one in (spec_of(lambda f: batched(concurrent(f))), spec_of(lambda f: concurrent(batched(f)))):
        assert (one.max_inputs, one.max_batch_size, one.batch_wait_ms) == (2, 4, 0)


def test_local_calls_what_the_user_wrote() -> None:
    app: Any = nomadfn.App("local-batch")

    @app.function()
    @nomadfn.batched(max_batch_size=2, wait_ms=0)
    def double(values: list[int]) -> list[int]:
        return [2 * value for value in values]

    assert double.local([1, 2]) == [2, 4]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "max_inputs"),
        ({"max_inputs": 0}, "1 or more"),
        ({"max_inputs": 1.5}, "whole number"),
        ({"max_inputs": True}, "whole number"),
        ({"max_inputs": 4, "target_inputs": 5}, "target_inputs=5 is more than max_inputs=4"),
        ({"max_inputs": 4, "target_inputs": 0}, "target_inputs=0"),
    ],
)
def test_wrong_concurrency_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        nomadfn.concurrent(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "max_batch_size"),
        ({"max_batch_size": 4}, "wait_ms"),
        ({"max_batch_size": 0, "wait_ms": 1}, "from 1 to 1,000"),
        ({"max_batch_size": 1001, "wait_ms": 1}, "from 1 to 1,000"),
        ({"max_batch_size": 4, "wait_ms": -1}, "from 0 to 600,000"),
        ({"max_batch_size": 4, "wait_ms": 600_001}, "from 0 to 600,000"),
    ],
)
def test_wrong_batching_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        nomadfn.batched(**settings)


def generator(texts: list[str]) -> Any:
    yield from texts


def defaulted(texts: list[str], size: int = 3) -> list[str]:
    return texts


def starred(*texts: list[str]) -> list[str]:
    return []


def nothing() -> list[str]:
    return []


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (generator, "function generator: a generator cannot be @batched"),
        (defaulted, "function defaulted: .*default for 'size'"),
        (starred, "function starred: .*\\*texts"),
        (nothing, "function nothing: .*needs a parameter"),
    ],
)
def test_functions_that_cannot_be_batched_are_refused(function: Callable[..., Any], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        nomadfn.batched(max_batch_size=2, wait_ms=1)(function)


@pytest.mark.parametrize("decorator", ["concurrent", "batched"])
def test_a_decorator_without_parentheses_says_so(decorator: str) -> None:
    with pytest.raises(InvalidError, match=f"@{decorator} needs parentheses"):
        getattr(nomadfn, decorator)(nothing)


@pytest.mark.parametrize("decorator", [nomadfn.concurrent(max_inputs=2), nomadfn.batched(max_batch_size=2, wait_ms=1)])
def test_a_decorator_above_app_function_is_refused(decorator: Callable[..., Any]) -> None:
    app: Any = nomadfn.App(f"above-{next(names)}")
    made = app.function()(defaulted)
    with pytest.raises(InvalidError, match=r"function defaulted: @\w+ stands above @app.function"):
        decorator(made)


@pytest.mark.parametrize("decorator", [nomadfn.concurrent(max_inputs=2), nomadfn.batched(max_batch_size=2, wait_ms=1)])
def test_the_same_decorator_twice_is_refused(decorator: Callable[..., Any]) -> None:
    def embed(texts: list[str]) -> list[str]:
        return texts

    with pytest.raises(InvalidError, match="twice; leave one out"):
        decorator(decorator(embed))


def test_a_call_before_app_function_says_what_is_missing() -> None:
    def embed(texts: list[str]) -> list[str]:
        return texts

    with pytest.raises(InvalidError, match=r"put @app\.function"):
        nomadfn.concurrent(max_inputs=2)(embed)([])


def test_what_becomes_of_a_batch_that_raises_is_said_by_one_of_two_words() -> None:
    settings: Any = {"max_batch_size": 4, "wait_ms": 0}
    assert spec_of(nomadfn.batched(**settings)).on_batch_error == "fail"
    assert spec_of(nomadfn.batched(**settings, on_batch_error="bisect")).on_batch_error == "bisect"
    for wrong in ("halve", None, True):
        with pytest.raises(InvalidError, match="must be 'fail' or 'bisect'"):
            nomadfn.batched(**settings, on_batch_error=wrong)
