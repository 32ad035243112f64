"""What the Consul adapters share: keys with their indexes, transactions, sessions, and every error in words.

Reads are linearizable (`?consistent`). A write whose answer is lost may or may not have been made, which
`ConsulUnreachableError` says; every caller here makes writes that can be tried again as they are.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import consul
import requests
from consul.callback import CB
from consul.exceptions import ACLPermissionDenied, BadRequest, ClientError, ConsulException, NotFound

from nomadfn.adapters.faults import innermost, speaks_tls, tls_hint
from nomadfn.exception import InvalidError, ServiceError

VALUE_BYTES = 350 * 1024
"""The largest value: Consul takes 512 KiB a transaction, with base64 and the rest of the JSON in it."""
TRANSACTION_OPERATIONS = 64
LOCK_NODE = "nomadfn-lock"
CONTROL_SERVICE = "nomadfn-control"
POLICY = f"""\
key_prefix "nomadfn/" {{ policy = "write" }}
session "{LOCK_NODE}" {{ policy = "write" }}
node "{LOCK_NODE}" {{ policy = "write" }}
service "{CONTROL_SERVICE}" {{ policy = "write" }}
node_prefix "" {{ policy = "read" }}
"""
"""All that nomadfn's token needs where Consul denies by default."""

_RIGHTS = dict(zip(("key", "session", "node", "service", "nodes"), POLICY.splitlines(), strict=True))
_LONGEST_PAUSE_S = 1.0

Operation = dict[str, dict[str, Any]]
"""One operation of a transaction."""
T = TypeVar("T")


class ConsulUnreachableError(ServiceError):
    """Consul gave no answer; a write may or may not have been made."""


class ConsulDeniedError(ServiceError):
    """Consul's ACLs do not let this token do that. The text says which right it lacks."""


@dataclass(frozen=True, slots=True)
class ConsulSettings:
    """Where Consul is, and as whom to speak to it. Files are PEM; `timeout_s` is for one answer."""

    address: str = "http://127.0.0.1:8500"
    token: str = field(default="", repr=False)
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    verify: bool = True
    timeout_s: float = 5.0

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> ConsulSettings:
        """The settings that the `consul` command would take from the same variables. Raises `InvalidError`."""
        address = env.get("CONSUL_HTTP_ADDR") or "127.0.0.1:8500"
        if "://" not in address:
            secure = env.get("CONSUL_HTTP_SSL", "").lower() in ("1", "t", "true")
            address = f"{'https' if secure else 'http'}://{address}"
        token = env.get("CONSUL_HTTP_TOKEN", "")
        if not token and (path := env.get("CONSUL_HTTP_TOKEN_FILE")):
            try:
                with open(path) as file:
                    token = file.read().strip()
            except OSError as error:
                raise InvalidError(
                    f"CONSUL_HTTP_TOKEN_FILE names {path}, which cannot be read: {error.strerror}. Correct it."
                ) from None
        return cls(
            address=address,
            token=token,
            ca_file=env.get("CONSUL_CACERT", ""),
            cert_file=env.get("CONSUL_CLIENT_CERT", ""),
            key_file=env.get("CONSUL_CLIENT_KEY", ""),
            verify=env.get("CONSUL_HTTP_SSL_VERIFY", "true").lower() not in ("0", "f", "false"),
        )


@dataclass(frozen=True, slots=True)
class Shard:
    """Where the state of one shard of a cluster stands among Consul's keys.

    The registry has `nomadfn/<cluster>/` to itself, for people to read and to write; no cluster's name has a dot.
    """

    cluster: str
    number: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", self.cluster):
            raise InvalidError(
                f"{self.cluster!r} cannot name a cluster: take 1 to 63 lower-case letters, digits and hyphens."
            )

    @property
    def registry(self) -> str:
        return f"nomadfn/{self.cluster}/"

    @property
    def prefix(self) -> str:
        return f"nomadfn/{self.cluster}.shards/{self.number}/"

    @property
    def lock(self) -> str:
        return f"{self.prefix}lock"

    def __str__(self) -> str:
        return f"shard {self.number} of cluster {self.cluster}"


@dataclass(frozen=True, slots=True)
class Hold:
    """A lease that is held: what a write must carry so that it is refused once somebody else leads."""

    shard: Shard
    session: str
    epoch: int

    @property
    def fence(self) -> Operation:
        return _operation("check-session", self.shard.lock, session=self.session)


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as Consul has it. `index` changes with every change of it, `lock_index` with every locking."""

    key: str
    value: bytes
    index: int
    lock_index: int
    session: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which operation of a transaction was refused, and Consul's words for why."""

    operation: int
    what: str


def check_index(key: str, index: int) -> Operation:
    return _operation("check-index", key, index=index)


def create(key: str, value: bytes) -> Operation:
    """Set a key that must not be there."""
    return replace(key, value, 0)


def replace(key: str, value: bytes, index: int) -> Operation:
    """Set a key that must not have changed since it had `index`."""
    return _operation("cas", key, value=value, index=index)


def put(key: str, value: bytes) -> Operation:
    return _operation("set", key, value=value)


def write_locked(key: str, value: bytes, session: str) -> Operation:
    """Set a key that this session has locked; a plain `set` would begin its `LockIndex` anew."""
    return _operation("lock", key, value=value, session=session)


def delete(key: str) -> Operation:
    return _operation("delete", key)


def delete_tree(prefix: str) -> Operation:
    return _operation("delete-tree", prefix)


def get_tree(prefix: str) -> Operation:
    return _operation("get-tree", prefix)


def _operation(verb: str, key: str, *, value: bytes | None = None, index: int = 0, session: str = "") -> Operation:
    fields: dict[str, Any] = {"Verb": verb, "Key": key}
    if value is not None:
        fields["Value"] = base64.b64encode(value).decode()
    if index:
        fields["Index"] = index
    if session:
        fields["Session"] = session
    return {"KV": fields}


class ConsulStore:
    """One Consul, spoken to with one token. Any thread may use it; every call ends within some `timeout_s`.

    Every call may raise `ConsulUnreachableError`, `ConsulDeniedError`, and `ServiceError` for whatever else.
    """

    def __init__(self, settings: ConsulSettings) -> None:
        self.address = settings.address
        parts = urlsplit(settings.address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidError(
                f"{settings.address!r} is not an address of Consul: give CONSUL_HTTP_ADDR as http://HOST:PORT "
                "or https://HOST:PORT."
            )
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise InvalidError(f"{settings.address!r} has a wrong port: correct CONSUL_HTTP_ADDR.") from None
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self._client = consul.Consul(
            host,
            port,
            scheme=parts.scheme,
            consistency="consistent",
            verify=settings.verify and (settings.ca_file or True),
            cert=(settings.cert_file, settings.key_file) if settings.cert_file else None,
            connections_timeout=settings.timeout_s,
        )
        # The library would take CONSUL_HTTP_TOKEN from the environment whatever it is given.
        self._client.token = settings.token
        # Neither a proxy nor ~/.netrc stands between a program and its own cluster.
        self._client.http.session.trust_env = False

    def close(self) -> None:
        self._client.http.session.close()

    def get(self, key: str) -> Entry | None:
        return self.wait(key, 0, 0)[1]

    def wait(self, key: str, index: int, wait_s: float) -> tuple[int, Entry | None]:
        """The key as soon as it has changed since `index` (0: at once), or after `wait_s`; with the index to go on."""
        with self._saying(f"read the key {key}", "key"):
            found, item = self._client.kv.get(key, **_blocking(index, wait_s))
        return _next_index(index, found), _entry(item) if item else None

    def below(self, prefix: str) -> list[Entry]:
        """All keys that start with `prefix`, sorted."""
        return self.wait_below(prefix, 0, 0)[1]

    def wait_below(self, prefix: str, index: int, wait_s: float) -> tuple[int, list[Entry]]:
        """As `wait`, for all keys that start with `prefix`."""
        with self._saying(f"read the keys below {prefix}", "key"):
            found, items = self._client.kv.get(prefix, recurse=True, **_blocking(index, wait_s))
        return _next_index(index, found), [_entry(item) for item in items or ()]

    def keys(self, prefix: str, separator: str | None = None) -> list[str]:
        """The names of all keys that start with `prefix`, sorted; none goes beyond the next `separator`."""
        with self._saying(f"list the keys below {prefix}", "key"):
            names: list[str] | None = self._client.kv.get(prefix, keys=True, separator=separator)[1]
        return names or []

    def put(self, key: str, value: bytes) -> None:
        with self._saying(f"write the key {key}", "key"):
            self._client.kv.put(key, value)

    def lock(self, key: str, value: bytes, session: str) -> bool:
        """Take the lock that `key` is, or find that this session has it; False when another one has."""
        with self._saying(f"lock the key {key}", "key"):
            return bool(self._client.kv.put(key, value, acquire=session))

    def unlock(self, key: str, value: bytes, session: str) -> bool:
        with self._saying(f"unlock the key {key}", "key"):
            return bool(self._client.kv.put(key, value, release=session))

    def transact(self, operations: Sequence[Operation]) -> list[Refusal]:
        """Do all operations or none; what was refused, which is nothing when they are done."""
        return self._transact(operations, ())[1]

    def read(self, operation: Operation) -> list[Entry]:
        """What one reading operation gives. Unlike `get`, it takes every key: none stands in a URL."""
        return self._transact([operation], [("consistent", "1")])[0]

    def _transact(
        self, operations: Sequence[Operation], params: Sequence[tuple[str, str]]
    ) -> tuple[list[Entry], list[Refusal]]:
        with self._saying("make a transaction", "key"):
            # Not the library's `txn.put`, which sends no token and takes a refusal for a fault.
            answer = self._put("/v1/txn", _transaction, operations, params)
        refusals = [Refusal(error["OpIndex"], error["What"]) for error in answer.get("Errors") or ()]
        for refusal in refusals:
            if "ermission denied" in refusal.what:
                key = operations[refusal.operation]["KV"]["Key"]
                raise self._denied(f"change the key {key}", "key", refusal.what)
        items = [result["KV"] for result in answer.get("Results") or ()]
        return [_entry({**item, "Value": base64.b64decode(item["Value"] or "")}) for item in items], refusals

    def open_session(self, name: str, ttl_s: float) -> str:
        """A session with no health check on the virtual node: no Consul server's end is its end."""
        # Not the library's calls: its `catalog.register` is refused by Consul 1.7 and newer, and its
        # `session.create` knows no `NodeChecks`.
        with self._saying(f"register the node {LOCK_NODE}", "node"):
            self._put("/v1/catalog/register", CB.json(), {"Node": LOCK_NODE, "Address": "127.0.0.1"})
        session = {"Name": name, "Node": LOCK_NODE, "TTL": _duration(ttl_s), "LockDelay": "0s", "Behavior": "release"}
        with self._saying("open a session", "session"):
            answer = self._put("/v1/session/create", CB.json(), {**session, "Checks": [], "NodeChecks": []})
        opened: str = answer["ID"]
        return opened

    def renew_session(self, session: str) -> bool:
        """False when the session is gone."""
        with self._saying("renew a session", "session"):
            try:
                self._client.session.renew(session)
            except NotFound:
                return False
        return True

    def end_session(self, session: str) -> None:
        """Ending one that is gone is no error."""
        with self._saying("end a session", "session"):
            self._client.session.destroy(session)

    def register_service(self, id: str, host: str, port: int, health_url: str, meta: Mapping[str, str]) -> None:
        """Announce one control service through the local agent, which asks `health_url` every 5 s."""
        # A leader that cannot write for a while is unhealthy, too, and shall be found again after that.
        check = consul.Check.http(health_url, "5s", timeout="2s", deregister="1h")
        with self._saying(f"register the service {CONTROL_SERVICE}", "service"):
            self._client.agent.service.register(
                CONTROL_SERVICE, service_id=id, address=host, port=port, check=check, meta=dict(meta)
            )

    def healthy_services(self) -> Sequence[Mapping[str, str]]:
        """What each healthy control service that is registered says of itself (`meta`)."""
        with self._saying(f"look up the service {CONTROL_SERVICE}", "service"):
            nodes = self._client.health.service(CONTROL_SERVICE, passing=True)[1]
        return [node["Service"]["Meta"] or {} for node in nodes]

    def deregister_service(self, id: str) -> None:
        with self._saying(f"deregister the service {CONTROL_SERVICE}", "service"), contextlib.suppress(NotFound):
            self._client.agent.service.deregister(id)

    def _put(self, path: str, callback: Callable[..., Any], body: Any, params: Sequence[tuple[str, str]] = ()) -> Any:
        headers = self._client.prepare_headers()
        return self._client.http.put(callback, path, params=list(params), headers=headers, data=json.dumps(body))

    @contextlib.contextmanager
    def _saying(self, what: str, right: str) -> Iterator[None]:
        try:
            yield
        except ACLPermissionDenied as error:
            raise self._denied(what, right, str(error)) from None
        except ConsulException as error:
            text = str(error)
            if isinstance(error, ClientError | BadRequest) and not text.startswith("429"):
                hint = ". Write https:// into CONSUL_HTTP_ADDR" if speaks_tls(text) else ""
                raise ServiceError(f"Consul at {self.address} refused to {what}: {text.strip()}{hint}") from error
            if "Missing index header" in text:
                raise ServiceError(f"What answers at {self.address} is no Consul. Check CONSUL_HTTP_ADDR.") from error
            raise ConsulUnreachableError(
                f"Consul at {self.address} could not {what}: {text}. Check that its servers have a leader "
                "(`consul operator raft list-peers`)."
            ) from error
        except requests.RequestException as error:
            hint = tls_hint(error, "CONSUL") or "check that it runs, and CONSUL_HTTP_ADDR"
            raise ConsulUnreachableError(
                f"Consul at {self.address} did not answer ({innermost(error)}); {hint}."
            ) from error
        except OSError as error:  # a file of certificates that is not there
            raise ServiceError(
                f"Consul at {self.address} cannot be asked: {error}. Correct CONSUL_CACERT, CONSUL_CLIENT_CERT and "
                "CONSUL_CLIENT_KEY."
            ) from error

    def _denied(self, what: str, right: str, text: str) -> ConsulDeniedError:
        if "not found" in text:
            return ConsulDeniedError(
                f"Consul at {self.address} does not know the token. Set CONSUL_HTTP_TOKEN to one that it has."
            )
        return ConsulDeniedError(
            f"Consul at {self.address} refused to {what}: {text.strip()}. The token's policy needs: {_RIGHTS[right]}"
        )


def insist(
    call: Callable[[], T],
    patience_s: float,
    stop: threading.Event,
    *,
    errors: tuple[type[Exception], ...] = (ConsulUnreachableError,),
    on_failure: Callable[[Exception], None] | None = None,
) -> T:
    """Make a call that may be made again until there is an answer, for `patience_s` or until `stop` is set.

    `on_failure` is told of each try that gave none. Raises the last one's error.
    """
    end = time.monotonic() + patience_s
    pause_s = 0.02
    while True:
        try:
            return call()
        except errors as error:
            if on_failure is not None:
                on_failure(error)
            if stop.is_set() or time.monotonic() + pause_s > end:
                raise
        stop.wait(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _transaction(response: Any) -> Any:
    """A transaction's answer; 409 is one, too: it says what was refused."""
    return json.loads(response.body) if response.code == 409 else CB.json()(response)


def _entry(item: Mapping[str, Any]) -> Entry:
    return Entry(
        item["Key"], item["Value"] or b"", item["ModifyIndex"], item.get("LockIndex", 0), item.get("Session", "")
    )


def _next_index(before: int, found: str) -> int:
    """An index that went back is of another history (Consul was restored from a snapshot): begin anew."""
    index = int(found)
    return index if index >= before else 0


def _blocking(index: int, wait_s: float) -> dict[str, Any]:
    """Consul takes a wait of nothing for one of 5 minutes."""
    return {"index": index, "wait": _duration(wait_s)} if index and wait_s >= 0.001 else {}


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
