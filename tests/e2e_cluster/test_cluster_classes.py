"""Classes and variants on a cluster: a job for each pool, and another leader that takes them on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cluster_world import ClusterWorld
from world import eventually

pytestmark = [pytest.mark.consul, pytest.mark.timeout(240)]

MODELS = """
    import os, time
    import nomadfn

    app = nomadfn.App("models")

    @app.cls(scaledown_window=3600)
    class Model:
        size: str = nomadfn.parameter(default="small")

        @nomadfn.enter()
        def load(self):
            self.steps = ["load"]

        @nomadfn.exit()
        def leave(self):
            open(os.environ["LOG"], "a").write(f"exit {self.size}\\n")

        @nomadfn.method()
        def predict(self, x):
            return [self.size, self.steps, x, os.getpid()]

        @nomadfn.method()
        async def wait(self, path):
            while not os.path.exists(path):
                time.sleep(0.02)
            return self.size

        @nomadfn.method()
        def other(self, x):
            return self.predict.remote(x)
"""
CALL = """
    import json, sys
    import nomadfn

    Model = nomadfn.Cls.from_name("models", "Model")
    print(json.dumps([Model(size=size).predict.remote(n) for n, size in enumerate(sys.argv[1:])]))
"""
SPAWN = """
    import sys
    import nomadfn

    Model = nomadfn.Cls.from_name("models", "Model").with_options(env={"LOG": sys.argv[2]})
    print(Model(size="spawned").wait.spawn(sys.argv[1]).object_id)
    print(Model(size="spawned").other.spawn(7).object_id)
"""
GET = """
    import json, sys
    import nomadfn

    print(json.dumps([nomadfn.FunctionCall.from_id(one).get(timeout=90) for one in sys.argv[1:]]))
"""


SCALE = """
    import nomadfn

    nomadfn.Cls.from_name("models", "Model")(size="a").update_autoscaler(min_containers=1)
"""
WITHOUT = """
    import nomadfn

    app = nomadfn.App("models")

    @app.function()
    def left():
        pass
"""


def functions(world: ClusterWorld) -> Any:
    return world.ask("GET", "/v1/functions")["functions"]


def jobs(world: ClusterWorld) -> list[str]:
    api = world.api()
    try:
        return [job["ID"] for job in api.jobs(f"{world.name}-fn-models-model")]
    finally:
        api.close()


def test_each_variant_is_a_job_that_the_next_leader_takes_on(any_world: ClusterWorld) -> None:
    world = any_world
    for name, source in (
        ("models.py", MODELS),
        ("call.py", CALL),
        ("spawn.py", SPAWN),
        ("get.py", GET),
        ("scale.py", SCALE),
    ):
        world.write(name, source)
    log = world.folder / "log"
    log.write_text("")
    world.env["LOG"] = str(log)
    world.start_control()
    before = world.led()
    standby = world.start_control()
    eventually(lambda: "standing by" in standby.out, standby)
    world.write("models.py", MODELS.replace("@app.cls(", f"@app.cls(env={{'LOG': {str(log)!r}}}, "))
    world.deploy("models.py")
    first = json.loads(world.python("call.py", "a", "b", "a", "small").ok().out)
    assert [one[:3] for one in first] == [
        ["a", ["load"], 0],
        ["b", ["load"], 1],
        ["a", ["load"], 2],
        ["small", ["load"], 3],
    ]
    assert first[0][3] == first[2][3]
    assert len(jobs(world)) == 3, "the class's own pool and two variants"
    world.python("scale.py").ok()

    gate = world.folder / "gate"
    calls = world.python("spawn.py", gate, log).ok().out.split()
    world.leading().process.kill()
    eventually(lambda: (found := world.leader()) is not None and found != before, "another leader")
    again = json.loads(world.python("call.py", "a", "b").ok().out)
    assert [one[3] for one in again] == [first[0][3], first[1][3]], "their containers went on"
    gate.write_text("")
    waited, other = json.loads(world.python("get.py", *calls).ok().out)
    assert waited == "spawned"
    assert other[:3] == ["spawned", ["load"], 7]

    [kept] = [one for one in functions(world) if one["arguments"] == {"size": "a"}]
    assert kept["settings"]["min_containers"] == 1

    world.write("models.py", WITHOUT)
    world.deploy("models.py")
    eventually(lambda: len(log.read_text().splitlines()) >= 4, "what @exit methods have written")
    assert set(log.read_text().splitlines()) == {"exit a", "exit b", "exit small", "exit spawned"}
    assert [one["name"] for one in functions(world)] == ["left"]
    eventually(lambda: jobs(world) == [], "the jobs of what was removed have gone")
