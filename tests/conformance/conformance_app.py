"""The program that the conformance suite calls: one small function for each rule that needs one."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import nomadfn as modal

app = modal.App("conformance")


class Unlucky(Exception):
    """An exception of the program's own."""


@app.function()
def double(x):
    return 2 * x


@app.function()
def echo(*args, **kwargs):
    return args, kwargs


@app.function()
def picky(x):
    if x % 5 == 3:
        raise Unlucky(f"no {x}")
    return x


@app.function()
async def double_async(x):
    await asyncio.sleep(0)
    return 2 * x


@app.function()
def nap(seconds):
    time.sleep(seconds)
    return seconds


@app.function(max_containers=1)
def wait_for(path):
    """Runs until somebody makes the file `path`."""
    while not os.path.exists(path):
        time.sleep(0.01)
    return "done"


@app.function()
def ids():
    return modal.current_input_id(), modal.current_function_call_id(), os.environ["NOMADFN_CONTAINER_ID"]


@app.function()
def where():
    return modal.is_local()


@app.function()
def count_to(n):
    yield from range(n)


@app.function()
async def count_to_async(n):
    for number in range(n):
        yield number
        await asyncio.sleep(0)


def _attempt(path):
    """How often this was called with `path`, this time included."""
    with open(path, "a+") as file:
        file.write(".")
        file.flush()
        return os.path.getsize(path)


@app.function(retries=2)
def third_time_lucky(path):
    attempt = _attempt(path)
    if attempt < 3:
        raise Unlucky(f"attempt {attempt}")
    return attempt


@app.function(retries=modal.Retries(max_retries=1, initial_delay=0.0))
def never_lucky(path):
    raise Unlucky(f"attempt {_attempt(path)}")


@app.function(timeout=1)
def too_long():
    time.sleep(600)


@app.function(timeout=1, max_containers=1)
@modal.concurrent(max_inputs=2)
def long_beside_short(seconds, path):
    with open(path, "a") as file:
        file.write(f"{seconds} ")
    time.sleep(seconds)
    return seconds


@app.function()
def die_once(path):
    if _attempt(path) == 1:
        os._exit(9)
    return "alive"


@app.function(max_containers=2)
def always_dies():
    os._exit(7)


@app.function(max_containers=1)
@modal.concurrent(max_inputs=4)
def in_threads(barrier_size):
    return _meet(barrier_size), threading.current_thread() is threading.main_thread(), modal.current_input_id()


_met = 0
_lock = threading.Lock()


def _meet(size):
    """Returns once `size` inputs of this container are here at the same time."""
    global _met
    with _lock:
        _met += 1
    until = time.monotonic() + 30
    while _met < size and time.monotonic() < until:
        time.sleep(0.002)
    return _met >= size


_gathered = 0


@app.function(max_containers=1)
@modal.concurrent(max_inputs=4)
async def as_tasks(size):
    global _gathered
    _gathered += 1
    until = time.monotonic() + 30
    while _gathered < size and time.monotonic() < until:
        await asyncio.sleep(0.002)
    return _gathered >= size, id(asyncio.get_running_loop()), modal.current_input_id()


@app.function(max_containers=1)
@modal.batched(max_batch_size=4, wait_ms=60_000)
def in_batches(numbers, words):
    assert (type(numbers), type(words)) == (list, list)
    return [(n, word, len(numbers)) for n, word in zip(numbers, words, strict=True)]


@app.function(max_containers=1)
@modal.batched(max_batch_size=100, wait_ms=50)
def soon(numbers):
    return [len(numbers) for _ in numbers]


@app.function()
@modal.batched(max_batch_size=2, wait_ms=60_000)
def gives_no_list(numbers):
    return 1


@app.function()
@modal.batched(max_batch_size=2, wait_ms=60_000)
def gives_too_few(numbers):
    return numbers[:1]


@app.function()
@modal.batched(max_batch_size=3, wait_ms=60_000)
def one_bad_apple(numbers):
    return [Unlucky(f"no {n}") if n == 1 else n for n in numbers]


@app.function(max_containers=3, scaledown_window=120)
def scaled():
    return 1


@app.function()
def unpicklable():
    return threading.Lock()


@app.cls()
class Counter:
    start: int = modal.parameter(default=0)

    @modal.enter()
    def begin(self):
        self.events = ["enter"]
        self.count = self.start

    @modal.method()
    def up(self, by=1):
        self.count += by
        return self.count

    @modal.method()
    async def told(self):
        return self.events, self.start, os.environ["NOMADFN_CONTAINER_ID"]

    @modal.method()
    def numbers(self, n):
        yield from range(self.start, self.start + n)


@app.cls()
class Fragile:
    marks: str = modal.parameter()

    @modal.enter()
    def begin(self):
        raise Unlucky(f"start {_attempt(self.marks)}")

    @modal.method()
    def use(self):
        return 1


@app.cls(max_containers=1, scaledown_window=2)
class Leaver:
    marks: str = modal.parameter()

    @modal.exit()
    def leave(self):
        _attempt(self.marks)

    @modal.method()
    def use(self):
        return 1


@app.cls()
class Batcher:
    @modal.batched(max_batch_size=3, wait_ms=60_000)
    def squares(self, numbers):
        return [n * n for n in numbers]


@app.function()
@modal.concurrent(max_inputs=20)
@modal.asgi_app()
def hello_asgi():
    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        for part in (b"hello ", scope["path"].encode(), b" ", body):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return application


@app.function()
@modal.wsgi_app()
def hello_wsgi():
    def application(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello ", environ["PATH_INFO"].encode()]

    return application
