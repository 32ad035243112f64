"""A response that is there whole, written at once: the head is put together by what was put together before.

uvicorn's own way, two messages to a coroutine each, is for every other response, and for what is none of HTTP.
"""

from __future__ import annotations

from typing import Any

from nomadfn_agent.wire import web
from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE

KEPT = 512
NOT_A_LENGTH, NOT_HERE = -1, -2
NO_BODY = frozenset((204, 304))
_lines: dict[tuple[bytes, bytes], tuple[bytes, int]] = {}
"""Headers that were checked: each as it is written, with the number where it is a content-length."""


def write(start: web.Start, cycle: Any, transport: Any) -> bool:
    """Write it as the answer of uvicorn's `cycle`; False, and nothing is written, where it takes a closer look."""
    status, data = start.status, start.data
    if not cycle.keep_alive or cycle.response_started or cycle.disconnected or cycle.access_log:
        return False
    if status < 200 or status in NO_BODY or status not in STATUS_LINE or cycle.scope["method"] == "HEAD":
        return False
    parts, length = [STATUS_LINE[status]], NOT_A_LENGTH
    for headers in (cycle.default_headers, start.headers):
        for header in headers:
            line, number = _lines.get(header) or _look_at(header)
            if number != NOT_A_LENGTH:
                if length != NOT_A_LENGTH:
                    return False
                length = number
            parts.append(line)
    if length != len(data):
        return False
    parts += (b"\r\n", data)
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    cycle.expected_content_length = 0
    transport.write(b"".join(parts))
    cycle.message_event.set()
    cycle.on_response()
    return True


def _look_at(header: tuple[bytes, bytes]) -> tuple[bytes, int]:
    name, value = header
    lower, number = name.lower(), NOT_A_LENGTH
    if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value) or lower in (b"connection", b"transfer-encoding"):
        return b"", NOT_HERE
    if lower == b"content-length":
        number = int(value) if value.isdigit() else NOT_HERE
    if len(_lines) >= KEPT:
        _lines.clear()
    _lines[header] = lower + b": " + value + b"\r\n", number
    return _lines[header]
