"""semantics: web functions, over real HTTP."""

from __future__ import annotations

import urllib.request
from types import ModuleType

import pytest

from nomadfn.exception import InvalidError


def get(url: str, data: bytes | None = None) -> tuple[int, bytes]:
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=45) as answer:
        return answer.status, answer.read()


def test_an_asgi_app_is_reached_at_its_url_from_zero_containers(program: ModuleType) -> None:
    url = program.hello_asgi.get_web_url()
    status, body = get(url.rstrip("/") + "/some/path", b"posted")
    assert status == 200
    assert body.startswith(b"hello ")
    assert body.endswith(b"/some/path posted")


def test_a_wsgi_app_is_reached_at_its_url(program: ModuleType) -> None:
    status, body = get(program.hello_wsgi.get_web_url().rstrip("/") + "/page")
    assert (status, body) == (200, b"hello /page")


def test_remote_on_a_web_function_names_its_url(program: ModuleType) -> None:
    url = program.hello_asgi.get_web_url()
    with pytest.raises(InvalidError) as caught:
        program.hello_asgi.remote()
    assert url in str(caught.value)
