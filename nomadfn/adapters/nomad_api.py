"""What nomadfn asks of Nomad's HTTP API, over python-nomad, with errors in nomadfn's own words.

Every call blocks, for a bounded time, and may be made from several threads: each has a connection of its own.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import nomad
import requests
from nomad.api.exceptions import (
    BaseNomadException,
    URLNotAuthorizedNomadException,
    URLNotFoundNomadException,
    VariableConflict,
)
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from nomadfn.exception import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    NotFoundError,
    PermissionDeniedError,
    ServiceError,
)

from .faults import innermost, speaks_tls, tls_hint

DEFAULT_URL = "http://127.0.0.1:4646"
TIMEOUT_S = 10.0
STREAM_TIMEOUT_S = 30.0
"""Nomad sends a heartbeat every 10 s: a stream that is silent for longer is dead."""
READ_BYTES = 1024 * 1024
MAX_MESSAGE_CHARS = 400
DEPLOYMENT_TEXT = "scaling blocked due to active deployment"
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
Json = dict[str, Any]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class NomadAddress:
    """Where Nomad is and how to speak to it, by the variables that HashiCorp's own tools read."""

    url: str = DEFAULT_URL
    token: str = field(default="", repr=False)
    namespace: str = "default"
    region: str = ""
    ca_path: str = ""
    """A file or folder of certificates; empty is the system's."""
    client_cert: str = ""
    client_key: str = ""
    server_name: str = ""
    skip_verify: bool = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> NomadAddress:
        """Raises `InvalidError` for an address that is none."""
        url = environ.get("NOMAD_ADDR", "") or DEFAULT_URL
        if urlsplit(url).scheme not in ("http", "https"):
            raise InvalidError(f"NOMAD_ADDR={url!r} is not supported; write a URL such as https://nomad.example:4646")
        return cls(
            url=url.rstrip("/"),
            token=environ.get("NOMAD_TOKEN", ""),
            namespace=environ.get("NOMAD_NAMESPACE", "") or "default",
            region=environ.get("NOMAD_REGION", ""),
            ca_path=environ.get("NOMAD_CACERT", "") or environ.get("NOMAD_CAPATH", ""),
            client_cert=environ.get("NOMAD_CLIENT_CERT", ""),
            client_key=environ.get("NOMAD_CLIENT_KEY", ""),
            server_name=environ.get("NOMAD_TLS_SERVER_NAME", ""),
            skip_verify=environ.get("NOMAD_SKIP_VERIFY", "").lower() in ("1", "t", "true"),
        )


class _NamedServer(HTTPAdapter):
    """Asks for, and checks, another name than the address has."""

    def __init__(self, server_name: str) -> None:
        self._server_name = server_name
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        options |= {"server_hostname": self._server_name, "assert_hostname": self._server_name}
        super().init_poolmanager(*arguments, **options)


class NomadApi:
    """The calls that nomadfn makes. Each raises one of nomadfn's errors that says what to do."""

    def __init__(self, address: NomadAddress) -> None:
        self.address = address
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._lock = threading.Lock()

    def version(self) -> tuple[int, int, int]:
        """Of the agent that answers."""
        try:
            return _version(self._ask(lambda client: client.agent.get_agent())["config"]["Version"]["Version"])
        except (KeyError, TypeError, NotFoundError):
            raise ServiceError(f"what answers at {self.address.url} is no Nomad; check NOMAD_ADDR") from None

    def knows_token(self) -> bool:
        """Whether there is such a token at all; every token may read itself."""
        if not self.address.token:
            return True
        try:
            self._ask(lambda client: client.acl.get_self_token())
        except (NotFoundError, PermissionDeniedError):
            return False
        except ServiceError as error:
            return not any(words in str(error) for words in ("lookup failed", "parse signed token"))
        return True

    def max_kill_timeout_s(self) -> float | None:
        """The cap of the client that the agent that answers is; None where it is none."""
        config = self._ask(lambda client: client.agent.get_agent())["config"].get("Client") or {}
        return _seconds(str(config.get("MaxKillTimeout", ""))) if config.get("Enabled") else None

    def parse(self, hcl: str, variables: str) -> Json:
        """The API job of a job spec and its variables, by Nomad's own parser (1.6 or newer)."""
        body = {"JobHCL": hcl, "Variables": variables, "Canonicalize": True}
        return self._ask(lambda client: client.jobs.request("parse", json=body, method="post").json())

    def register(self, job: Json) -> None:
        """Create or update a job; the counts that it has stay."""
        body = {"Job": job, "PreserveCounts": True}
        self._ask(lambda client: client.jobs.register_job(body))

    def plan(self, job: Json) -> Json:
        """What registering would do, without doing it."""
        return self._ask(lambda client: client.job.plan_job(job["ID"], {"Job": job}, diff=True))

    def scale(self, job_id: str, group: str, count: int, reason: str) -> None:
        """Raises `ConflictError` while a deployment of the job runs."""
        body = {"Count": count, "Target": {"Group": group}, "Message": reason[:MAX_MESSAGE_CHARS]}
        self._ask(lambda client: client.job.request(job_id, "scale", json=body, method="post").json())

    def deregister(self, job_id: str) -> None:
        self._ask(lambda client: client.job.deregister_job(job_id, purge=True))

    def jobs(self, prefix: str) -> list[Json]:
        """Stubs, with `Meta`, of the jobs whose ids begin so."""
        return self._ask(lambda client: client.jobs.get_jobs(prefix=prefix, meta=True))

    def counts(self, job_id: str) -> dict[str, int] | None:
        """The count of each group, as it is asked for now. None for a job that is not there, or is stopped."""
        try:
            status = self._ask(lambda client: client.job.request(job_id, "scale", method="get").json())
        except NotFoundError:
            return None
        if status["JobStopped"]:
            return None
        return {name: group["Desired"] for name, group in status["TaskGroups"].items()}

    def allocations(self, prefix: str) -> list[Json]:
        """Of all jobs whose ids begin so, those that have not ended in good order."""
        expression = f'JobID matches "^{prefix}" and ClientStatus != "complete"'
        return self._ask(lambda client: client.allocations.request(method="get", params={"filter": expression}).json())

    def allocation(self, alloc_id: str) -> Json | None:
        try:
            found: Json = self._ask(lambda client: client.allocation.get_allocation(alloc_id))
            return found
        except NotFoundError:
            return None

    def allocations_of(self, job_id: str) -> list[Json]:
        """All of one job, the newest first, those that have ended, too."""
        found = self._ask(lambda client: client.job.get_allocations(job_id))
        return sorted(found, key=lambda alloc: -alloc["CreateIndex"])

    def evaluations(self, job_id: str) -> list[Json]:
        return self._ask(lambda client: client.job.get_evaluations(job_id))

    def nodes(self) -> list[Json]:
        """Stubs with `NodeResources`."""
        return self._ask(lambda client: client.nodes.get_nodes(resources=True))

    def log_tail(self, alloc_id: str, task: str, stream: str, size_bytes: int) -> str:
        """The last bytes that a task wrote."""

        def read(client: nomad.Nomad) -> str:
            return client.client.stream_logs.stream(  # type: ignore[no-any-return]
                alloc_id, task, stream, offset=size_bytes, origin="end", plain=True
            )

        return self._ask(read)

    def variable(self, path: str) -> dict[str, str]:
        """The items of a variable. Raises `NotFoundError`."""
        found: Json = self._ask(lambda client: client.variable.get_variable(path, namespace=self.address.namespace))
        return found["Items"] or {}

    def variables(self, prefix: str) -> list[Json]:
        """What there is of variables whose paths begin so, but for their items: `Path`, `ModifyTime` (ns), …"""
        return self._ask(lambda client: client.variables.get_variables(prefix, namespace=self.address.namespace))

    def put_variable(self, path: str, items: dict[str, str], *, new: bool = False) -> None:
        """Raises `AlreadyExistsError` for one that is there and was to be `new`."""
        body, namespace = {"Path": path, "Items": items}, self.address.namespace
        cas = 0 if new else None

        def put(client: nomad.Nomad) -> None:
            try:
                client.variable.create_variable(path, body, namespace=namespace, cas=cas)
            except VariableConflict:  # Its text would be all that the variable holds.
                raise AlreadyExistsError(f"there is a Nomad variable {path} already") from None

        self._ask(put)

    def delete_variable(self, path: str) -> None:
        """Deleting what is not there is no error."""
        try:
            self._ask(lambda client: client.variable.delete_variable(path, namespace=self.address.namespace))
        except NotFoundError:
            pass

    @contextmanager
    def events(self) -> Iterator[EventStream]:
        """What happens to allocations and evaluations from now on."""
        parameters = {"topic": ["Allocation", "Evaluation"], "namespace": self.address.namespace}
        # Compressed, events would be held back until there are enough of them.
        headers = {"Accept-Encoding": "identity"}
        options = {"stream": True, "timeout": (TIMEOUT_S, STREAM_TIMEOUT_S), "headers": headers}

        def connect(client: nomad.Nomad) -> requests.Response:
            return client.event.stream.request(method="get", params=parameters, **options)  # type: ignore[no-any-return]

        with self._ask(connect) as response:
            yield EventStream(response)

    def close(self) -> None:
        with self._lock:
            for session in self._sessions:
                session.close()

    def _client(self) -> nomad.Nomad:
        client = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = self._connect()
        return client

    def _connect(self) -> nomad.Nomad:
        session, address = requests.Session(), self.address
        if address.server_name:
            session.mount("https://", _NamedServer(address.server_name))
        with self._lock:
            self._sessions.append(session)
        return nomad.Nomad(
            address=address.url,
            token=address.token or None,
            namespace=address.namespace,
            region=address.region or None,
            verify=not address.skip_verify and (address.ca_path or True),
            cert=(address.client_cert, address.client_key) if address.client_cert else (),
            timeout=TIMEOUT_S,
            session=session,
        )

    def _ask(self, call: Callable[[nomad.Nomad], Result]) -> Result:
        try:
            return call(self._client())
        except URLNotFoundNomadException as error:
            raise NotFoundError(f"Nomad at {self.address.url} has no such thing: {_body(error)}") from None
        except URLNotAuthorizedNomadException as error:
            raise PermissionDeniedError(self._denied(_body(error))) from None
        except (BaseNomadException, OSError, ValueError) as error:
            text = _body(error)
            if DEPLOYMENT_TEXT in text:
                raise ConflictError(f"Nomad does not scale the job while a deployment of it runs ({text})") from None
            if isinstance(error, BaseNomadException) and isinstance(error.nomad_resp, requests.Response):
                hint = "; write https:// into the address" if speaks_tls(text) else ""
                raise ServiceError(f"Nomad at {self.address.url} refused: {text}{hint}") from None
            hint = tls_hint(getattr(error, "nomad_resp", error), "NOMAD") or "check NOMAD_ADDR and that Nomad runs"
            if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
                hint = "correct NOMAD_CACERT, NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY"
            raise ServiceError(f"Nomad at {self.address.url} cannot be reached ({text}); {hint}") from None

    def _denied(self, text: str) -> str:
        if not self.address.token:
            return f"Nomad at {self.address.url} wants a token ({text}); set NOMAD_TOKEN"
        return (
            f"Nomad at {self.address.url} does not allow this in the namespace {self.address.namespace}: "
            f"{text}; check the policy of the token in NOMAD_TOKEN"
        )


class EventStream:
    """Events as they come; `close` may be called from another thread and ends the iteration."""

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._closed = False

    def __iter__(self) -> Iterator[Json]:
        """One by one, `{"Topic", "Type", "Payload", …}`. Ends when the connection does."""
        waiting = b""
        try:
            # What has arrived, however little it is: the body has no end and no parts.
            while not self._closed and (data := self._response.raw.read1(READ_BYTES)):
                *lines, waiting = (waiting + data).split(b"\n")
                for line in filter(None, lines):
                    yield from json.loads(line).get("Events") or ()
        except (requests.RequestException, HTTPError, OSError, ValueError):
            return

    def close(self) -> None:
        self._closed = True
        try:
            self._response.raw.shutdown()
        except (OSError, ValueError, RuntimeError):
            pass  # It had ended by itself.


def _seconds(text: str) -> float | None:
    """Nomad's own `1m30s`."""
    parts = re.findall(r"([0-9.]+)(ms|h|m|s)", text)
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts) if parts else None


def _version(text: str) -> tuple[int, int, int]:
    parts = text.partition("-")[0].partition("+")[0].split(".")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _body(error: Exception) -> str:
    response = getattr(error, "nomad_resp", error)
    text = response.text if isinstance(response, requests.Response) else innermost(response)
    return text.strip()[:MAX_MESSAGE_CHARS] or type(error).__name__
