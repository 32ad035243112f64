"""One batch as one call: a list for each parameter in, a list with a result for each input out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from .outcomes import Coder, Outcome, failure
from .wire import BATCH_RAISED

Item = tuple[int, str, int, bytes, int, str]
"""Delivery, call, index, payload, codec, method."""


class Batch:
    """The inputs of one batch. `arguments` is what the function is called with; those that cannot be read are out."""

    def __init__(
        self, function: Callable[..., Any], coder: Coder, items: Sequence[Item], *, bisect: bool = False
    ) -> None:
        """With `bisect` inputs that raise together are not done, but are to be run again by halves."""
        self._coder = coder
        self._bisect = bisect
        self._items = items
        self._outcomes: list[Outcome | None] = [None] * len(items)
        self.arguments: dict[str, list[Any]] = {}
        signature, names, in_order = _parameters(function)
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for place, (_, _, _, data, codec, _) in enumerate(items):
            try:
                args, kwargs = coder.arguments(data, codec)
            except Exception as error:
                self._outcomes[place] = coder.undecodable(error)
                continue
            if in_order and not kwargs and len(args) == len(names):
                for name, value in zip(names, args, strict=True):
                    columns[name].append(value)
                continue
            try:
                bound = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                self._outcomes[place] = coder.raised(TypeError(f"{coder.name}() {error}"), codec)
                continue
            for name in names:
                columns[name].append(bound[name])
        if any(outcome is None for outcome in self._outcomes):
            self.arguments = columns

    @property
    def size(self) -> int:
        """How many inputs the function is called with."""
        return sum(outcome is None for outcome in self._outcomes)

    def returned(self, value: Any) -> list[Outcome]:
        """One outcome for each input; an exception in the list is raised for its input alone."""
        if not isinstance(value, list):
            return self._all_fail(
                f"Output of batched function {self._coder.name} must be a list, not a {type(value).__name__}: return "
                f"one result for each input"
            )
        if len(value) != self.size:
            return self._all_fail(
                f"Output of batched function {self._coder.name} must be a list of equal length as its inputs: it has "
                f"{len(value)} items for {self.size} inputs"
            )
        results = iter(value)
        for place, outcome in enumerate(self._outcomes):
            if outcome is None:
                self._outcomes[place] = self._one(next(results), self._items[place][4])
        return self._whole()

    def raised(self, error: BaseException) -> list[Outcome]:
        """The function raised: every input of the batch did."""
        again = self._bisect and self.size > 1 and isinstance(error, Exception)
        for place, outcome in enumerate(self._outcomes):
            if outcome is None:
                codec = self._items[place][4]
                self._outcomes[place] = (BATCH_RAISED, b"") if again else self._coder.raised(error, codec)
        return self._whole()

    def without_call(self) -> list[Outcome]:
        """No input could be read."""
        return self._whole()

    def _one(self, value: Any, codec: int) -> Outcome:
        return self._coder.raised(value, codec) if isinstance(value, Exception) else self._coder.result(value, codec)

    def _all_fail(self, text: str) -> list[Outcome]:
        for place, outcome in enumerate(self._outcomes):
            if outcome is None:
                self._outcomes[place] = failure("InvalidError", text)
        return self._whole()

    def _whole(self) -> list[Outcome]:
        return [outcome for outcome in self._outcomes if outcome is not None]


@lru_cache(maxsize=64)
def _parameters(function: Callable[..., Any]) -> tuple[inspect.Signature, list[str], bool]:
    """The signature, the parameters' names, and whether as many positional arguments are those parameters in order."""
    signature = inspect.signature(function)
    ordinary = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return signature, list(signature.parameters), all(one.kind in ordinary for one in signature.parameters.values())
