"""Fetch pages from a server that fails now and then: retries for what may pass, errors kept for what does not.

    nomadfn run examples/fetch.py
    nomadfn run examples/fetch.py --pages 50

Shows: `retries`, with delays that grow; `return_exceptions=True`, which leaves the errors in their places instead
of ending the map; exceptions of your own type that come back as that type. The server is a thread of this
program, so that nothing leaves the machine: every third page is "busy" twice before it answers, every tenth is gone.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.request import urlopen

import nomadfn

app = nomadfn.App("fetch")


class Gone(Exception):
    """The page does not exist: asking again is of no use."""


@app.function(retries=nomadfn.Retries(max_retries=3, initial_delay=0.1, backoff_coefficient=2.0), timeout=30)
def fetch(url: str) -> str:
    """The text behind a URL. A busy server (503) raises and is tried again; so is `Gone`, but in vain."""
    try:
        with urlopen(url, timeout=10) as answer:
            return str(answer.read(), "utf-8")
    except HTTPError as error:
        if error.code == 404:
            raise Gone(url) from None
        raise RuntimeError(f"{url} answered {error.code}") from None


@contextmanager
def flaky_server() -> Iterator[tuple[str, Counter[str]]]:
    """A server on a free port, with the number of requests it has seen for each path."""
    seen: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen[self.path] += 1
            number = int(self.path.removeprefix("/"))
            status = 404 if number % 10 == 9 else 503 if number % 3 == 0 and seen[self.path] <= 2 else 200
            self.send_response(status)
            self.end_headers()
            self.wfile.write(f"page {number}".encode())

        def log_message(self, *_: object) -> None:
            """Say nothing: the containers' output is what this program is about."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@app.local_entrypoint()
def main(pages: int = 20) -> None:
    with flaky_server() as (address, seen):
        urls = [f"{address}/{number}" for number in range(pages)]
        answers = list(fetch.map(urls, return_exceptions=True))
    for number, answer in enumerate(answers):
        tries = seen[f"/{number}"]
        if isinstance(answer, Gone):
            print(f"/{number} is gone, after {tries} tries")
        elif tries > 1:
            print(f"/{number} gave {answer!r} on try {tries}")
    fetched = sum(isinstance(answer, str) for answer in answers)
    print(f"{fetched} of {pages} pages fetched with {seen.total()} requests")
