"""One small question over HTTP, without `http.client`: importing that takes longer than asking, and a start waits."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

MAX_ANSWER_BYTES = 64 * 1024


def get(url: str, timeout_s: float) -> tuple[int, bytes]:
    """Status and content of what is there, of MAX_ANSWER_BYTES at most. Raises `OSError` or `ValueError`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("this is no address such as http://10.0.0.1:8700")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme == "https":
        return _get_securely(parts.hostname, parts.port, path, timeout_s)
    received = b""
    with socket.create_connection((parts.hostname, parts.port or 80), timeout_s) as link:
        link.sendall(f"GET {path} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
        while len(received) < MAX_ANSWER_BYTES and (data := link.recv(MAX_ANSWER_BYTES)):
            received += data
    head, found, content = received.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split()
    if not found or len(words) < 2 or not words[0].startswith(b"HTTP/1."):
        raise ConnectionError("it does not answer as a control service does")
    return int(words[1]), content


def _get_securely(host: str, port: int | None, path: str, timeout_s: float) -> tuple[int, bytes]:
    import http.client

    connection = http.client.HTTPSConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER_BYTES)
    except http.client.HTTPException as error:
        raise ConnectionError(f"it does not answer as a control service does: {error!r}") from error
    finally:
        connection.close()
