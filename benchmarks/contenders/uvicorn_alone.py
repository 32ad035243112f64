"""uvicorn with the same application and nothing between: one process, its fast parser and loop."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks import bodies

START_S = 20.0


class Uvicorn:
    def start(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        words = ["--port", str(self._port), "--no-access-log", "--log-level", "error"]
        words += ["--loop", "uvloop", "--http", "httptools", "--lifespan", "off"]
        self._server = subprocess.Popen([sys.executable, "-m", "uvicorn", *words, "benchmarks.bodies:web_app"])

    def call(self, body: str, value: Any) -> Any:
        """Returns once it answers."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                with urlopen(self.web(), timeout=5) as answer:
                    assert answer.read() == bodies.JSON
                    return None
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def web(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    def stop(self) -> None:
        self._server.terminate()
        self._server.wait(timeout=20)
