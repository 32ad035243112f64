"""semantics: lifetime, errors and retries."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType

import pytest

import nomadfn as modal
from nomadfn import exception
from nomadfn.exception import FunctionTimeoutError, InternalFailure, InvalidError


def test_retries_run_an_input_again_until_it_succeeds(program: ModuleType, marks: str) -> None:
    assert program.third_time_lucky.remote(marks) == 3


def test_after_its_retries_an_input_fails_with_the_last_error(program: ModuleType, marks: str) -> None:
    with pytest.raises(program.Unlucky, match="attempt 2"):
        program.never_lucky.remote(marks)


def test_over_its_timeout_an_input_is_stopped_and_fails(program: ModuleType) -> None:
    with pytest.raises(FunctionTimeoutError, match="timeout"):
        program.too_long.remote()


def test_the_siblings_of_an_input_over_its_timeout_go_back_to_the_queue(program: ModuleType, marks: str) -> None:
    results = list(program.long_beside_short.map([600, 0.3], [marks, marks], return_exceptions=True))
    assert isinstance(results[0], FunctionTimeoutError)
    assert results[1] == 0.3


def test_a_lost_container_puts_its_inputs_back_without_counting_as_a_retry(program: ModuleType, marks: str) -> None:
    assert program.die_once.remote(marks) == "alive"


def test_an_input_that_loses_8_containers_alone_fails_and_says_what_was_seen(program: ModuleType) -> None:
    with pytest.raises(InternalFailure, match=r"(?s)8.*exit(ed)? (with )?(code|status)? ?7"):
        program.always_dies.remote()


def test_retries_are_refused_on_a_generator() -> None:
    with pytest.raises(InvalidError, match="retries"):

        @modal.App("refused").function(retries=1)
        def numbers():  # type: ignore[no-untyped-def]
            yield 1


def test_retries_are_refused_on_a_web_function() -> None:
    with pytest.raises(InvalidError, match="retries"):

        @modal.App("refused").function(retries=1)
        @modal.asgi_app()
        def site() -> None: ...


def test_enter_runs_once_a_container_before_any_input(program: ModuleType) -> None:
    counter = program.Counter()
    assert [counter.up.remote(), counter.up.remote(by=5)] == [1, 6]
    events, start, _ = counter.told.remote()
    assert (events, start) == (["enter"], 0)


def test_instances_with_different_parameters_have_their_own_pools(program: ModuleType) -> None:
    one, other = program.Counter(start=100), program.Counter(start=200)
    assert one.told.remote()[1:] != other.told.remote()[1:]
    assert one.up.remote() == 101
    assert other.up.remote() == 201


def test_a_generator_method_streams(program: ModuleType) -> None:
    assert list(program.Counter(start=5).numbers.remote_gen(3)) == [5, 6, 7]


def test_an_enter_that_raises_fails_the_inputs_after_three_tries(program: ModuleType, marks: str) -> None:
    with pytest.raises(program.Unlucky, match="start 3"):
        program.Fragile(marks=marks).use.remote()


def test_exit_runs_when_the_container_goes(program: ModuleType, marks: str) -> None:
    from world import eventually

    assert program.Leaver(marks=marks).use.remote() == 1
    eventually(lambda: Path(marks).exists(), "the container has left by its exit method")


def test_a_class_with_an_init_of_its_own_is_refused() -> None:
    with pytest.raises(InvalidError, match="__init__"):

        @modal.App("refused").cls()
        class Made:
            def __init__(self, x: int) -> None:
                self.x = x

            @modal.method()
            def use(self) -> int:
                return self.x


def test_variants_have_their_own_pools(program: ModuleType) -> None:
    variant = program.Counter.with_options(max_containers=1)
    assert variant(start=7).up.remote() == 8
    here = program.ids.remote()[2]
    there = program.ids.with_options(timeout=30).remote()[2]
    assert here != there


def test_a_local_instance_enters_before_its_first_method(program: ModuleType) -> None:
    counter = program.Counter(start=3)
    assert counter.up.local() == 4


TREE = """
Error < Exception
InvalidError NotFoundError AuthError PermissionDeniedError AlreadyExistsError ConflictError < Error
ResourceExhaustedError RemoteError ExecutionError SerializationError DeserializationError < Error
RequestSizeError InternalError InternalFailure ServiceError UnsupportedError TimeoutError < Error
FunctionTimeoutError OutputExpiredError < TimeoutError
InputCancellation < BaseException
DeprecationError < UserWarning
"""


@pytest.mark.parametrize(
    ("name", "parent"),
    [(name, line.split(" < ")[1]) for line in TREE.strip().splitlines() for name in line.split(" < ")[0].split()],
)
def test_the_errors_are_one_tree(name: str, parent: str) -> None:
    found = getattr(exception, name)
    parent_class = getattr(exception, parent, None) or __builtins__[parent]  # type: ignore[index]
    assert inspect.isclass(found)
    assert issubclass(found, parent_class)


def test_resource_exhausted_is_known_by_both_names_and_cancellation_is_no_exception() -> None:
    assert exception.ResourceExhausted is exception.ResourceExhaustedError
    assert not issubclass(exception.InputCancellation, Exception)
