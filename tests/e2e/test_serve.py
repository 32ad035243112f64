"""`nomadfn serve`: an app that follows its files, under one URL, until Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import urllib.error
import urllib.request

import pytest
from world import NOMADFN, Running, World, eventually

PROGRAM = """
    import nomadfn
    import words

    app = nomadfn.App("served")

    @app.function()
    @nomadfn.asgi_app()
    def site():
        async def application(scope, receive, send):
            if scope["type"] == "http":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": words.TEXT})
        return application
"""


def url_of(serving: Running) -> str:
    eventually(lambda: "answers at" in serving.err or serving.ended, f"the URL from {serving}")
    found = re.search(r"site answers at (\S+)", serving.err)
    assert found, str(serving)
    return found[1]


def says(url: str, text: str) -> None:
    def answered() -> bool:
        with urllib.request.urlopen(url, timeout=45) as answer:
            return answer.read().decode() == text

    eventually(answered, f"{url} says {text}")


@pytest.fixture
def serving(world: World) -> Running:
    world.write("words.py", "TEXT = b'one'\n")
    world.write("served.py", PROGRAM)
    return world.start(NOMADFN, "serve", "served.py")


def test_a_changed_file_takes_over_under_the_same_url_and_a_broken_one_does_not(world: World, serving: Running) -> None:
    url = url_of(serving)
    says(url, "one")
    world.write("words.py", "TEXT = b'two'\n")
    says(url, "two")
    world.write("words.py", "TEXT = oops\n")
    eventually(lambda: "the version before goes on" in serving.err, f"a refusal from {serving}")
    assert "NameError: name 'oops' is not defined" in serving.err
    says(url, "two")
    world.write("words.py", "TEXT = b'three'\n")
    says(url, "three")
    assert url_of(serving) == url


def test_ctrl_c_ends_it_and_everything_that_it_started(world: World, serving: Running) -> None:
    url = url_of(serving)
    says(url, "one")
    os.killpg(serving.pid, signal.SIGINT)
    done = serving.wait()
    assert done.code == 0, done.report
    assert "Stopped served." in done.err
    done.without_our_frames()
    world.all_gone()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)


def test_it_ends_by_itself_when_it_is_told_to(world: World) -> None:
    world.write("words.py", "TEXT = b'one'\n")
    world.write("served.py", PROGRAM)
    done = world.nomadfn("serve", "served.py", "--timeout", "0.1").ok()
    assert "Stopped served." in done.err
    world.all_gone()


def test_a_program_without_functions_is_refused(world: World) -> None:
    world.write("empty.py", "import nomadfn\napp = nomadfn.App('empty')\n")
    world.nomadfn("serve", "empty.py").refused(3, "has no functions")
