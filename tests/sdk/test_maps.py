"""Maps: order, bounds, and how they end."""

from __future__ import annotations

import asyncio
import gc
import itertools
import pickle
import queue
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from nomadfn_agent import wire
from nomadfn_agent.wire.payload import Raised, encode
from nomadfn_agent.wire.store import BlobStore, Place

from nomadfn import App
from nomadfn.exception import InvalidError, ResourceExhaustedError, SerializationError
from nomadfn.sdk.errors import Reader
from nomadfn.sdk.maps import MapRun

from .conftest import Double, Recorder


def cancelled(double: Double) -> list[str]:
    return [one.body["call"] for one in double.requests if one.operation == "call.cancel"]


def test_ten_thousand_results_come_in_order(app: App) -> None:
    square = app.registered_functions["square"]
    values = range(100, 10_100)
    assert list(square.map(values)) == [x * x for x in values]


def test_nothing_happens_before_it_is_iterated(app: App, double: Double) -> None:
    pulled: list[int] = []
    results = app.registered_functions["square"].map(pulled.append(x) or x for x in range(3))  # type: ignore[func-returns-value]
    assert not pulled
    assert not double.submitted
    assert list(results) == [0, 1, 4]
    assert pulled == [0, 1, 2]


def test_several_iterables_are_zipped_and_stop_at_the_shortest(app: App, double: Double) -> None:
    double.functions["square"] = lambda x, y, z=0: (x, y, z)
    square = app.registered_functions["square"]
    assert list(square.map([1, 2, 3], itertools.count(10), kwargs={"z": 5})) == [(1, 10, 5), (2, 11, 5), (3, 12, 5)]


def test_starmap_spreads_each_item_over_the_arguments(app: App, double: Double) -> None:
    double.functions["square"] = lambda x, y: x + y
    assert list(app.registered_functions["square"].starmap([(1, 2), (3, 4), (5, 6)])) == [3, 7, 11]


def test_results_wait_for_those_before_them_unless_the_order_does_not_matter(app: App, double: Double) -> None:
    square = app.registered_functions["square"]
    reversed_order = ReversedResults(double, 5)
    double.intercept = reversed_order
    assert list(square.map([1, 2, 3, 4, 5])) == [1, 4, 9, 16, 25]
    assert list(square.map([1, 2, 3, 4, 5], order_outputs=False)) == [25, 16, 9, 4, 1]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_frames_in_any_order_give_each_result_once_and_errors_in_their_place(seed: int, ordered: bool) -> None:
    random = Random(seed)
    kinds = random.choices(["plain", "json", "raised", "unreadable"], weights=[20, 1, 1, 1], k=60)
    frames, left = [], list(range(60))
    while left:
        first = random.randrange(len(left))
        taken = left[first : first + random.randint(1, 12)]
        left = [index for index in left if index not in taken]
        if random.random() < 0.2:
            random.shuffle(taken)
        frames += [taken] if kinds[taken[0]] != "json" else [[index] for index in taken]
    call = SimpleNamespace(arrived=deque[Any](), window=1000)
    run = MapRun(
        call,  # type: ignore[arg-type]
        Reader(BlobStore(Place), "f", owns_blobs=True),
        None,  # type: ignore[arg-type]
        inline=True,
        ordered=ordered,
        return_exceptions=True,
        on_progress=lambda *_: None,
        on_close=lambda _: None,
    )
    given: list[Any] = []
    for taken in frames:
        columns = [result_of(index, kinds[index]) for index in taken]
        codec = wire.JSON if kinds[taken[0]] == "json" and len(taken) == 1 else wire.PICKLE
        columns = [(wire.OK, b"%d" % index) for index in taken] if codec == wire.JSON else columns
        call.arrived.append((taken, [one[0] for one in columns], [one[1] for one in columns], codec))
        if random.random() < 0.7:
            given += run._collect()
    given += run._collect()
    errors = [index for index, one in enumerate(given) if isinstance(one, BaseException)]
    assert len(given) == 60
    assert len(errors) == sum(kind in ("raised", "unreadable") for kind in kinds)
    if ordered:
        assert [index for index, one in enumerate(given) if one == index] == [
            index for index, kind in enumerate(kinds) if kind not in ("raised", "unreadable")
        ]
    else:
        good = [one for one in given if not isinstance(one, BaseException)]
        assert sorted(good) == [index for index, kind in enumerate(kinds) if kind not in ("raised", "unreadable")]


def result_of(index: int, kind: str) -> tuple[int, bytes]:
    if kind == "raised":
        return wire.EXCEPTION, encode(Raised(b"", "ValueError", str(index), ""))
    return wire.OK, b"unreadable" if kind == "unreadable" else pickle.dumps(index, 5)


class ReversedResults:
    """Answers a frame of inputs one by one from its end."""

    def __init__(self, double: Double, count: int) -> None:
        self.double = double
        self.count = count

    def __call__(self, connection: Any, frame: Any) -> bool:
        if not isinstance(frame, wire.Submit):
            return False
        for place in reversed(range(len(frame.payloads))):
            self.double._answer(connection, frame, [place])
        return True


def test_the_first_exception_is_raised_in_its_place_and_cancels_the_rest(app: App, double: Double) -> None:
    results = app.registered_functions["square"].map(itertools.count(11))
    assert next(results) == 121
    assert next(results) == 144
    with pytest.raises(ValueError, match="no 13") as caught:
        next(results)
    assert "in square" in str(caught.value.__cause__)
    double.wait_until(lambda: cancelled(double) == [double.submitted[0].call])


def test_exceptions_are_results_if_that_is_wanted(app: App) -> None:
    results = list(app.registered_functions["square"].map([12, 13, 14], return_exceptions=True))
    assert results[0] == 144
    assert isinstance(results[1], ValueError)
    assert results[2] == 196


@pytest.mark.parametrize("order_outputs", [True, False])
def test_an_endless_generator_is_pulled_no_further_than_the_window(
    app: App, double: Double, order_outputs: bool
) -> None:
    pulled = 0
    most_ahead = 0
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal pulled, most_ahead
        for x in itertools.count(100):
            pulled += 1
            most_ahead = max(most_ahead, pulled - taken)
            yield x

    results = app.registered_functions["square"].map(endless(), order_outputs=order_outputs)
    for _ in range(5_000):
        next(results)
        taken += 1
    results.close()
    # `taken` is counted after `next` has returned, so the generator may see one less than the map does.
    assert most_ahead <= double.window + 1
    assert pulled <= taken + double.window
    double.wait_until(lambda: len(cancelled(double)) == 1)


@pytest.mark.parametrize("order_outputs", [True, False])
@pytest.mark.parametrize("ahead", [1, 2, 7, 100])
@pytest.mark.parametrize("is_async", [False, True])
def test_no_more_than_max_ahead_inputs_are_taken_before_their_results_are_read(
    app: App, double: Double, order_outputs: bool, ahead: int, is_async: bool
) -> None:
    pulled = taken = 0
    most_ahead = 0

    def endless() -> Iterator[int]:
        nonlocal pulled, most_ahead
        for x in itertools.count(100):
            pulled += 1
            most_ahead = max(most_ahead, pulled - taken)
            yield x

    square = app.registered_functions["square"]
    if is_async:

        async def run() -> None:
            nonlocal taken
            results = square.map.aio(endless(), order_outputs=order_outputs, max_ahead=ahead)
            async for _ in results:
                taken += 1
                if taken == 500:
                    break
            await results.aclose()

        asyncio.run(run())
    else:
        results = square.map(endless(), order_outputs=order_outputs, max_ahead=ahead)
        for _ in range(500):
            next(results)
            taken += 1
        results.close()
    # The loop counts a result when it has it, which is before the map knows that it is done with it.
    assert most_ahead <= ahead + 1
    assert ahead // 2 <= most_ahead, "and no less than it may"


def test_a_max_ahead_of_more_than_the_window_is_the_window(app: App, double: Double) -> None:
    double.window = 50
    square = app.registered_functions["square"]
    assert list(square.map(iter(range(20, 220)), max_ahead=10_000)) == [x * x for x in range(20, 220)]
    square.for_each(range(20, 40), max_ahead=1)
    assert [len(one.payloads) for one in double.submitted[-20:]] == [1] * 20


def test_a_long_map_keeps_nothing_of_what_is_done(app: App, double: Double) -> None:
    def blocks() -> int:
        for memory in (double.submitted, double.frames, double._done):
            memory.clear()
        gc.collect()
        return sys.getallocatedblocks()

    results = app.registered_functions["square"].map(itertools.count(100))
    for _ in range(2_000):
        next(results)
    before = blocks()
    for _ in range(20_000):
        next(results)
    assert blocks() - before < 10_000
    results.close()


def test_a_slow_iterator_holds_back_neither_inputs_nor_results(app: App) -> None:
    feedback: queue.Queue[int] = queue.Queue()

    def from_results() -> Iterator[int]:
        yield 2
        while (value := feedback.get(timeout=20)) < 10_000:
            yield value

    seen = []
    for result in app.registered_functions["square"].map(from_results()):
        seen.append(result)
        feedback.put(result)
    assert seen == [4, 16, 256, 65536]


def test_an_iterator_that_raises_gives_its_results_and_then_its_exception(app: App) -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("the input is broken")

    got: list[int] = []
    with pytest.raises(KeyError, match="the input is broken"):
        got.extend(app.registered_functions["square"].map(broken()))
    results = app.registered_functions["square"].map(broken(), return_exceptions=True)
    assert [next(results), next(results)] == [1, 4]
    with pytest.raises(KeyError):
        next(results)


def test_an_argument_that_cannot_be_pickled_is_named(app: App) -> None:
    with pytest.raises(SerializationError, match=r"argument 1 of square, of type lock") as caught:
        list(app.registered_functions["square"].map([threading.Lock()]))
    assert "pass plain data" in str(caught.value)


def test_leaving_a_map_early_cancels_it_and_stops_its_iterator(app: App, double: Double) -> None:
    double.hold = True
    before = threading.active_count()
    results = app.registered_functions["square"].map(itertools.count())
    thread = threading.Thread(target=lambda: [next(results, None)], daemon=True)
    thread.start()
    double.wait_until(lambda: double.inputs() == double.window)
    double.release()
    thread.join(20)
    results.close()
    double.wait_until(lambda: len(cancelled(double)) == 1)
    double.wait_until(lambda: threading.active_count() <= before + 1)


def test_inside_a_running_loop_the_plain_form_names_the_other(app: App) -> None:
    square = app.registered_functions["square"]

    async def wrong() -> None:
        for _ in square.map([1]):
            pass

    with pytest.raises(InvalidError, match=r"square\.map\.aio"):
        asyncio.run(wrong())

    async def wrong_too() -> None:
        square.for_each([1])

    with pytest.raises(InvalidError, match=r"for_each\.aio"):
        asyncio.run(wrong_too())


def test_the_async_form_takes_plain_and_async_iterables(app: App) -> None:
    square = app.registered_functions["square"]

    async def numbers() -> AsyncIterator[int]:
        for x in range(100, 3_000):
            if x % 500 == 0:
                await asyncio.sleep(0)
            yield x

    async def main() -> None:
        assert [x async for x in square.map.aio(range(20, 3_000))] == [x * x for x in range(20, 3_000)]
        assert [x async for x in square.map.aio(iter([1, 2]))] == [1, 4]
        assert [x async for x in square.map.aio(numbers())] == [x * x for x in range(100, 3_000)]
        await square.for_each.aio(numbers())

    asyncio.run(main())


def test_an_async_iterable_needs_the_async_form(app: App) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(InvalidError, match="async iterable needs the async form"):
        list(app.registered_functions["square"].map(numbers()))  # type: ignore[arg-type]


def test_for_each_gives_nothing_and_can_ignore_exceptions(app: App, double: Double) -> None:
    square = app.registered_functions["square"]
    assert square.for_each([1, 2, 13], ignore_exceptions=True) is None
    assert double.inputs() == 3
    with pytest.raises(ValueError):
        square.for_each([13])


def test_a_map_over_a_limit_backs_off_warns_and_goes_on(app: App, double: Double, recorder: Recorder) -> None:
    refusals = 3

    def refuse_at_first(connection: Any, frame: Any) -> bool:
        nonlocal refusals
        if not isinstance(frame, wire.Submit) or refusals == 0:
            return False
        refusals -= 1
        rejection = wire.Rejected(
            frame.call, frame.first, len(frame.payloads), "ResourceExhaustedError", "2,000 inputs wait", 0.01
        )
        connection.send(wire.encode(rejection))
        return True

    double.intercept = refuse_at_first
    values = range(20, 2_520)
    assert list(app.registered_functions["square"].map(values)) == [x * x for x in values]
    assert len(recorder.notices) == 1
    assert "2,000 inputs wait" in recorder.notices[0]


def test_a_map_that_is_refused_for_good_raises_why(app: App, double: Double) -> None:
    def refuse(connection: Any, frame: Any) -> bool:
        if isinstance(frame, wire.Submit):
            rejection = wire.Rejected(frame.call, frame.first, len(frame.payloads), "InvalidError", "the app is over")
            connection.send(wire.encode(rejection))
        return isinstance(frame, wire.Submit)

    double.intercept = refuse
    with pytest.raises(InvalidError, match="the app is over"):
        list(app.registered_functions["square"].map(itertools.count()))
    with pytest.raises(InvalidError, match="the app is over"):
        app.registered_functions["square"].spawn_map(range(20_000))


def test_remote_and_spawn_over_a_limit_raise_with_all_that_is_known(app: App, double: Double) -> None:
    def refuse(connection: Any, frame: Any) -> bool:
        if isinstance(frame, wire.Submit):
            rejection = wire.Rejected(
                frame.call, 0, 1, "ResourceExhaustedError", "full", 2.5, "pending inputs a function", 2_000, 2_000
            )
            connection.send(wire.encode(rejection))
        return isinstance(frame, wire.Submit)

    double.intercept = refuse
    square = app.registered_functions["square"]
    for verb in (square.remote, square.spawn):
        with pytest.raises(ResourceExhaustedError) as caught:
            verb(1)
        error = caught.value
        assert (error.limit, error.value, error.maximum, error.retry_after_s) == (
            "pending inputs a function",
            2_000,
            2_000,
            2.5,
        )


def test_spawn_map_returns_once_every_input_is_safe_and_the_call_closed(app: App, double: Double) -> None:
    call = app.registered_functions["square"].spawn_map(x for x in range(10_000))
    assert double.inputs() == 10_000
    assert call.num_inputs() == 10_000
    closing = [one.body for one in double.requests if one.operation == "call.close"]
    assert closing == [{"call": call.object_id, "total": 10_000}]


def test_an_empty_map_is_over_at_once(app: App, double: Double) -> None:
    assert list(app.registered_functions["square"].map([])) == []
    assert list(app.registered_functions["square"].map(iter(()))) == []
    assert not double.submitted


def test_progress_is_told_from_the_start_to_the_end(app: App, recorder: Recorder) -> None:
    list(app.registered_functions["square"].map([1, 2, 3]))
    assert recorder.maps[0] == ("started", "square", 3)
    assert recorder.maps[-2] == ("advanced", 3, 3)
    assert recorder.maps[-1] == ("finished",)


def test_large_arguments_travel_out_of_band(app: App, double: Double) -> None:
    double.functions["square"] = len
    square = app.registered_functions["square"]
    assert list(square.map([b"x" * 10, b"x" * 300_000, b"x" * 20])) == [10, 300_000, 20]
    assert double.submitted[0].refs == [1]


def test_wrong_options_and_inputs_are_refused(app: App) -> None:
    square: Any = app.registered_functions["square"]
    with pytest.raises(InvalidError, match="at least one iterable"):
        list(square.map())
    with pytest.raises(InvalidError, match="int is none"):
        list(square.map(5))
    with pytest.raises(InvalidError, match="no option 'y'"):
        square.map([1], y=2)
    for wrong in (0, -1, 1.5, True, "3"):
        with pytest.raises(InvalidError, match=r"max_ahead=.* must be a whole number, 1 or more"):
            square.map([1], max_ahead=wrong)
        with pytest.raises(InvalidError, match="max_ahead"):
            square.for_each([1], max_ahead=wrong)
    with pytest.raises(InvalidError, match="one iterable"):
        square.starmap([(1, 2)], [(3, 4)])
