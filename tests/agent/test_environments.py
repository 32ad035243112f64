"""Environments on disk: made once, whole or not used, and removed only where nobody uses them."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from nomadfn_agent import environment_build, environments, lent_packages
from nomadfn_agent.wire import ImageSpec, ImageStep, image_id
from tiny_packages import OFFLINE, begun, write_slow_project, write_wheel

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT_S = 60.0
BUILD = """
import sys
import msgspec
from nomadfn_agent import environments, wire
sys.exit(environments.build(msgspec.json.decode(sys.stdin.buffer.read(), type=wire.ImageSpec)))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's environments lie."""
    monkeypatch.setenv("NOMADFN_ENVIRONMENTS", str(tmp_path / "environments"))
    return tmp_path / "environments"


def installs(*requirements: str, wheels: Path | None = None, python: str = "", tool: str = "pip") -> ImageSpec:
    links = [] if wheels is None else [f"--find-links={wheels}"]
    return ImageSpec(python=python, steps=[ImageStep(tool=tool, arguments=[*requirements, OFFLINE, *links])])


def says(path: Path, program: str) -> str:
    command = [environments.python_of(str(path)), "-I", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout.strip()


def start(image: ImageSpec) -> subprocess.Popen[bytes]:
    """A builder beside the test, in a process group of its own; its log comes on stdout."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(image))
    process.stdin.close()
    process.stdin = None
    return process


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_an_environment_is_made_once_and_then_only_used(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wheel(tmp_path / "wheels", "tiny", "1.0")
    image = installs("tiny==1.0", wheels=tmp_path / "wheels")
    assert environments.use(image_id(image)) is None
    assert environments.build(image) == 0
    assert re.search(r"Building image im-\w+ .*=> pip install tiny==1.0.*Built image", capsys.readouterr().out, re.S)
    assert says(folder / image_id(image), "import tiny; print(tiny.__version__)") == "1.0"
    assert environments.build(image) == 0
    assert capsys.readouterr().out == ""
    found = environments.use(image_id(image))
    assert found is not None
    assert found[0] == str(folder / image_id(image))
    os.close(found[1])


def test_each_recipe_has_an_environment_of_its_own_whatever_its_working_directory() -> None:
    one = installs("tiny==1.0")
    assert image_id(one) == image_id(msgspec.structs.replace(one, workdir="/srv", interpreter="/usr/bin/python3"))
    others = [installs("tiny==1.1"), installs("tiny==1.0", tool="uv"), installs("tiny==1.0", python="3.12")]
    others.append(msgspec.structs.replace(one, once="x"))
    assert len({image_id(image) for image in (one, *others)}) == 5


def test_of_two_builders_one_builds_and_the_other_waits_for_it(tmp_path: Path, folder: Path) -> None:
    project = write_slow_project(tmp_path / "slow")
    image = installs(str(project))
    first = start(image)
    until(lambda: begun(project) == 1, "the first one builds")
    second = start(image)
    assert second.stdout is not None
    assert second.stdout.readline() == f"Waiting for image {image_id(image)}, which another process builds\n".encode()
    (project / "gate").touch()
    assert (first.communicate(timeout=WAIT_S)[0] != b"", first.returncode) == (True, 0)
    assert (second.communicate(timeout=WAIT_S)[0], second.returncode) == (b"", 0)
    assert begun(project) == 1
    assert says(folder / image_id(image), "import slow; print(slow.__version__)") == "1.0"


def test_what_a_killed_builder_leaves_behind_is_never_used_and_is_made_anew(tmp_path: Path, folder: Path) -> None:
    project = write_slow_project(tmp_path / "slow")
    image = installs(str(project))
    first = start(image)
    until(lambda: begun(project) == 1, "it builds")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=WAIT_S)
    assert (folder / image_id(image)).is_dir()
    assert environments.use(image_id(image)) is None
    (project / "gate").touch()
    assert environments.build(image) == 0
    assert begun(project) == 2
    assert says(folder / image_id(image), "import slow; print(slow.__version__)") == "1.0"


def test_a_build_that_fails_says_which_step_and_why_and_leaves_no_folder(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wheel(tmp_path / "wheels", "tiny", "1.0")
    image = installs("tiny==9.0", "--index-url=https://me:hunter2@example.org/simple", wheels=tmp_path / "wheels")
    assert environments.build(image) == 1
    said = capsys.readouterr().out
    assert "tiny==9.0" in said
    assert "ended with exit code 1" in said.splitlines()[-1]
    assert "https://***@example.org/simple" in said
    assert "hunter2" not in said
    assert not (folder / image_id(image)).exists()


def test_a_package_that_nomadfn_cannot_live_with_is_refused_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wheel(tmp_path / "wheels", "websockets", "10.0")
    assert environments.build(installs("websockets==10.0", wheels=tmp_path / "wheels")) == 1
    assert "nomadfn, which runs in the same process, needs websockets>=14.0" in capsys.readouterr().out


def test_what_slips_past_the_installer_is_found_before_the_environment_is_used(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(tmp_path / "wheels", "websockets", "10.0")
    monkeypatch.setattr(environment_build, "CONSTRAINTS", {})
    image = installs("websockets==10.0", wheels=tmp_path / "wheels")
    run = environment_build.Run(
        str(tmp_path), environment_build.find_uv(), str(tmp_path / "made"), 2, time.monotonic() + WAIT_S
    )
    run.make_environment(image)
    run.install(0, image.steps[0])
    monkeypatch.undo()
    with pytest.raises(environments.BuildError, match=r"the image has websockets 10\.0, .*needs websockets>=14\.0"):
        run.look(image)


def test_without_uv_pip_does_the_same(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment_build, "find_uv", lambda: "")
    write_wheel(tmp_path / "wheels", "tiny", "1.0")
    image = installs("tiny==1.0", wheels=tmp_path / "wheels")
    assert environments.build(image) == 0, capsys.readouterr().out
    assert "pip install uv" in capsys.readouterr().out
    assert says(folder / image_id(image), "import tiny; print(tiny.__version__)") == "1.0"
    assert environments.build(ImageSpec(steps=[ImageStep(tool="sync")])) == 1
    assert "uv_sync needs uv on this machine" in capsys.readouterr().out


def test_a_python_that_is_not_there_is_named_with_the_way_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    assert environments.build(ImageSpec(python="3.99")) == 1
    assert "install Python 3.99 on this machine, or leave python_version out" in capsys.readouterr().out


def test_the_programs_own_python_is_taken_where_it_has_the_version(tmp_path: Path) -> None:
    for name, version in (("right", "3.99.4"), ("wrong", "3.98.1")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {version}\n")
        (tmp_path / name).chmod(0o755)
    chosen = [
        environment_build.interpreter_for(ImageSpec(python="3.99", interpreter=str(tmp_path / name)), "uv")
        for name in ("right", "wrong", "absent")
    ]
    assert chosen == [str(tmp_path / "right"), "3.99", "3.99"]


def test_variables_of_a_step_are_there_while_it_runs_and_tokens_are_not(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOMADFN_TOKEN", "nf_hunter2hunter2hunter2")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    seen = tmp_path / "seen"
    project = write_slow_project(tmp_path / "slow")
    (project / "gate").touch()
    source = (project / "backend.py").read_text()
    (project / "backend.py").write_text(
        source + f"\nopen({str(seen)!r}, 'w').write(repr([os.environ.get(one) for one in "
        "('MINE', 'NOMADFN_TOKEN', 'PYTHONPATH')]))\n"
    )
    step = ImageStep(tool="pip", arguments=[str(project), OFFLINE], env={"MINE": "yes"})
    assert environments.build(ImageSpec(steps=[step])) == 0
    mine, token, path = ast.literal_eval(seen.read_text())
    assert (mine, token, "/nowhere" in (path or "")) == ("yes", None, False)


def test_where_pip_is_told_to_find_packages_uv_finds_them_too(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    write_wheel(tmp_path / "wheels", "tiny", "1.0")
    variables = {"PIP_FIND_LINKS": str(tmp_path / "wheels")}
    step = ImageStep(tool="pip", arguments=["tiny==1.0", OFFLINE], env=variables)
    assert environments.build(image := ImageSpec(steps=[step])) == 0
    assert says(folder / image_id(image), "import tiny; print(tiny.__version__)") == "1.0"


def test_requirements_travel_as_their_content(tmp_path: Path, folder: Path) -> None:
    write_wheel(tmp_path / "wheels", "tiny", "1.0")
    arguments = ["-r", "{files}/r.txt", OFFLINE, f"--find-links={tmp_path / 'wheels'}"]
    image = ImageSpec(steps=[ImageStep(tool="uv", arguments=arguments, files={"r.txt": "tiny==1.0  # yes\n"})])
    assert environments.build(image) == 0
    assert says(folder / image_id(image), "import tiny; print(tiny.__version__)") == "1.0"


def test_an_environment_whose_interpreter_has_gone_is_made_anew(tmp_path: Path, folder: Path) -> None:
    write_wheel(tmp_path / "wheels", "tiny", "1.0")
    image = installs("tiny==1.0", wheels=tmp_path / "wheels")
    assert environments.build(image) == 0
    python = folder / image_id(image) / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert environments.use(image_id(image)) is None
    assert environments.build(image) == 0
    assert says(folder / image_id(image), "import tiny; print(tiny.__version__)") == "1.0"


def test_old_environments_go_but_none_that_is_used(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOMADFN_ENVIRONMENTS_KEPT", "2")
    images = []
    for age, version in enumerate(("1.0", "1.1", "1.2", "1.3")):
        write_wheel(tmp_path / "wheels", "tiny", version)
        images.append(image_id(image := installs(f"tiny=={version}", wheels=tmp_path / "wheels")))
        if age == 0:
            assert environments.build(image) == 0
            used = environments.use(image_id(image))
            assert used is not None
        else:
            assert environments.build(image) == 0
        os.utime(folder / f"{image_id(image)}.lock", (age, age))
    there = [image for image in images if (folder / image).exists()]
    assert there == [images[0], images[2], images[3]]
    os.close(used[1])
    environments.clean(str(folder))
    assert [image for image in images if (folder / image).exists()] == images[2:]


def test_links_to_an_agent_that_is_gone_and_what_killed_builds_left_are_swept(tmp_path: Path, folder: Path) -> None:
    for name in ("own-1", "libraries-2", "libraries-3.12-x", ".build-old", ".build-new"):
        (folder / name).mkdir(parents=True)
    (folder / "own-1" / "nomadfn").symlink_to(tmp_path / "gone")
    (folder / "libraries-2" / "msgspec").symlink_to(tmp_path)
    os.utime(folder / ".build-old", (0, 0))
    environments.clean(str(folder))
    assert sorted(one.name for one in folder.iterdir()) == [".build-new", "libraries-2", "libraries-3.12-x"]


def test_what_the_agent_needs_of_shared_libraries_is_what_the_package_says() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    declared = {one.partition(">=")[0]: one.partition(">=")[2] for one in dependencies}
    stated = {name: ".".join(map(str, least)) for name, least in lent_packages.CONSTRAINTS.items()}
    assert stated == {name: declared[name] for name in lent_packages.CONSTRAINTS}


@pytest.mark.network
def test_a_package_of_a_real_index_is_installed_by_its_name(tmp_path: Path, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={tmp_path}", "six==1.16.0"]
    found = subprocess.run(pip, capture_output=True, text=True, timeout=100)
    if found.returncode != 0:
        pytest.skip(f"no package index can be reached: {found.stderr.strip()[-200:]}")
    image = ImageSpec(steps=[ImageStep(tool="uv", arguments=["six==1.16.0"])])
    assert environments.build(image) == 0
    assert says(folder / image_id(image), "import six; print(six.__version__)") == "1.16.0"
