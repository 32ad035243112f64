"""A world whose control service serves web functions, and who asks for them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx
from world import WAIT_S, World

CURL = shutil.which("curl")

SITE = """
    import asyncio
    import os

    import nomadfn

    app = nomadfn.App("site")

    @app.function(max_containers=2, scaledown_window=30)
    @nomadfn.concurrent(max_inputs=20)
    @nomadfn.asgi_app()
    def api():
        from fastapi import FastAPI, Request, WebSocket
        from fastapi.responses import StreamingResponse

        web = FastAPI()

        @web.get("/")
        def root(request: Request):
            return {"hello": "world", "root": request.scope["root_path"], "pid": os.getpid()}

        @web.get("/items/{number}")
        async def item(number: int, q: str = ""):
            return {"number": number, "q": q, "input": nomadfn.current_input_id()}

        @web.post("/upload")
        async def upload(request: Request):
            size, most = 0, 0
            async for part in request.stream():
                size, most = size + len(part), max(most, len(part))
            return {"size": size, "most": most}

        @web.get("/download")
        async def download(mib: int):
            async def parts():
                for _ in range(mib):
                    yield b"x" * (1 << 20)

            return StreamingResponse(parts(), media_type="application/octet-stream")

        @web.get("/ticks")
        async def ticks(count: int, pause: float = 0.05):
            async def events():
                for number in range(count):
                    yield f"data: {number}\\n\\n"
                    await asyncio.sleep(pause)

            return StreamingResponse(events(), media_type="text/event-stream")

        @web.websocket("/echo")
        async def echo(socket: WebSocket):
            wanted = socket.scope["subprotocols"]
            await socket.accept(subprotocol=wanted[0] if wanted else None)
            while (message := await socket.receive())["type"] == "websocket.receive":
                if message.get("text") == "bye":
                    await socket.close(4001, "as you wish")
                    return
                if message.get("text") is not None:
                    await socket.send_text("echo " + message["text"])
                else:
                    await socket.send_bytes(message["bytes"][::-1])

        @web.websocket("/closed")
        async def closed(socket: WebSocket):
            await socket.close()

        @web.get("/boom")
        async def boom():
            raise LookupError("nothing here")

        return web
"""


class Site:
    """Deploys a program into a world and asks its web functions."""

    def __init__(self, world: World, program: str = SITE, *words: str, **env: str) -> None:
        self.world = world
        self.base = world.up(*words, **env)["web_url"]
        world.write("site.py", program)
        world.deploy("site.py")
        self.client = httpx.Client(timeout=WAIT_S, trust_env=False)

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.client.close()

    def url(self, path: str) -> str:
        return f"{self.base}/site/{path}"

    def get(self, path: str, **settings: Any) -> httpx.Response:
        return self.client.get(self.url(path), **settings)

    def curl(self, path: str, *words: object) -> tuple[int, str]:
        """Status and body, as curl has them."""
        done = self.world.execute(
            CURL, "-sS", "--max-time", "60", "-w", "\n%{http_code}", *words, self.url(path), timeout_s=90
        ).ok()
        body, _, status = done.out.rpartition("\n")
        return int(status), body

    def deploy(self, program: str) -> None:
        self.world.write("site.py", program)
        self.world.deploy("site.py")

    @property
    def service_pid(self) -> int:
        import json

        return int(json.loads((self.world.data / "service.json").read_text())["pid"])


def peak_kib(pid: int) -> int:
    """The most memory that a process has had so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0
