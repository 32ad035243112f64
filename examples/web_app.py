"""A small web application: JSON, an upload, and events that arrive one by one.

    nomadfn run examples/web_app.py
    nomadfn up && nomadfn deploy examples/web_app.py

It needs FastAPI where it runs: pip install fastapi. The entrypoint asks the application what a browser would.
"""

import asyncio
import hashlib
import json
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import nomadfn

app = nomadfn.App("web-app")


@app.function(scaledown_window=10)
@nomadfn.concurrent(max_inputs=100)
@nomadfn.asgi_app()
def api() -> Any:
    from fastapi import FastAPI, Request
    from fastapi.responses import StreamingResponse

    web = FastAPI(title="web-app")

    @web.get("/")
    async def root(request: Request) -> dict[str, Any]:
        return {"path": request.url.path, "input": nomadfn.current_input_id()}

    @web.post("/digest")
    async def digest(request: Request) -> dict[str, Any]:
        """Reads the body as it comes: it may be larger than memory."""
        found, size = hashlib.sha256(), 0
        async for part in request.stream():
            found.update(part)
            size += len(part)
        return {"bytes": size, "sha256": found.hexdigest()}

    @web.get("/countdown")
    async def countdown(start: int = 3) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            for number in range(start, 0, -1):
                yield f"data: {number}\n\n"
                await asyncio.sleep(0.1)
            yield "data: lift-off\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return web


@app.function(scaledown_window=10)
@nomadfn.fastapi_endpoint(docs=True)
def greet(name: str = "world") -> dict[str, str]:
    return {"hello": name}


@app.local_entrypoint()
def main(mib: int = 8) -> None:
    url = api.get_web_url()
    assert url is not None
    with urllib.request.urlopen(url) as answer:
        print("GET /", json.load(answer)["path"])
    upload = urllib.request.Request(f"{url}/digest", data=bytes(mib << 20), method="POST")
    with urllib.request.urlopen(upload) as answer:
        print("POST /digest", json.load(answer)["bytes"], "bytes")
    with urllib.request.urlopen(f"{url}/countdown") as answer:
        print("GET /countdown", *(line.decode().split()[1] for line in answer if line.strip()))
    with urllib.request.urlopen(f"{greet.get_web_url()}?name=Ada") as answer:
        print("GET /greet", json.load(answer))
