"""What a task of a function's job runs first: it finds the agent on its node, or fetches it from a control service."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nomadfn_jobspecs
import pytest

from nomadfn.control.agent_bundle import Bundle, Target, build

PATH = "/v1/agent/nomadfn-agent.pyz?python=3.12"


class Server(ThreadingHTTPServer):
    """Offers one bundle as a control service does, and keeps what it has answered."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bundle = bundle
        self.answers: list[int] = []
        self.asked: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        etag = f'"{self.server.bundle.digest}"'
        status = 304 if etag in (self.headers["If-None-Match"] or "") else 200
        self.server.answers.append(status)
        self.server.asked.add(self.path)
        self.send_response(status)
        self.send_header("ETag", etag)
        if status == 200:
            self.send_header("Content-Length", str(len(self.server.bundle.data)))
        self.end_headers()
        if status == 200:
            self.wfile.write(self.server.bundle.data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return build(Target.here())


@pytest.fixture
def server(bundle: Bundle) -> Iterator[Server]:
    with Server(bundle) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def start(task: Path, *urls: str, cache: Path | None = None, patience_s: int = 60) -> str:
    """Run it in a task; returns what it wrote. The agent itself ends at once: its job's variables are missing."""
    task.mkdir()
    environ = {"NOMADFN_CONTROL_URLS": " ".join(urls), "NOMADFN_AGENT": PATH, "NOMAD_TASK_DIR": str(task)}
    environ |= {"XDG_CACHE_HOME": str(cache or task), "PATH": os.environ["PATH"]}
    code = nomadfn_jobspecs.start().replace("PATIENCE_S = 60", f"PATIENCE_S = {patience_s}")
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environ, cwd=task, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    return done.stderr


def test_it_is_fetched_once_a_node_and_content(server: Server, tmp_path: Path) -> None:
    for number in range(3):
        said = start(tmp_path / f"task-{number}", server.url, cache=tmp_path / "cache")
        assert said.startswith("nomadfn: this agent cannot start: NOMAD_JOB_ID"), said
    assert server.answers == [200, 304, 304]
    assert server.asked == {PATH}
    [made] = (tmp_path / "cache" / "nomadfn").iterdir()
    assert made.name == f"agent-{Target.here().python}-{server.bundle.digest}"
    server.bundle = Bundle(server.bundle.data, "0" * 64)
    os.utime(made, (0, 0))
    start(tmp_path / "task-new", server.url, cache=tmp_path / "cache")
    assert server.answers[-1] == 200
    assert [one.name[-64:] for one in (tmp_path / "cache" / "nomadfn").iterdir()] == ["0" * 64]


def test_a_folder_that_others_can_write_to_is_not_trusted(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "nomadfn").mkdir(parents=True)
    (cache / "nomadfn").chmod(0o777)
    for number in range(2):
        said = start(tmp_path / f"task-{number}", server.url, cache=cache)
        assert "NOMAD_JOB_ID" in said
    assert server.answers == [200, 200]
    assert list((cache / "nomadfn").iterdir()) == []


def test_the_next_address_is_asked_where_one_does_not_answer(server: Server, tmp_path: Path) -> None:
    assert "NOMAD_JOB_ID" in start(tmp_path / "task", "http://127.0.0.1:9", "http://[::1]:9", server.url)


def test_what_kept_it_from_its_agent_is_said(tmp_path: Path) -> None:
    said = start(tmp_path / "task", "http://127.0.0.1:9", patience_s=1)
    assert "no control service gives this task its agent: http://127.0.0.1:9: " in said
    assert "refused" in said
