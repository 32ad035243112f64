"""What the doctor says of a Nomad and a Consul that are not as nomadfn needs them."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from real_nomad import free_ports

from nomadfn.adapters.consul_store import ConsulSettings, ConsulStore
from nomadfn.adapters.jobspec import JobSettings
from nomadfn.adapters.nomad_api import NomadAddress, NomadApi
from nomadfn.control import checkup
from nomadfn.exception import PermissionDeniedError, ServiceError

JOB = JobSettings(cluster="test", agent_url="", control_urls=(), driver="raw_exec")


class FakeNomad:
    """Refuses the calls that it is told to refuse."""

    def __init__(self, *refused: str) -> None:
        self._refused = refused

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> dict[str, Any]:
            if name in self._refused:
                raise PermissionDeniedError("Permission denied")
            return {}

        return call


def rights(*refused: str, has_identities: bool = True) -> checkup.Finding:
    return checkup._rights(FakeNomad(*refused), JOB, has_identities)  # type: ignore[arg-type]


def test_a_token_that_may_do_everything_is_good() -> None:
    assert rights().ok is True


def test_each_capability_that_a_token_lacks_is_named() -> None:
    found = rights("plan", "scale", "jobs")
    assert found.ok is False
    assert "lacks list-jobs, submit-job, scale-job;" in found.text


def test_the_right_on_variables_is_needed_for_up_alone_where_agents_have_identities() -> None:
    assert rights("put_variable").ok is None
    assert "up --nomad" in rights("put_variable").text
    assert rights("put_variable", has_identities=False).ok is False


@contextmanager
def answering(status: int, body: bytes, ahead_s: float = 0.0) -> Iterator[str]:
    """The address of a server that has one answer for everything, and a clock that is ahead."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(time.time() + ahead_s)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def nomad_fault(**address: Any) -> str:
    with closing(NomadApi(NomadAddress(**address))) as nomad:
        [finding] = checkup._reach_nomad(nomad)
    assert finding.ok is False
    return finding.text


def consul_fault(**settings: Any) -> str:
    with closing(ConsulStore(ConsulSettings(**settings))) as store, pytest.raises(ServiceError) as raised:
        store.get("nomadfn/x")
    return str(raised.value)


def test_an_address_where_nobody_listens_is_told_in_a_few_words() -> None:
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    assert nomad_fault(url=url) == (
        f"Nomad at {url} cannot be reached ([Errno 111] Connection refused); check NOMAD_ADDR and that Nomad runs"
    )
    assert "Connection refused); check that it runs, and CONSUL_HTTP_ADDR" in consul_fault(address=url)


def test_tls_where_there_is_none_is_recognised() -> None:
    with answering(200, b"{}") as url:
        url = url.replace("http://", "https://")
        assert "it speaks no TLS: write http://" in nomad_fault(url=url)
        assert "it speaks no TLS: write http://" in consul_fault(address=url)


def test_plain_http_where_tls_is_wanted_is_recognised() -> None:
    with answering(400, b"Client sent an HTTP request to an HTTPS server.\n") as url:
        assert "write https:// into the address" in nomad_fault(url=url)
        assert "Write https:// into CONSUL_HTTP_ADDR" in consul_fault(address=url)


def test_a_file_of_certificates_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "ca.pem")
    url = "https://127.0.0.1:1"
    for fault in (nomad_fault(url=url, ca_path=missing), consul_fault(address=url, ca_file=missing)):
        assert missing in fault
        assert "orrect " in fault
        assert "_CACERT" in fault


def test_another_server_than_nomad_or_consul_is_none() -> None:
    with answering(200, b'{"hello": 1}') as url:
        assert nomad_fault(url=url) == f"what answers at {url} is no Nomad; check NOMAD_ADDR"
    with answering(404, b"Invalid URL path: not a recognized HTTP API endpoint") as url:
        assert nomad_fault(url=url) == f"what answers at {url} is no Nomad; check NOMAD_ADDR"
        assert consul_fault(address=url) == f"What answers at {url} is no Consul. Check CONSUL_HTTP_ADDR."


def test_a_token_that_nomad_does_not_know_is_told_from_one_that_may_not() -> None:
    with answering(403, b"Permission denied") as url:
        assert "does not know the token; set NOMAD_TOKEN" in nomad_fault(url=url, token="x")
        assert "wants a token" in nomad_fault(url=url)


def test_a_nomad_that_is_too_old_is_refused() -> None:
    with answering(200, b'{"config": {"Version": {"Version": "1.5.3"}}}') as url:
        assert "is 1.5.3" in nomad_fault(url=url)
        assert "upgrade it" in nomad_fault(url=url)


def test_a_clock_that_is_apart_is_told_with_its_direction() -> None:
    with answering(200, b"{}", ahead_s=600) as url:
        found = checkup._clock("Nomad", url, True)
        assert found.ok is False
        assert "ahead of this machine's: set both by NTP" in found.text
    with answering(200, b"{}", ahead_s=-600) as url:
        assert "behind this machine's" in checkup._clock("Nomad", url, True).text
    with answering(200, b"{}") as url:
        assert checkup._clock("Nomad", url, True).ok is True


def test_a_kill_timeout_over_the_cap_of_the_clients_is_told() -> None:
    class Capped(FakeNomad):
        def max_kill_timeout_s(self) -> float:
            return 30.0

    longer = replace(JOB, kill_timeout_s=60)
    assert checkup._kill_timeout(Capped(), JOB).ok is True  # type: ignore[arg-type]
    found = checkup._kill_timeout(Capped(), longer)  # type: ignore[arg-type]
    assert found.ok is False
    assert "max_kill_timeout = 30 s" in found.text
