"""The warm parents of images: started when they are needed, failing in words, and gone when nobody needs them."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nomadfn_agent import environments, image_parents
from nomadfn_agent.image_parents import ImageParents
from nomadfn_agent.wire import (
    Ended,
    ImageSpec,
    ImageStep,
    Log,
    Preparing,
    Start,
    Started,
    Stop,
    decode_from_supervisor,
    image_id,
)
from tiny_packages import OFFLINE, write_wheel

WAIT_S = 60.0


class Host:
    """A supervisor's part of it: the loop, the processes, and what the control service is told."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.told: list[Any] = []
        self.builders: list[subprocess.Popen[bytes]] = []
        self.build = "import time; print('building', flush=True); time.sleep(100)"
        self.parents = ImageParents(
            self.selector, lambda message: self.told.append(decode_from_supervisor(message)), self._fork, []
        )

    def _fork(self, main: Callable[[], int], streams: tuple[int, int]) -> int:
        """In place of the build: a process that does what the test says."""
        process = subprocess.Popen([sys.executable, "-c", self.build], stdout=streams[0], process_group=0)
        self.builders.append(process)
        process.returncode = 0
        return process.pid

    def until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not holds():
            assert time.monotonic() < deadline, self.told
            for key, events in self.selector.select(0.02):
                if self.selector.get_map().get(key.fd) is key:
                    key.data(events)
            self.parents.on_due()
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                continue
            if pid:
                self.parents.on_exit(pid, os.waitstatus_to_exitcode(status))

    def of(self, kind: type) -> list[Any]:
        return [one for one in self.told if isinstance(one, kind)]

    def one(self, image: ImageSpec) -> image_parents.Image:
        return self.parents._images[image_id(image)]

    def close(self) -> None:
        for image in self.parents._images.values():
            if image.pid:
                os.kill(image.pid, signal.SIGKILL)
            if image.builder:
                os.killpg(image.builder, signal.SIGKILL)
        self.until(lambda: not any(one.pid or one.builder for one in self.parents._images.values()))
        self.selector.close()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("NOMADFN_ENVIRONMENTS", str(tmp_path / "environments"))
    made = Host()
    yield made
    made.close()


@pytest.fixture
def image(tmp_path: Path) -> ImageSpec:
    write_wheel(tmp_path / "wheels", "tiny", "1.0")
    return ImageSpec(
        steps=[ImageStep(tool="pip", arguments=["tiny==1.0", OFFLINE, f"--find-links={tmp_path / 'wheels'}"])]
    )


def start(name: str, image: ImageSpec) -> Start:
    """A container that finds no control service, and so ends by itself."""
    env = {"NOMADFN_DATA_URL": "ws://127.0.0.1:9", "NOMADFN_TOKEN": "nf_x", "NOMADFN_CONTAINER_ID": name}
    return Start(name, env, image)


def test_a_warm_parent_is_started_once_and_ends_when_it_has_had_nothing_to_do(
    host: Host, image: ImageSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environments.build(image) == 0
    for name in ("ct-1", "ct-2"):
        host.parents.start(start(name, image))
    pid = host.one(image).pid
    assert host.parents.containers == {"ct-1", "ct-2"}
    host.until(lambda: len(host.of(Ended)) == 2)
    assert sorted(one.container for one in host.of(Started)) == ["ct-1", "ct-2"]
    assert (host.parents.containers, host.one(image).pid, host.of(Preparing)) == (set(), pid, [])
    assert host.parents.next_due_s() is not None
    monkeypatch.setattr(image_parents, "IDLE_S", 0.0)
    host.until(lambda: not host.parents._images)


def test_the_environment_of_a_warm_parent_is_not_removed(host: Host, image: ImageSpec, tmp_path: Path) -> None:
    assert environments.build(image) == 0
    host.parents.start(start("ct-1", image))
    environments._remove(str(tmp_path / "environments"), image_id(image))
    assert (tmp_path / "environments" / image_id(image)).is_dir()
    host.until(lambda: host.of(Ended))
    os.kill(host.one(image).pid, signal.SIGKILL)
    host.until(lambda: not host.parents._images)
    environments._remove(str(tmp_path / "environments"), image_id(image))
    assert not (tmp_path / "environments" / image_id(image)).exists()


def test_who_waits_is_told_so_and_the_log_stands_with_the_first_of_them(host: Host, image: ImageSpec) -> None:
    for name in ("ct-1", "ct-2"):
        host.parents.start(start(name, image))
    host.until(lambda: host.of(Log))
    assert [one.container for one in host.of(Preparing)] == ["ct-1", "ct-2"]
    assert [(one.container, one.text) for one in host.of(Log)] == [("ct-1", "building\n")]
    assert len(host.builders) == 1
    assert host.parents.stop(Stop("ct-1", 1.0))
    assert [(one.container, one.what) for one in host.of(Ended)] == [
        ("ct-1", "it was stopped while its image was built")
    ]
    assert host.one(image).builder, "ct-2 still waits for it"
    assert host.parents.stop(Stop("ct-2", 1.0))
    host.until(lambda: not host.parents._images)
    assert (host.parents.containers, host.parents.stop(Stop("ct-3", 1.0))) == (set(), False)


def test_a_build_that_fails_is_not_tried_again_at_once(
    host: Host, image: ImageSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.build = "import sys; print('no such package'); sys.exit(1)"
    host.parents.start(start("ct-1", image))
    host.until(lambda: host.of(Ended))
    host.parents.start(start("ct-2", image))
    ended = [(one.container, one.what, one.tail) for one in host.of(Ended)]
    words = f"its image {image_id(image)} could not be built", "no such package"
    assert (ended, len(host.builders)) == ([("ct-1", *words), ("ct-2", *words)], 1)
    assert host.one(image).failed_until > time.monotonic()
    host.one(image).failed_until = 0.0
    host.parents.start(start("ct-3", image))
    host.until(lambda: len(host.of(Ended)) == 3)
    assert len(host.builders) == 2
    assert host.one(image).failed_until > time.monotonic() + image_parents.FIRST_PAUSE_S


def test_a_build_that_is_killed_says_what_most_likely_did_it(host: Host, image: ImageSpec) -> None:
    host.build = "import os; os.kill(os.getpid(), 9)"
    host.parents.start(start("ct-1", image))
    host.until(lambda: host.of(Ended))
    assert host.of(Ended)[0].what.endswith("more memory than memory= gives the function")


def test_an_environment_may_be_prepared_before_any_container_needs_it(host: Host, image: ImageSpec) -> None:
    host.parents.prepare(image)
    host.parents.prepare(image)
    host.until(lambda: host.of(Log))
    assert [(one.container, one.text) for one in host.of(Log)] == [(image_id(image), "building\n")]
    host.parents.start(start("ct-1", image))
    assert ([one.container for one in host.of(Preparing)], len(host.builders)) == (["ct-1"], 1)
    assert host.parents.stop(Stop("ct-1", 1.0))
    host.until(lambda: not host.parents._images)  # It was ended because nobody waited for it, and has not failed.
    host.build = "import sys; print('no such package'); sys.exit(1)"
    host.parents.prepare(image)
    host.until(lambda: not host.one(image).builder)
    host.parents.start(start("ct-2", image))
    assert (host.of(Ended)[-1].tail, len(host.builders)) == ("no such package", 2)


def test_the_warm_parent_of_a_prepared_environment_waits_for_its_first_container(host: Host, image: ImageSpec) -> None:
    assert environments.build(image) == 0
    host.parents.prepare(image)
    pid = host.one(image).pid
    assert pid
    host.parents.start(start("ct-1", image))
    host.until(lambda: host.of(Ended))
    assert (host.one(image).pid, host.of(Preparing)) == (pid, [])


def test_an_environment_that_cannot_start_containers_says_what_its_python_said(
    host: Host, image: ImageSpec, tmp_path: Path
) -> None:
    assert environments.build(image) == 0
    site = next((tmp_path / "environments" / image_id(image)).glob("lib/python*/site-packages"))
    (site / "msgspec").mkdir()
    (site / "msgspec" / "__init__.py").write_text("raise RuntimeError('broken on purpose')\n")
    host.parents.start(start("ct-1", image))
    host.until(lambda: host.of(Ended))
    (ended,) = host.of(Ended)
    assert "the process that containers of its image" in ended.what
    assert "exit code 1" in ended.what
    assert "broken on purpose" in ended.tail


def test_what_the_control_service_cannot_take_is_not_read(host: Host, image: ImageSpec) -> None:
    assert environments.build(image) == 0
    host.parents.start(start("ct-1", image))
    host.parents.pause(True)
    assert host.one(image).channel.socket not in host.selector.get_map()
    host.parents.pause(False)
    host.until(lambda: host.of(Ended))
