"""The session: errors, lost connections, other control services, forks, and what it tells."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from nomadfn_agent import wire
from nomadfn_agent.wire import payload as payloads

from nomadfn import App, Function, FunctionCall
from nomadfn.exception import (
    AuthError,
    DeserializationError,
    FunctionTimeoutError,
    InvalidError,
    NotFoundError,
    RemoteError,
    RequestSizeError,
    SerializationError,
    ServiceError,
)
from nomadfn.sdk import client as client_module
from nomadfn.sdk import service

from .conftest import Double, Recorder, square


class NeedsTwo(Exception):
    """Pickles, and cannot be unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@pytest.fixture
def verb(app: App) -> Any:
    return app.registered_functions["square"]


def answer_with(double: Double, status: int, data: bytes) -> None:
    double._compute = lambda submit, place: (status, data)  # type: ignore[method-assign]


def test_a_call_gives_the_result_and_raises_the_functions_own_exception(verb: Any) -> None:
    assert verb.remote(7) == 49
    with pytest.raises(ValueError, match="no 13") as caught:
        verb.remote(13)
    assert "Traceback (most recent call last)" in str(caught.value.__cause__)
    assert asyncio.run(verb.remote.aio(5)) == 25


def test_many_threads_may_call_at_once(verb: Any) -> None:
    results: dict[int, int] = {}

    def work(start: int) -> None:
        for x in range(start, start + 50):
            results[x] = verb.remote(x)

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {x: x * x for n in range(1, 9) for x in range(100 * n, 100 * n + 50)}


def test_many_tasks_may_call_at_once(verb: Any) -> None:
    async def main() -> list[int]:
        return list(await asyncio.gather(*(verb.remote.aio(x) for x in range(20, 120))))

    assert asyncio.run(main()) == [x * x for x in range(20, 120)]


def test_an_exception_that_cannot_be_rebuilt_becomes_a_remote_error_with_its_text(verb: Any, double: Double) -> None:
    raised = payloads.describe_exception(NeedsTwo(1, 2))
    answer_with(double, wire.EXCEPTION, payloads.encode(raised))
    with pytest.raises(RemoteError, match="NeedsTwo: 1 and 2") as caught:
        verb.remote(1)
    assert "NeedsTwo" in str(caught.value.__cause__)


def test_what_nomadfn_could_not_do_is_an_error_of_its_own(verb: Any, double: Double) -> None:
    failure = payloads.Failure("FunctionTimeoutError", "square ran longer than 300 s")
    answer_with(double, wire.FAILURE, payloads.encode(failure))
    with pytest.raises(FunctionTimeoutError, match="300 s"):
        verb.remote(1)


def test_a_result_that_cannot_be_unpickled_here_says_so(verb: Any, double: Double) -> None:
    answer_with(double, wire.OK, b"cno_such_module\nThing\n.")
    with pytest.raises(DeserializationError, match=r"result of square.*no_such_module"):
        verb.remote(1)


def test_a_large_result_is_read_from_its_blob_and_the_blob_deleted(verb: Any, double: Double) -> None:
    ref = double.blobs.write(payloads.dumps("x" * 300_000), "ap-1")
    answer_with(double, wire.OK | wire.REF, payloads.encode(ref))
    assert verb.remote(1) == "x" * 300_000
    assert not os.path.exists(payloads.blob_path(double.blobs.place.folder, ref.name))


def test_arguments_over_the_limit_and_unpicklable_ones_are_refused_by_name(verb: Any) -> None:
    with pytest.raises(RequestSizeError, match="arguments of square have"):
        verb.remote(b"x" * (1 << 20))
    with pytest.raises(SerializationError, match="argument 'x' of square, of type lock"):
        verb.remote(x=threading.Lock())


def test_after_a_lost_connection_what_is_unfinished_is_sent_again(verb: Any, double: Double) -> None:
    double.hold = True
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.extend(verb.map(range(20, 620))))
    thread.start()
    double.wait_until(lambda: double.inputs() == 600)
    double.held.clear()  # the inputs are lost with the connection
    double.hold = False
    double.cut()
    thread.join(30)
    assert got == [x * x for x in range(20, 620)]


def test_results_that_come_twice_count_once(verb: Any, double: Double) -> None:
    def twice(connection: Any, frame: Any) -> bool:
        if isinstance(frame, wire.Submit):
            double._answer(connection, frame, list(range(len(frame.payloads))))
            double._done.clear()
            double._answer(connection, frame, list(range(len(frame.payloads))))
        return isinstance(frame, wire.Submit)

    double.intercept = twice
    assert list(verb.map(range(20, 2_020))) == [x * x for x in range(20, 2_020)]


def test_to_another_control_service_the_app_is_told_before_the_inputs(verb: Any, double: Double) -> None:
    double.hold = True
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(verb.remote(9)))
    thread.start()
    double.wait_until(lambda: double.inputs() == 1)
    double.held.clear()
    double.hold = False
    double.frames.clear()
    double.forget()
    double.cut()
    thread.join(30)
    assert got == [81]
    kinds = [one.operation if isinstance(one, wire.Request) else type(one).__name__ for one in double.frames]
    assert kinds[:4] == ["Hello", "app.start", "app.watch", "Submit"]


def test_a_resumed_session_says_what_it_has_seen(verb: Any, double: Double) -> None:
    list(verb.map(range(20, 320)))
    double.wait_until(lambda: double.acked == 300)
    double.frames.clear()
    double.cut()
    double.wait_until(lambda: bool(double.frames))
    assert double.frames[0].seen == 300
    assert verb.remote(20) == 400


def test_results_are_acknowledged(verb: Any, double: Double) -> None:
    list(verb.map(range(20, 1_020)))
    double.wait_until(lambda: double.acked == 1_000)


def test_a_control_service_that_stays_away_is_an_error_that_says_what_to_do(
    double: Double, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    monkeypatch.setattr(client_module, "RECONNECT_S", 0.2)
    double.hold = True
    app = App("lost")
    verb: Any = app.function()(square)
    with app.run(observer=recorder):
        outcome: list[BaseException] = []

        def call() -> None:
            try:
                verb.remote(1)
            except ServiceError as error:
                outcome.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        double.wait_until(lambda: double.inputs() == 1)
        double.stop()
        thread.join(30)
        assert "has not come back" in str(outcome[0])
        assert "nomadfn up" in str(outcome[0])
        with pytest.raises(ServiceError):
            verb.remote(2)
    assert "could not be stopped" in recorder.notices[-1]


def test_a_wrong_token_is_an_auth_error(double: Double) -> None:
    client = client_module.Client(double.handle("nf_wrong"))
    with pytest.raises(AuthError, match="refused the token"):
        client.connect()
    client.close()


def test_without_a_control_service_the_error_names_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "attach", lambda: None)
    monkeypatch.setattr(client_module, "_default", None)
    with pytest.raises(ServiceError, match="nomadfn up"):
        Function.from_name("nowhere", "f").remote(1)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_a_session_of_its_own_and_leaves_its_parents_alone(verb: Any, double: Double) -> None:
    assert verb.remote(3) == 9
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(verb.remote(4)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    assert answer == b"16"
    assert verb.remote(5) == 25
    hellos = [one for one in double.frames if isinstance(one, wire.Hello)]
    assert len({one.session for one in hellos}) == 2


def test_an_interrupted_call_is_cancelled(verb: Any, double: Double) -> None:
    double.hold = True

    async def main() -> None:
        task = asyncio.create_task(verb.remote.aio(1))
        await asyncio.to_thread(double.wait_until, lambda: double.inputs() == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    double.wait_until(lambda: any(one.operation == "call.cancel" for one in double.requests))


def test_logs_reach_the_observer_and_its_errors_stay_its_own(
    verb: Any, double: Double, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    double.connections[-1].send(wire.encode(wire.Log("ct-1", 1, "hello\n", "app", "square", 0)))
    assert verb.remote(2) == 4
    assert [line.text for line in recorder.lines] == ["hello\n"]
    recorder.log = lambda line: 1 / 0  # type: ignore[method-assign, assignment]
    double.connections[-1].send(wire.encode(wire.Log("ct-1", 1, "again\n", "app", "square", 0)))
    assert verb.remote(2) == 4
    assert "observer failed in <lambda>: ZeroDivisionError" in capsys.readouterr().err


def outputs(double: Double, pages: Iterator[dict[str, Any]]) -> None:
    """Answer `call.outputs` with these pages, one after the other."""

    def intercept(connection: Any, frame: Any) -> bool:
        if isinstance(frame, wire.Request) and frame.operation == "call.outputs":
            page = next(pages)
            error = page.pop("error", "")
            connection.send(wire.encode(wire.Reply(frame.id, page, error, "gone" if error else "")))
            return True
        return False

    double.intercept = intercept


def page(first: int, *values: Any, total: int | None = None) -> dict[str, Any]:
    return {
        "indexes": list(range(first, first + len(values))),
        "statuses": [wire.OK] * len(values),
        "payloads": [payloads.dumps(value) for value in values],
        "codec": wire.PICKLE,
        "num_inputs": total,
        "closed": total is not None,
    }


def test_a_spawned_call_waits_polls_and_runs_out_of_time(verb: Any, double: Double) -> None:
    call = verb.spawn(3)
    outputs(double, iter([page(0, total=1), page(0, total=1), page(0, total=1), page(0, 9, total=1)]))
    with pytest.raises(TimeoutError, match="no result yet"):
        call.get(timeout=0)
    assert double.requests[-1].body["wait_s"] == 0
    assert call.get() == 9
    assert FunctionCall.from_id(call.object_id).object_id == call.object_id
    outputs(double, iter([{"error": "NotFoundError"}]))
    with pytest.raises(NotFoundError):
        FunctionCall.from_id("fc-0").get()
    with pytest.raises(InvalidError, match="not the id of a call"):
        FunctionCall.from_id("nonsense")
    with pytest.raises(InvalidError, match="seconds"):
        call.get(timeout=-1)


def test_results_of_a_call_are_iterated_and_gathered_in_order(verb: Any, double: Double) -> None:
    call = verb.spawn_map([1, 2, 3])
    outputs(double, iter([page(0, 1), page(1, 4, 9, total=3), page(3, total=3)]))
    assert list(call.iter()) == [1, 4, 9]
    outputs(double, iter([page(2, 9, total=3), page(3, total=3)]))
    assert call.get(index=2) == 9
    with pytest.raises(InvalidError, match="has 3 inputs"):
        call.get(index=3)
    calls = [verb.spawn(x) for x in range(100)]
    outputs(double, (page(0, x, total=1) for x in range(100)))
    assert FunctionCall.gather(*calls) == list(range(100))

    async def main() -> list[Any]:
        outputs(double, iter([page(0, 1, 4, 9, total=3), page(3, total=3)]))
        return [x async for x in call.iter.aio()]

    assert asyncio.run(main()) == [1, 4, 9]


def test_outside_of_a_running_app_the_error_says_the_ways_in() -> None:
    app = App("idle")
    verb: Any = app.function()(square)
    with pytest.raises(InvalidError, match=r"with app\.run\(\).*nomadfn run.*from_name"):
        verb.remote(1)


def test_a_function_defined_after_the_start_is_refused(app: App) -> None:
    @app.function()
    def late(x: int) -> int:
        return x

    with pytest.raises(InvalidError, match="defined after its app was started"):
        late.remote(1)


def test_an_app_runs_in_async_with_and_its_verbs_are_awaited(double: Double, recorder: Recorder) -> None:
    app = App("awaited")
    verb: Any = app.function()(square)
    double.functions["square"] = square

    async def main() -> None:
        async with app.run(observer=recorder) as running:
            assert running is app
            assert (app.app_id or "").startswith("ap-")
            assert await verb.remote.aio(3) == 9
            call = await verb.spawn.aio(4)
            outputs(double, iter([page(0, 16, total=1), page(0, 16, total=1)]))
            assert await call.get.aio(timeout=5) == 16
            assert await FunctionCall.gather.aio(call) == [16]

    asyncio.run(main())
    assert app.app_id is None
    assert double.requests[-1].operation == "app.stop"
