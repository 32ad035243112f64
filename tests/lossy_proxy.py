"""A TCP proxy between a client and Consul that loses what a network may lose, when it is told to.

It knows just enough of HTTP to see where a request starts: a client on one connection waits for each answer.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Literal

Fate = Literal["pass", "lose the request", "lose the answer"]


class LossyProxy:
    """Forwards to `port` on loopback. `fate` decides on each request when its first bytes are there."""

    def __init__(self, port: int) -> None:
        self.fate: Callable[[bytes], Fate] = lambda request: "pass"
        self.requests: list[bytes] = []
        """Every request that was answered, whole, whether or not the answer was passed on."""
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def repeat(self, request: bytes) -> bytes:
        """Send a request once more, as a network does that had kept a duplicate; returns the head of the answer."""
        with socket.create_connection(self._target, timeout=10) as server:
            server.sendall(request)
            return server.recv(65536)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._ends.append(client)
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._target) as server:
            self._ends.append(server)
            request, fate = b"", "pass"
            answered = True
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if client in ready:
                    data = client.recv(65536)
                    if not data:
                        return
                    if answered:
                        request, answered = b"", False
                        fate = self.fate(data)
                    request += data
                    if fate == "lose the request":
                        return
                    server.sendall(data)
                else:
                    data = server.recv(65536)
                    if not answered:
                        answered = True
                        self.requests.append(request)
                    if not data or fate == "lose the answer":
                        return
                    client.sendall(data)


@contextlib.contextmanager
def lossy_proxy(port: int) -> Iterator[LossyProxy]:
    proxy = LossyProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
