"""Images on a cluster: environments that the agent of an allocation makes on its node, and container images."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest
from cluster_world import ClusterWorld, made_on_double
from consul_server import ConsulServer
from tiny_packages import write_wheel
from world import World, eventually

pytestmark = [pytest.mark.consul, pytest.mark.timeout(240)]

PROGRAM = """
    import os, sys
    import nomadfn

    WHEELS = {wheels!r}
    TINY = dict(find_links=WHEELS, extra_options="--no-index")
    slim = nomadfn.Image.debian_slim().env({{"GREETING": "hello"}})
    app = nomadfn.App("images", image=slim.pip_install("tiny==1.0", **TINY))

    @app.function(scaledown_window=2)
    def first(x):
        import tiny
        print("first has", tiny.__version__)
        return x, tiny.__version__, os.environ["GREETING"], sys.prefix

    @app.function(image=slim.pip_install("tiny==2.0", **TINY), scaledown_window=2)
    def second(x):
        import tiny
        return x, tiny.__version__, os.environ["GREETING"], sys.prefix

    @app.function(image=slim.pip_install("tiny==9.0", **TINY))
    def failing():
        pass

    @app.local_entrypoint()
    def main():
        print([one[:3] for one in first.map(range(2))])
        print(second.remote(2)[:3])
        assert first.remote(0)[3] != second.remote(0)[3]
        assert all(os.environ["NOMADFN_ENVIRONMENTS"] in one.remote(0)[3] for one in (first, second))
        try:
            failing.remote()
        except nomadfn.exception.ExecutionError as error:
            print(error)
"""
DOCKER = """
    import nomadfn

    app = nomadfn.App("docker")

    @app.function(image=nomadfn.Image.from_registry("ghcr.io/me/mine:1"))
    def f():
        pass

    @app.local_entrypoint()
    def main():
        f.remote()
"""


def with_wheels(world: World) -> None:
    wheels = world.folder.parent / "wheels"
    for version in ("1.0", "2.0"):
        write_wheel(wheels, "tiny", version)
    world.write("images.py", PROGRAM.format(wheels=str(wheels)))


def test_the_agent_of_an_allocation_makes_the_environment_and_shows_its_log(any_world: ClusterWorld) -> None:
    world = any_world
    world.configure({**world.job, "memory_mib": 256})  # Nomad ends a build that takes more than the function has.
    world.start_control()
    world.led()
    with_wheels(world)
    done = world.nomadfn("run", "images.py", timeout_s=180).ok()
    lines = done.out.splitlines()
    assert [line for line in lines if line.startswith(("[", "("))] == [
        "[(0, '1.0', 'hello'), (1, '1.0', 'hello')]",
        "(2, '2.0', 'hello')",
    ]
    assert re.search(r"first#\d │ first has 1.0", done.out)
    assert "its image im-" in done.out
    assert "could not be built; its last output" in done.out
    for function in ("first", "second", "failing"):
        assert re.search(rf"{function}#\d │ Building image im-", done.err)
    made = Path(world.env["NOMADFN_ENVIRONMENTS"])
    assert len([one for one in made.glob("im-*") if one.is_dir()]) == 2


LONG = """
    import os, time
    import nomadfn

    app = nomadfn.App("long")
    slim = nomadfn.Image.debian_slim()

    @app.function(image=slim.pip_install("tiny==1.0", find_links={wheels!r}, extra_options="--no-index"), timeout=200)
    def wait(gate):
        import tiny
        os.close(os.open(f"{{gate}}-{{time.monotonic_ns()}}", os.O_CREAT | os.O_EXCL))
        while not os.path.exists(gate):
            time.sleep(0.02)
        return tiny.__version__
"""
CALL = """
    import sys
    import nomadfn

    print(nomadfn.Function.from_name("long", "wait").remote(sys.argv[1]))
"""


def test_a_container_of_an_image_goes_on_under_the_next_leader(any_world: ClusterWorld, tmp_path: Path) -> None:
    world, gate = any_world, tmp_path / "gate"
    world.configure({**world.job, "memory_mib": 256})
    first = world.start_control()
    world.led()
    second = world.start_control()
    eventually(lambda: "standing by" in second.out, second)
    wheels = world.folder.parent / "wheels"
    write_wheel(wheels, "tiny", "1.0")
    world.write("long.py", LONG.format(wheels=str(wheels)))
    world.write("call.py", CALL)
    world.nomadfn("deploy", "long.py", timeout_s=120).ok()
    call = world.start(sys.executable, "call.py", gate)
    eventually(lambda: list(tmp_path.glob("gate-*")), "it runs", 90)
    first.process.send_signal(signal.SIGSTOP)
    eventually(lambda: "leads at" in second.out, second, 90)
    gate.touch()
    assert call.wait(90).ok().out == "1.0\n"
    assert len(list(tmp_path.glob("gate-*"))) == 1, "it ran once"
    first.process.kill()


def test_a_container_image_becomes_that_of_the_job_and_needs_a_driver_that_has_one(any_world: ClusterWorld) -> None:
    world = any_world
    world.start_control()
    world.led()
    world.write("docker.py", DOCKER)
    done = world.nomadfn("run", "docker.py")
    assert done.code != 0
    assert (
        "asks for the image 'ghcr.io/me/mine:1', but the cluster's driver is raw_exec" in done.without_our_frames().err
    )
    world.nomadfn("render", "docker.py").refused(3, "but the cluster's driver is raw_exec")


def test_on_a_cluster_with_docker_a_container_image_is_that_of_the_job(tmp_path: Path, consul: ConsulServer) -> None:
    with made_on_double(tmp_path, consul) as world:
        world.configure({**world.job, "driver": "docker"})
        world.start_control()
        world.led()
        world.write("docker.py", DOCKER)
        task = world.nomadfn("render", "docker.py", "--json").ok().json["f"]["TaskGroups"][0]["Tasks"][0]
        assert (task["Driver"], task["Config"]["image"]) == ("docker", "ghcr.io/me/mine:1")
