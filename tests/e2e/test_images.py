"""Functions in environments of their own, from a program to what its containers find."""

from __future__ import annotations

import os
import signal
import urllib.request
from pathlib import Path

from tiny_packages import begun, write_slow_project, write_wheel
from world import NOMADFN, WAIT_S, World, eventually

HEAD = """
    import os, sys
    import nomadfn

    WHEELS = {wheels!r}
    TINY = dict(find_links=WHEELS, extra_options="--no-index")
    slim = nomadfn.Image.debian_slim()
"""
SIDE_BY_SIDE = """
    one = slim.pip_install("tiny==1.0", **TINY).env({"GREETING": "hello", "ORDER": "image"})
    two = slim.uv_pip_install("tiny==2.0", **TINY).workdir(os.path.join(os.path.dirname(WHEELS), "made", "here"))
    app = nomadfn.App("images", image=one)

    with one.imports():
        import tiny
    with two.imports():
        import tiny
        raise_in_two = tiny.ONLY_IN_TWO

    @app.function(env={"ORDER": "env"})
    def first(x):
        return x, tiny.__version__, os.environ["GREETING"], os.environ["ORDER"]

    @app.function(image=two)
    def second(x):
        return x, tiny.__version__, os.getcwd().endswith("/made/here"), raise_in_two

    @app.function(image=slim)
    def bare(x):
        try:
            import tiny
        except ImportError:
            return x, sys.executable

    @app.function(image=two, serialized=True)
    def by_value(x):
        import subprocess, tiny
        said = subprocess.run(["python", "-c", "import tiny; print(tiny.__version__)"], capture_output=True, text=True)
        return x, tiny.__version__, said.stdout.strip()

    @app.local_entrypoint()
    def main():
        print(list(first.map(range(2)))[1])
        print(second.remote(2))
        print(bare.remote(3)[1] == sys.executable)
        print(by_value.remote(4))
"""


def head(world: World) -> str:
    wheels = world.folder.parent / "wheels"
    write_wheel(wheels, "tiny", "1.0")
    write_wheel(wheels, "tiny", "2.0", "ONLY_IN_TWO = 22")
    return HEAD.format(wheels=str(wheels))


def environments(world: World) -> list[str]:
    folder = Path(world.env["NOMADFN_ENVIRONMENTS"])
    return sorted(one.name for one in folder.glob("im-*") if one.is_dir())


def test_two_versions_of_a_package_run_side_by_side_in_one_app(world: World) -> None:
    world.write("images.py", head(world) + SIDE_BY_SIDE)
    done = world.nomadfn("run", "images.py").ok()
    assert done.out.splitlines() == [
        "(1, '1.0', 'hello', 'env')",
        "(2, '2.0', True, 22)",
        "True",
        "(4, '2.0', '2.0')",
    ]
    assert done.err.count("Building image im-") == done.err.count("Built image im-") == 2
    assert len(environments(world)) == 2
    again = world.nomadfn("run", "images.py").ok()
    assert (again.out, "Building" in again.err) == (done.out, False)


CLASSES = """
    one = slim.pip_install("tiny==1.0", **TINY).env({"GREETING": "hello"})
    broken = slim.pip_install("tiny==2.0", **TINY)
    app = nomadfn.App("classes")

    with one.imports():
        import tiny
    with broken.imports():
        import missing_from_it

    @app.cls(image=one)
    class Model:
        who: str = nomadfn.parameter(default="me")

        @nomadfn.enter()
        def load(self):
            self.version = tiny.__version__

        @nomadfn.method()
        def get(self, x):
            return x, self.version, self.who, os.environ["GREETING"]

    @app.cls(image=broken)
    class Broken:
        @nomadfn.method()
        def get(self):
            pass

    @app.local_entrypoint()
    def main():
        print(Model(who="you").get.remote(1))
        print(Model.with_options(max_containers=2)().get.remote(2))
        Broken().get.remote()
"""


def test_classes_and_their_variants_have_images_as_functions_do(world: World) -> None:
    world.write("classes.py", head(world) + CLASSES)
    done = world.nomadfn("run", "classes.py")
    assert done.out.splitlines() == ["(1, '1.0', 'you', 'hello')", "(2, '1.0', 'me', 'hello')"], done.report
    assert done.code != 0
    assert "No module named 'missing_from_it'" in done.without_our_frames().err


def test_a_build_that_fails_is_told_with_the_last_lines_of_its_log(world: World) -> None:
    source = """
    app = nomadfn.App("failing")

    @app.function(image=slim.pip_install("tiny==9.0", **TINY))
    def f():
        pass

    @app.local_entrypoint()
    def main():
        f.remote()
    """
    world.write("failing.py", head(world) + source)
    done = world.nomadfn("run", "failing.py")
    done.refused(done.code, "its image im-", "could not be built; its last output", "tiny==9.0", "ended with exit code")
    assert done.code != 0
    assert done.err.count("│ Building image") == 2, "tried once, and told live and with the error"
    assert environments(world) == []


def test_ctrl_c_while_an_image_is_built_leaves_nothing_running(world: World) -> None:
    project = write_slow_project(world.folder.parent / "slow")
    source = f"""
    app = nomadfn.App("building")

    @app.function(image=slim.pip_install({str(project)!r}, extra_options="--no-index"), startup_timeout=1)
    def f():
        import slow
        return slow.__version__

    @app.local_entrypoint()
    def main():
        print(f.remote())
    """
    world.write("building.py", head(world) + source)
    first = world.start(NOMADFN, "run", "building.py")
    eventually(lambda: begun(project) == 1, "the build has begun")
    os.killpg(first.pid, signal.SIGINT)
    first.wait()
    world.all_gone()
    (project / "gate").touch()
    assert world.nomadfn("run", "building.py").ok().out == "1.0\n"
    assert begun(project) == 2


LIVING = """
    app = nomadfn.App("living")

    @app.function(image=slim.pip_install("tiny==1.0", **TINY))
    def f(what):
        import tiny
        if what == "exit" and not os.path.exists("gone"):
            open("gone", "w").close()
            os._exit(3)
        return os.getpid(), os.getppid()

    @app.local_entrypoint()
    def main():
        import signal, time
        child, parent = f.remote("exit")
        os.kill(parent, signal.SIGKILL)
        while os.path.exists(f"/proc/{child}"):
            time.sleep(0.01)
        after, other = f.remote("stay")
        print(after != child, other != parent)
"""


def test_containers_and_warm_parents_of_an_image_that_are_killed_are_replaced(world: World) -> None:
    world.write("living.py", head(world) + LIVING)
    done = world.nomadfn("run", "living.py").ok()
    assert done.out == "True True\n", done.report


def test_kill_9_of_the_command_leaves_nothing_of_an_image_running(world: World) -> None:
    source = """
    app = nomadfn.App("killed")

    @app.function(image=slim.pip_install("tiny==1.0", **TINY))
    def f():
        import subprocess, time
        subprocess.Popen(["sleep", "100"], start_new_session=True)
        open("runs", "w").close()
        time.sleep(100)

    @app.local_entrypoint()
    def main():
        f.remote()
    """
    world.write("killed.py", head(world) + source)
    run = world.start(NOMADFN, "run", "killed.py")
    eventually((world.folder / "runs").exists, run)
    os.kill(run.pid, signal.SIGKILL)
    world.all_gone()


def test_a_deployed_function_gets_the_image_of_its_new_version(world: World) -> None:
    source = """
    app = nomadfn.App("versions")

    @app.function(image=slim.pip_install("tiny==VERSION", **TINY), min_containers=1)
    def f():
        import tiny
        return tiny.__version__
    """
    world.up()
    for version in ("1.0", "2.0"):
        world.write("versions.py", head(world) + source.replace("VERSION", version))
        world.nomadfn("deploy", "versions.py").ok()
        assert world.nomadfn("function", "call", "versions", "f").ok().out.strip().strip("'\"") == version


def test_images_are_built_from_the_start_of_a_run_and_at_a_deploy_on(world: World) -> None:
    project = write_slow_project(world.folder.parent / "slow")
    source = f"""
    app = nomadfn.App("early")

    @app.function(image=slim.pip_install({str(project)!r}, extra_options="--no-index"))
    def f():
        import slow
        return slow.__version__

    @app.local_entrypoint()
    def main():
        open("main", "w").close()
        import time
        while not os.path.exists("end"):
            time.sleep(0.02)
    """
    world.write("early.py", head(world) + source)
    run = world.start(NOMADFN, "run", "early.py")
    eventually(lambda: begun(project) == 1 and (world.folder / "main").exists(), "nobody has called it")
    eventually(lambda: "f │ Building image im-" in run.err, run)
    (world.folder / "end").touch()
    run.wait().ok()
    world.up()
    world.nomadfn("deploy", "early.py").ok()
    eventually(lambda: begun(project) == 2, "the deploy has begun it")
    call = world.start(NOMADFN, "function", "call", "early", "f")
    waits = "starting: its image im-"
    eventually(lambda: waits in world.nomadfn("function", "explain", "early", "f").ok().out, "who waits, and for what")
    (project / "gate").touch()
    assert "1.0" in call.wait().ok().out
    assert begun(project) == 2


def test_a_web_function_of_an_image_needs_nothing_of_nomadfns_own_in_it(world: World) -> None:
    source = """
    app = nomadfn.App("web")

    @app.function(image=slim.pip_install("tiny==1.0", **TINY))
    @nomadfn.wsgi_app()
    def site():
        import tiny

        def answer(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [tiny.__version__.encode()]

        return answer
    """
    record = world.up()
    world.write("web.py", head(world) + source)
    world.nomadfn("deploy", "web.py").ok()
    with urllib.request.urlopen(f"{record['web_url']}/web/site", timeout=WAIT_S) as answer:
        assert answer.read() == b"1.0"


def test_a_container_image_is_refused_where_there_is_none(world: World) -> None:
    source = """
    app = nomadfn.App("docker")

    @app.function(image=nomadfn.Image.from_registry("python:3.12-slim"))
    def f():
        pass

    @app.local_entrypoint()
    def main():
        f.remote()
    """
    world.write("docker.py", head(world) + source)
    done = world.nomadfn("run", "docker.py")
    assert done.code != 0
    assert "asks for the container image 'python:3.12-slim'" in done.without_our_frames().err
    assert "Image.debian_slim()" in done.err


def test_a_working_directory_that_cannot_be_made_is_named(world: World) -> None:
    source = """
    app = nomadfn.App("workdir")

    @app.function(image=slim.workdir("/proc/nowhere"))
    def f():
        pass

    @app.local_entrypoint()
    def main():
        f.remote()
    """
    world.write("workdir.py", head(world) + source)
    done = world.nomadfn("run", "workdir.py")
    assert done.code != 0
    assert "working directory /proc/nowhere cannot be used" in done.without_our_frames().err


def test_an_import_that_fails_in_the_functions_own_image_fails_the_function(world: World) -> None:
    source = """
    app = nomadfn.App("imports")
    image = slim.pip_install("tiny==1.0", **TINY)
    with image.imports():
        import missing_from_it

    @app.function(image=image)
    def f():
        pass

    @app.function()
    def other():
        return "runs"

    @app.local_entrypoint()
    def main():
        print(other.remote())
        f.remote()
    """
    world.write("imports.py", head(world) + source)
    done = world.nomadfn("run", "imports.py")
    assert done.code != 0
    assert done.out == "runs\n"
    assert "No module named 'missing_from_it'" in done.without_our_frames().err
