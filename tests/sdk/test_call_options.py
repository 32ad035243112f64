"""What a call says beside its arguments, on every verb, and after a lost connection."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import pytest

from nomadfn import App
from nomadfn.exception import DeadlineExceededError, Error, InvalidError

from .conftest import Double


def test_every_verb_of_the_view_says_its_priority_and_what_is_left_of_its_deadline(app: App, double: Double) -> None:
    square = app.registered_functions["square"]
    view = square.call_options(deadline=60, priority=5)
    assert view.remote(3) == 9
    assert list(view.map([1, 2])) == [1, 4]
    assert list(view.starmap([(3,)])) == [9]
    view.for_each([1])
    view.spawn(2)
    view.spawn_map([1, 2])
    assert asyncio.run(view.remote.aio(4)) == 16
    assert len(double.submitted) >= 7
    for submit in double.submitted:
        assert submit.priority == 5
        assert submit.deadline_s is not None
        assert 0 < submit.deadline_s <= 60


def test_the_function_itself_stays_as_it_was(app: App, double: Double) -> None:
    square = app.registered_functions["square"]
    square.call_options(deadline=60, priority=5)
    assert square.remote(3) == 9
    assert (double.submitted[0].priority, double.submitted[0].deadline_s) == (0, None)


def test_an_argument_of_the_function_may_have_the_same_name(app: App, double: Double) -> None:
    double.functions["square"] = lambda x, deadline, priority: (x, deadline, priority)
    view = app.registered_functions["square"].call_options(priority=1)
    assert view.remote(1, deadline="mine", priority="mine too") == (1, "mine", "mine too")


def test_options_of_options_add_up_and_a_view_is_the_function_otherwise(app: App, double: Double) -> None:
    square = app.registered_functions["square"]
    view: Any = square.call_options(priority=5).call_options(deadline=60)
    view.remote(1)
    assert double.submitted[0].priority == 5
    assert double.submitted[0].deadline_s is not None
    assert view.local(3) == 9
    assert view.app is app
    assert "priority=5" in repr(view)
    with pytest.raises(InvalidError, match=r"use square\.remote"):
        view(3)


def test_the_deadline_goes_on_running_while_the_connection_is_lost(app: App, double: Double) -> None:
    double.hold = True
    got: list[Any] = []
    view = app.registered_functions["square"].call_options(deadline=60)
    thread = threading.Thread(target=lambda: got.append(view.remote(9)))
    thread.start()
    double.wait_until(lambda: double.inputs() == 1)
    double.held.clear()  # the input is lost with the connection
    double.hold = False
    double.cut()
    thread.join(30)
    assert got == [81]
    first, again = (one.deadline_s for one in double.submitted)
    assert first is not None
    assert again is not None
    assert again < first


@pytest.mark.parametrize("deadline", [0, -1, True, "3", float("nan"), float("inf")])
def test_a_deadline_that_is_no_time_to_come_is_refused(app: App, deadline: Any) -> None:
    with pytest.raises(InvalidError, match=r"square\.call_options: deadline=.*number of seconds"):
        app.registered_functions["square"].call_options(deadline=deadline)


@pytest.mark.parametrize("priority", [101, -101, 1.0, True, "high"])
def test_a_priority_that_is_out_of_range_is_refused(app: App, priority: Any) -> None:
    with pytest.raises(InvalidError, match=r"priority=.*-100 to 100"):
        app.registered_functions["square"].call_options(priority=priority)


def test_a_missed_deadline_is_caught_as_the_builtin_and_as_one_of_ours() -> None:
    error = DeadlineExceededError("late")
    assert isinstance(error, TimeoutError)
    assert isinstance(error, Error)
    assert str(pickle.loads(pickle.dumps(error))) == "late"
