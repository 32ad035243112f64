"""The lists that a batched function is called with, however its callers have given their arguments."""

from __future__ import annotations

from typing import Any

import pytest
from nomadfn_agent.batch import Batch


class Coder:
    """Arguments as they are; what was raised as its text."""

    name = "f"

    def arguments(self, data: Any, codec: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return data

    def raised(self, error: BaseException, codec: int) -> tuple[int, str]:
        return 1, f"{type(error).__name__}: {error}"


def batch(function: Any, *given: tuple[tuple[Any, ...], dict[str, Any]]) -> Batch:
    coder: Any = Coder()
    items: Any = [(place, "fc-1", place, one, 0, "") for place, one in enumerate(given)]
    return Batch(function, coder, items)


def two(a: Any, b: Any = 0) -> None: ...


def keyword(a: Any, *, b: Any) -> None: ...


def rest(a: Any, *b: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "given", "arguments"),
    [
        (two, [((1, 2), {}), ((3, 4), {})], {"a": [1, 3], "b": [2, 4]}),
        (two, [((1, 2), {}), ((3,), {"b": 4}), ((), {"b": 6, "a": 5})], {"a": [1, 3, 5], "b": [2, 4, 6]}),
        (keyword, [((1,), {"b": 2})], {"a": [1], "b": [2]}),
        (rest, [((1, 2), {}), ((3, 4, 5), {})], {"a": [1, 3], "b": [(2,), (4, 5)]}),
    ],
)
def test_each_parameter_is_a_list(function: Any, given: list[Any], arguments: dict[str, list[Any]]) -> None:
    for _ in range(2):
        assert batch(function, *given).arguments == arguments


def test_arguments_that_do_not_fit_fail_their_input_alone() -> None:
    made = batch(two, ((1, 2), {}), ((1, 2, 3), {}), ((), {"a": 7, "b": 8}), ((1, 2), {"b": 3}))
    assert made.arguments == {"a": [1, 7], "b": [2, 8]}
    assert made.size == 2
    assert [one and one[1] for one in made._outcomes] == [
        None,
        "TypeError: f() too many positional arguments",
        None,
        "TypeError: f() multiple values for argument 'b'",
    ]
