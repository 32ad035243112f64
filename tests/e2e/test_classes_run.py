"""Classes and variants in real processes: their order of life, their pools, and what becomes of them later."""

from __future__ import annotations

import json
import os
import signal

import pytest
from world import NOMADFN, World, eventually

MODELS = """
    import asyncio, os, time
    import nomadfn

    app = nomadfn.App("models")
    log = open(os.environ.get("LOG", os.devnull), "a")

    def note(*words):
        print(*words, file=log, flush=True)

    @app.cls(scaledown_window=2)
    class Model:
        size: str = nomadfn.parameter(default="small")
        count: int = nomadfn.parameter(default=1)

        @nomadfn.enter()
        def load(self):
            self.steps.append(f"load {self.size}")

        @nomadfn.enter(snap=True)
        async def open(self):
            await asyncio.sleep(0)
            self.loop = asyncio.get_running_loop()
            self.steps = ["open"]

        @nomadfn.exit()
        async def leave(self):
            assert asyncio.get_running_loop() is self.loop
            note("exit", self.size)

        @nomadfn.exit()
        def fail_last(self):
            raise RuntimeError("the last one")

        @nomadfn.method()
        def predict(self, x):
            return [self.size, self.count, self.steps, x, os.getpid()]

        @nomadfn.method()
        async def wait(self, x):
            return [asyncio.get_running_loop() is self.loop, x, os.getpid()]

        @nomadfn.method()
        def nested(self, x):
            return [self.predict.local(x)[-1], self.wait.remote(x)[1], self.help(), os.getpid()]

        @nomadfn.method()
        def fail(self):
            raise ValueError(f"not for {self.size}")

        @nomadfn.method()
        def count_up(self, n):
            for i in range(n):
                yield [self.size, self.steps[0], i]

        def help(self):
            return self.count

    @app.cls(max_containers=1)
    @nomadfn.concurrent(max_inputs=4)
    class Together:
        @nomadfn.enter()
        def prepare(self):
            import threading
            self.met = threading.Barrier(2)

        @nomadfn.method()
        def meet(self, x):
            self.met.wait(30)
            return x, nomadfn.current_input_id()

        @nomadfn.method()
        async def meet_async(self, x):
            await asyncio.to_thread(self.met.wait, 30)
            return x, nomadfn.current_input_id()

        @nomadfn.method()
        def sleep(self):
            while True:
                time.sleep(0.01)

    @app.cls()
    class Batched:
        factor: int = nomadfn.parameter(default=2)

        @nomadfn.batched(max_batch_size=4, wait_ms=5000)
        def times(self, xs):
            return [[self.factor * x, len(xs)] for x in xs]

    @app.cls()
    class Broken:
        @nomadfn.enter()
        def load(self):
            note("tried")
            raise FileNotFoundError(2, "no weights", "weights.bin")

        @nomadfn.method()
        def predict(self, x):
            return x

    @app.function()
    def double(x):
        return 2 * x, os.environ.get("WORD"), os.getpid()

    @app.local_entrypoint()
    def life():
        size, count, steps, x, pid = Model().predict.remote(5)
        print(size, count, steps, x)
        same, x, other = Model().wait.remote(6)
        print(same, x, pid == other)
        print(list(Model().predict.starmap([(1,), (2,)]))[1][3], Model().predict.spawn(3).get()[3])
        nested = Model().nested.remote(7)
        print(nested[0] == nested[3], nested[1:3])
        try:
            Model().fail.remote()
        except ValueError as error:
            print("raised", error)
        print(asyncio.run(Model().predict.remote.aio(8))[3])
        print(list(Model(size="m").count_up.remote_gen(2)), list(Model().count_up.local(1)))

    @app.local_entrypoint()
    def pools():
        pids = [Model(size=size, count=count).predict.remote(0)[-1]
                for size, count in (("a", 1), ("b", 1), ("a", 2), ("a", 1), ("small", 1))]
        print(len(set(pids)), pids[0] == pids[3], pids[4] == Model().predict.remote(0)[-1])
        print([one[:2] for one in Model(size="c").predict.map(range(2))])

    @app.local_entrypoint()
    def together():
        first, second = Together().meet.spawn(1), Together().meet_async.spawn(2)
        (x, one), (y, two) = first.get(), second.get()
        print(x, y, one != two)
        stuck = Together().sleep.spawn()
        print(sorted([Together().meet.spawn(3), Together().meet.spawn(4)][n].get()[0] for n in ()))
        stuck.cancel()
        try:
            stuck.get(timeout=30)
        except nomadfn.exception.InputCancellation:
            print("cancelled")
        a, b = Together().meet.spawn(5), Together().meet_async.spawn(6)
        print(a.get()[0], b.get()[0])

    @app.local_entrypoint()
    def batches():
        print(list(Batched().times.map(range(4))))
        print(list(Batched(factor=3).times.map(range(4))))
        print(list(Batched.with_batching(max_batch_size=2, wait_ms=5000)().times.map(range(4))))

    @app.local_entrypoint()
    def broken():
        try:
            Broken().predict.remote(1)
        except FileNotFoundError as error:
            print(error.errno, error.filename)

    @app.local_entrypoint()
    def options():
        plain = double.remote(1)
        varied = double.with_options(env={"WORD": "word"}, timeout=9)
        print(plain[:2], varied.remote(2)[:2], list(varied.map([3]))[0][:2])
        print(plain[2] == double.remote(1)[2] != varied.remote(2)[2] == double.with_options(
            timeout=9, env={"WORD": "word"}).remote(2)[2])
        print(varied.with_options(env={"OTHER": "x"}).remote(4)[1], varied.local(4)[:2])
        secret = nomadfn.Secret.from_dict({"WORD": "secret"})
        print(double.with_options(secrets=[secret]).remote(5)[1])
        print(Model.with_options(env={"A": "1"})(size="z").predict.remote(1)[0])
        for wrong in (lambda: double.with_batching(max_batch_size=2, wait_ms=1).remote(1),
                      lambda: nomadfn.Cls.from_name("nowhere", "Model")().predict.remote(1)):
            try:
                wrong()
            except nomadfn.exception.Error as error:
                print(type(error).__name__, error)
"""


@pytest.fixture
def models(world: World) -> World:
    world.write("models.py", MODELS)
    return world


def run(world: World, name: str, **env: str) -> list[str]:
    return world.nomadfn("run", "-q", f"models.py::{name}", **env).ok().out.splitlines()


def test_a_container_is_entered_before_its_first_input_and_left_after_its_last(models: World) -> None:
    log = models.folder / "log"
    assert run(models, "life", LOG=str(log)) == [
        "small 1 ['open', 'load small'] 5",
        "True 6 True",
        "2 3",
        "True [7, 1]",
        "raised not for small",
        "8",
        "[['m', 'open', 0], ['m', 'open', 1]] [['small', 'open', 0]]",
    ]
    assert set(log.read_text().splitlines()) == {"exit small", "exit m"}


def test_each_set_of_parameters_has_containers_of_its_own(models: World) -> None:
    assert run(models, "pools") == ["4 True True", "[['c', 1], ['c', 1]]"]


def test_methods_of_both_kinds_run_together_in_a_concurrent_class(models: World) -> None:
    assert run(models, "together") == ["1 2 True", "[]", "cancelled", "5 6"]


def test_a_class_with_a_batched_method_gets_batches_in_each_of_its_pools(models: World) -> None:
    assert run(models, "batches") == [
        "[[0, 4], [2, 4], [4, 4], [6, 4]]",
        "[[0, 4], [3, 4], [6, 4], [9, 4]]",
        "[[0, 2], [2, 2], [4, 2], [6, 2]]",
    ]


def test_what_enter_raises_is_what_the_inputs_fail_with_after_three_tries(models: World) -> None:
    log = models.folder / "log"
    assert run(models, "broken", LOG=str(log)) == ["2 weights.bin"]
    assert log.read_text().splitlines() == ["tried"] * 3


def test_variants_of_a_function_differ_in_what_was_said(models: World) -> None:
    lines = run(models, "options")
    assert lines[:5] == ["(2, None) (4, 'word') (6, 'word')", "True", "word (8, None)", "secret", "z"]
    assert lines[5].startswith("InvalidError with_batching: double is not @batched")
    assert lines[6].startswith("NotFoundError no app nowhere")


def test_a_container_that_is_told_by_a_signal_to_end_leaves_first(models: World) -> None:
    log = models.folder / "log"
    models.up(LOG=str(log))
    models.deploy("models.py")
    call = models.python(
        "-c", "import nomadfn; print(nomadfn.Cls.from_name('models', 'Model')(size='x').predict.remote(1))"
    )
    [pid] = models.containers()
    assert "'x'" in call.ok().out
    os.kill(pid, signal.SIGTERM)
    models.gone([pid])
    assert log.read_text().splitlines() == ["exit x"]
    assert "RuntimeError: the last one" in models.nomadfn("app", "logs", "models").ok().err


SLOW = """
    import asyncio, os, threading, time
    import nomadfn

    app = nomadfn.App("slow")

    class Slow:
        @nomadfn.exit()
        def leave(self):
            with open(os.environ["LOG"], "a") as log:
                print("left", type(self).__name__, file=log)

    @app.cls()
    class One(Slow):
        @nomadfn.method()
        def hang(self):
            print("hangs", flush=True)
            while True:
                time.sleep(0.01)

    @app.cls()
    @nomadfn.concurrent(max_inputs=2)
    class Threads(One.raw_f):
        pass

    @app.cls()
    @nomadfn.concurrent(max_inputs=2)
    class Tasks(Slow):
        @nomadfn.method()
        async def hang(self):
            print("hangs", flush=True)
            await asyncio.sleep(3600)

    @app.cls()
    @nomadfn.concurrent(max_inputs=2)
    class Both(Tasks.raw_f):
        @nomadfn.method()
        def hang_too(self):
            print("hangs", flush=True)
            while True:
                time.sleep(0.01)

    @app.local_entrypoint()
    def main():
        for one in (One(), Threads(), Tasks(), Both()):
            one.hang.spawn()
        Both().hang_too.remote()
"""


def test_what_ctrl_c_interrupts_is_left_in_every_kind_of_container(world: World) -> None:
    log = world.folder / "log"
    world.write("slow.py", SLOW)
    running = world.start(NOMADFN, "run", "slow.py", LOG=str(log), NOMADFN_CAPACITY="8")
    eventually(lambda: running.err.count("hangs") + running.out.count("hangs") >= 5, running)
    running.process.send_signal(signal.SIGINT)
    assert running.wait().code == 130
    assert sorted(log.read_text().splitlines()) == ["left Both", "left One", "left Tasks", "left Threads"]


CALLER = """
    import sys
    import nomadfn

    Model = nomadfn.Cls.from_name("models", "Model")
    method, *arguments = sys.argv[1:]
    obj = Model.with_options(max_containers=1)(**dict(one.split("=") for one in arguments))
    print(getattr(obj, method).remote(1))
"""


def test_a_deployed_class_is_called_from_elsewhere_and_over_http(models: World) -> None:
    models.write("caller.py", CALLER)
    models.up()
    models.deploy("models.py")
    first = models.python("caller.py", "predict", "size=x").ok().out
    second = models.python("caller.py", "predict", "size=x").ok().out
    assert first == second, "two programs share the pool of one variant"
    assert "NotFoundError" in models.python("caller.py", "nonsense").err
    wrong = models.python("caller.py", "predict", "size=x", "colour=red")
    assert "Model has no parameter 'colour'; its parameters: size, count" in wrong.err
    wrong = models.python("caller.py", "predict", "count=x")
    assert "Model(count=...) takes an int, not 'x' of type str" in wrong.err

    wrong_verbs = """
import nomadfn
Model = nomadfn.Cls.from_name("models", "Model")
for wrong in (Model().count_up.remote, lambda n: list(Model().predict.remote_gen(n))):
    try:
        wrong(1)
    except nomadfn.exception.InvalidError as error:
        print(error)
print(nomadfn.Function.from_name("models", "Model.predict").remote(9)[3])
print(list(nomadfn.Function.from_name("models", "Model.count_up").remote_gen(1)))
"""
    said = models.python("-c", wrong_verbs).ok().out.splitlines()
    assert "Model.count_up is a generator function" in said[0]
    assert "Model.predict is no generator function" in said[1]
    assert said[2:] == ["9", "[['small', 'open', 0]]"]
    body = {"args": [4], "parameters": {"size": "http", "count": 3}}
    answer = models.ask("POST", "/v1/apps/models/functions/Model.predict/call", body)
    assert answer["result"][:2] == ["http", 3]
    called = models.nomadfn("function", "call", "models", "Model.predict", "5", "-p", "size=cli", "--json").ok()
    assert called.json[0] == "cli"
    listed = models.nomadfn("function", "list", "--app", "models").ok().out
    assert "(size=cli, count=1)" in listed
    refused = models.nomadfn("function", "call", "models", "Model.nonsense")
    assert "Model.predict" in refused.err
    assert "@" not in refused.err, "variants are not among what one may have meant"
    explained = models.explain("models", "Model.predict")
    assert explained["methods"] == ["predict", "wait", "nested", "fail", "count_up"]
    functions = models.ask("GET", "/v1/functions")["functions"]
    [variant] = [one["name"] for one in functions if one["arguments"] == {"size": "cli", "count": "1"}]
    again = models.nomadfn("function", "call", "models", f"{variant}.predict", "6", "--json").ok()
    assert again.json[0] == "cli"
    explained = models.nomadfn("function", "explain", "models", variant).ok().out
    assert "(size=cli, count=1)" in explained


def test_a_class_is_run_by_its_method_and_parameters_from_the_command_line(models: World) -> None:
    done = models.nomadfn("run", "-q", "models.py::Model.predict", "--x", "4", "--size", "big", "--count", "2").ok()
    assert done.out.startswith("['big', 2, ['open', 'load big'], '4'")
    models.nomadfn("run", "-q", "models.py::Model.nonsense").refused(2, "did you mean", "Model.")
    assert "--size" in models.nomadfn("run", "models.py::Model.predict", "--help").ok().out


SPAWN = """
    import nomadfn

    Model = nomadfn.Cls.from_name("jobs", "Job")
    for n in range(3):
        print(Model(word=f"w{n}").run.spawn(n).object_id)
    print(nomadfn.Function.from_name("jobs", "plain").with_options(env={"WORD": "x"}).spawn().object_id)
"""
JOBS = """
    import os, time
    import nomadfn

    app = nomadfn.App("jobs")

    @app.cls()
    class Job:
        word: str = nomadfn.parameter()

        @nomadfn.method()
        def run(self, n):
            while not os.path.exists(os.environ["GO"]):
                time.sleep(0.01)
            return VERSION, self.word, n

    @app.function()
    def plain():
        while not os.path.exists(os.environ["GO"]):
            time.sleep(0.01)
        return VERSION, os.environ.get("WORD"), 0
"""
GET = """
    import json, sys
    import nomadfn

    print(json.dumps([nomadfn.FunctionCall.from_id(one).get(timeout=60) for one in sys.argv[1:]]))
"""


def test_spawns_of_variants_survive_the_control_service_and_follow_a_deploy(world: World) -> None:
    world.write("jobs.py", "VERSION = 1\n" + JOBS.replace("\n    ", "\n"))
    world.write("spawn.py", SPAWN)
    world.write("get.py", GET)
    world.up(GO=str(world.folder / "go"))
    world.deploy("jobs.py")
    calls = world.python("spawn.py").ok().out.split()
    world.kill_service()
    world.up(GO=str(world.folder / "go"))
    names = {one["name"] for one in world.ask("GET", "/v1/functions")["functions"]}
    assert len(names) == 6, names
    world.write("jobs.py", "VERSION = 2\n" + JOBS.replace("\n    ", "\n"))
    world.deploy("jobs.py")
    world.write("go", "")
    results = json.loads(world.python("get.py", *calls).ok().out)
    assert [one[1:] for one in results] == [["w0", 0], ["w1", 1], ["w2", 2], ["x", 0]]
    again = world.python("spawn.py").ok().out.split()
    assert [one[0] for one in json.loads(world.python("get.py", *again).ok().out)] == [2, 2, 2, 2]
    world.nomadfn("app", "stop", "jobs").ok()
    world.kill_service()
    world.up()
    assert world.ask("GET", "/v1/functions")["functions"] == []


def test_a_variant_is_scaled_by_itself(models: World) -> None:
    models.up()
    models.deploy("models.py")
    script = """
import nomadfn
Model = nomadfn.Cls.from_name("models", "Model")
print(Model(size="kept").update_autoscaler(min_containers=1))
"""
    assert "min_containers=1" in models.python("-c", script).ok().out
    functions = models.ask("GET", "/v1/functions")["functions"]
    [variant] = [one for one in functions if one["variant_of"]]
    assert variant["arguments"] == {"size": "kept", "count": "1"}
    eventually(lambda: models.explain("models", variant["name"])["containers"], "a container of the variant")
    assert models.explain("models", "Model")["containers"] == []
    scaled = models.nomadfn("function", "scale", "models", variant["name"], "--min-containers", "0").ok()
    assert "min 0" in scaled.out
