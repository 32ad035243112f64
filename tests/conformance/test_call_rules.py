"""semantics: calls. Every rule of the table, against a real control service and real containers."""

from __future__ import annotations

import asyncio
import builtins
import itertools
import threading
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from world import World, eventually

import nomadfn as modal
from nomadfn.exception import InvalidError, NotFoundError, SerializationError


def test_remote_returns_what_the_function_does(program: ModuleType) -> None:
    assert program.double.remote(4) == 8
    assert program.echo.remote(1, "b", c=[3]) == ((1, "b"), {"c": [3]})


def test_local_runs_it_here(program: ModuleType) -> None:
    assert program.double.local(4) == 8
    assert program.where.local() is True
    assert program.where.remote() is False


def test_a_users_exception_comes_back_as_its_own_type_with_the_remote_traceback(program: ModuleType) -> None:
    with pytest.raises(program.Unlucky, match="no 3") as caught:
        program.picky.remote(3)
    assert "in picky" in "".join(traceback.format_exception(caught.value))


def test_every_blocking_verb_has_an_aio_variant(program: ModuleType) -> None:
    async def all_of_them() -> list[Any]:
        call = await program.double.spawn.aio(1)
        several = await program.double.spawn_map.aio([2, 3])
        return [
            await program.double.remote.aio(4),
            [item async for item in program.double.map.aio([5, 6])],
            [item async for item in program.echo.starmap.aio([(7, 8)])],
            await program.double.for_each.aio([9]),
            await call.get.aio(),
            [item async for item in several.iter.aio()],
        ]

    assert asyncio.run(all_of_them()) == [8, [10, 12], [((7, 8), {})], None, 2, [4, 6]]


def test_an_async_function_is_called_as_any_other(program: ModuleType) -> None:
    assert program.double_async.remote(4) == 8
    assert list(program.double_async.map(range(3))) == [0, 2, 4]


def test_nothing_of_a_map_happens_until_it_is_iterated(program: ModuleType) -> None:
    taken: list[int] = []

    def items() -> Any:
        for item in range(3):
            taken.append(item)
            yield item

    results = program.double.map(items())
    assert taken == []
    assert list(results) == [0, 2, 4]


def test_several_iterators_are_zipped_and_stop_at_the_shortest(program: ModuleType) -> None:
    assert list(program.echo.map([1, 2, 3], itertools.count(7))) == [((1, 7), {}), ((2, 8), {}), ((3, 9), {})]


def test_kwargs_of_a_map_go_to_every_call(program: ModuleType) -> None:
    assert list(program.echo.map([1, 2], kwargs={"k": 5})) == [((1,), {"k": 5}), ((2,), {"k": 5})]


def test_at_most_1000_inputs_of_one_map_are_in_flight(program: ModuleType) -> None:
    pulled = itertools.count()
    results = iter(program.double.map(iter(lambda: next(pulled), -1)))
    assert [next(results) for _ in range(5)] == [0, 2, 4, 6, 8]
    results.close()
    assert next(pulled) <= 1_005


def test_results_of_a_map_are_in_the_inputs_order_unless_told_otherwise(program: ModuleType) -> None:
    assert list(program.nap.map([0.2, 0.0, 0.1])) == [0.2, 0.0, 0.1]
    assert sorted(program.nap.map([0.2, 0.0, 0.1], order_outputs=False)) == [0.0, 0.1, 0.2]


def test_the_first_error_of_a_map_raises_unless_exceptions_are_returned(program: ModuleType) -> None:
    with pytest.raises(program.Unlucky):
        list(program.picky.map(range(10)))
    results = list(program.picky.map(range(10), return_exceptions=True))
    assert [n for n, one in enumerate(results) if isinstance(one, program.Unlucky)] == [3, 8]


def test_a_map_iterated_inside_a_running_event_loop_names_map_aio(program: ModuleType) -> None:
    async def inside() -> None:
        list(program.double.map([1]))

    with pytest.raises(InvalidError, match=r"map\.aio"):
        asyncio.run(inside())


def test_starmap_spreads_its_items(program: ModuleType) -> None:
    assert list(program.echo.starmap([(1, 2), (3, 4)])) == [((1, 2), {}), ((3, 4), {})]


def test_for_each_returns_none_and_raises_unless_exceptions_are_ignored(program: ModuleType) -> None:
    assert program.double.for_each(range(5)) is None
    assert program.picky.for_each(range(5), ignore_exceptions=True) is None
    with pytest.raises(program.Unlucky):
        program.picky.for_each(range(5))


def test_a_spawn_is_a_call_that_can_be_read_by_its_id(program: ModuleType) -> None:
    call = program.double.spawn(21)
    assert call.object_id.startswith("fc-")
    assert modal.FunctionCall.from_id(call.object_id).get() == 42
    assert call.num_inputs() == 1


def test_a_spawn_map_is_read_by_iter_and_by_index(program: ModuleType) -> None:
    call = program.double.spawn_map(range(10))
    assert list(call.iter()) == [2 * n for n in range(10)]
    assert list(call.iter(start=2, end=4)) == [4, 6]
    assert call.get(index=7) == 14
    assert call.num_inputs() == 10


def test_get_with_a_timeout_of_0_polls_and_raises_the_builtin_timeout_error(program: ModuleType, marks: str) -> None:
    call = program.wait_for.spawn(marks)
    with pytest.raises(builtins.TimeoutError):
        call.get(timeout=0)
    with pytest.raises(builtins.TimeoutError):
        call.get(timeout=0.01)
    Path(marks).touch()
    assert call.get() == "done"
    assert call.get(timeout=0) == "done"


def test_a_cancelled_call_raises_and_its_container_goes_on(program: ModuleType, marks: str, tmp_path: Path) -> None:
    call = program.wait_for.spawn(marks)
    call.cancel()
    with pytest.raises(BaseException, match="cancelled") as caught:
        call.get()
    assert type(caught.value).__name__ == "InputCancellation"
    other = tmp_path / "other"
    other.touch()
    assert program.wait_for.remote(str(other)) == "done"


def test_gather_waits_for_all_and_raises_the_first_error(program: ModuleType) -> None:
    assert modal.FunctionCall.gather(*(program.double.spawn(n) for n in range(3))) == [0, 2, 4]
    with pytest.raises(program.Unlucky):
        modal.FunctionCall.gather(program.picky.spawn(1), program.picky.spawn(3))


def test_the_call_graph_names_the_call_and_its_status(program: ModuleType) -> None:
    call = program.double.spawn(1)
    call.get()
    graph = call.get_call_graph()
    assert [one.function_call_id for one in graph] == [call.object_id]
    assert graph[0].status.name == "SUCCESS"


@pytest.mark.parametrize("verb", ["remote_gen"])
def test_remote_gen_of_a_plain_function_names_remote(program: ModuleType, verb: str) -> None:
    with pytest.raises(InvalidError, match="remote"):
        list(getattr(program.double, verb)(1))


@pytest.mark.parametrize("verb", ["remote", "spawn"])
def test_a_generator_function_is_for_remote_gen(program: ModuleType, verb: str) -> None:
    with pytest.raises(InvalidError, match="remote_gen"):
        getattr(program.count_to, verb)(3)


def test_remote_gen_gives_each_value_as_it_is_made(program: ModuleType) -> None:
    assert list(program.count_to.remote_gen(4)) == [0, 1, 2, 3]
    assert list(program.count_to_async.remote_gen(4)) == [0, 1, 2, 3]

    async def first_two() -> list[int]:
        found = []
        async for number in program.count_to.remote_gen.aio(10**9):
            found.append(number)
            if len(found) == 2:
                break
        return found

    assert asyncio.run(first_two()) == [0, 1]


def test_from_name_is_lazy_and_an_unknown_name_raises_at_the_first_use(service: World, deployed: str) -> None:
    assert modal.Function.from_name(deployed, "double").remote(3) == 6
    unknown = modal.Function.from_name(deployed, "nothing")
    with pytest.raises(NotFoundError, match="nothing"):
        unknown.remote(1)
    with pytest.raises(NotFoundError):
        modal.Function.from_name("no-such-app", "double").remote(1)


def test_cls_from_name_is_lazy_and_an_unknown_name_raises_at_the_first_use(service: World, deployed: str) -> None:
    assert modal.Cls.from_name(deployed, "Counter")(start=5).up.remote() == 6
    unknown = modal.Cls.from_name(deployed, "Nothing")
    with pytest.raises(NotFoundError, match="Nothing"):
        unknown().up.remote()


def test_a_value_that_cannot_be_pickled_is_a_serialization_error(program: ModuleType) -> None:
    with pytest.raises(SerializationError):
        program.double.remote(threading.Lock())
    with pytest.raises(SerializationError):
        program.unpicklable.remote()


def test_the_ids_are_those_of_the_input_the_call_and_the_container(program: ModuleType) -> None:
    call = program.ids.spawn()
    input_id, call_id, container = call.get()
    assert input_id.startswith("in-")
    assert call_id == call.object_id
    assert container
    assert modal.current_input_id() is None


def test_an_update_of_the_autoscaler_stacks_and_reverts_at_the_next_deploy(service: World, deployed: str) -> None:
    scaled = modal.Function.from_name(deployed, "scaled")
    first = scaled.update_autoscaler(buffer_containers=1)
    assert (first.max_containers, first.buffer_containers, first.scaledown_window) == (3, 1, 120)
    second = scaled.update_autoscaler(max_containers=2)
    assert (second.max_containers, second.buffer_containers) == (2, 1)
    service.deploy("conformance_app.py")
    assert scaled.update_autoscaler().max_containers == 3
    assert scaled.update_autoscaler().buffer_containers == 0


def test_the_newer_spelling_of_the_autoscaler_resets_with_none(service: World, deployed: str) -> None:
    scaled = modal.Function.from_name(deployed, "scaled")
    scaled.autoscaler.update(max_containers=2)
    assert scaled.autoscaler.settings().max_containers == 2
    scaled.autoscaler.update(max_containers=None)
    assert scaled.autoscaler.settings().max_containers in (3, None)


def test_the_current_stats_have_backlog_runners_running_and_headroom(program: ModuleType, marks: str) -> None:
    calls = [program.wait_for.spawn(marks) for _ in range(3)]
    eventually(lambda: program.wait_for.get_current_stats().num_running_inputs == 1, "one of three runs")
    stats = program.wait_for.get_current_stats()
    assert (stats.backlog, stats.num_total_runners, stats.input_headroom) == (2, 1, 0)
    Path(marks).touch()
    assert modal.FunctionCall.gather(*calls) == ["done"] * 3
