"""How a control service is found: the leader's record on the lock key, and every instance as a Consul service.

The record says who leads and is never older than the lease itself, since it is the value of the key that is the
lock. The service entries say where instances are and whether they are healthy; a load balancer or a Prometheus
takes them from Consul as any others. Where Nomad runs the control service, Nomad registers them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from nomadfn.adapters.consul_store import ConsulStore, Entry, Shard


@dataclass(frozen=True, slots=True)
class Leader:
    """Who holds the lease of a shard. The addresses are empty until it serves; `since` is in unix seconds."""

    session: str
    epoch: int
    since: float
    host: str
    pid: int
    note: str = ""
    http_url: str = ""
    data_url: str = ""

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        note = f" ({self.note})" if self.note else ""
        return f"process {self.pid} on {self.host} since {since}{note}"

    def encode(self) -> bytes:
        """The record, without the session, which Consul adds."""
        record = asdict(self)
        del record["session"]
        return json.dumps(record, ensure_ascii=False).encode()


def leader_of(entry: Entry | None) -> Leader | None:
    """The leader that a lock key names."""
    if entry is None or not entry.session:
        return None
    try:
        return Leader(entry.session, **json.loads(entry.value))
    except (TypeError, ValueError):  # somebody has changed it, or it is of another version
        return Leader(entry.session, 0, 0.0, "an unknown host", 0)


def find_leader(store: ConsulStore, shard: Shard) -> Leader | None:
    """Who leads the shard now. Raises `ServiceError` where Consul does not say."""
    return leader_of(store.get(shard.lock))


def wait_for_leader(store: ConsulStore, shard: Shard, known: Leader | None, timeout_s: float) -> Leader | None:
    """Who leads, as soon as that or what the leader says of itself is not `known`, or after `timeout_s`.

    A standby waits here for the lease to become free (None), a client for the next leader.
    """
    end = time.monotonic() + timeout_s
    index = 0
    while True:
        left_s = max(0.0, end - time.monotonic())
        index, entry = store.wait(shard.lock, index, left_s)
        found = leader_of(entry)
        if found != known or left_s == 0:
            return found


def register(store: ConsulStore, shard: Shard, http_url: str, data_url: str) -> str:
    """Announce a control service through the local Consul agent, which asks its `/healthz`; returns the entry's id."""
    parts = urlsplit(http_url)
    id = f"nomadfn-control-{shard.cluster}-{parts.hostname}-{parts.port}"
    meta = {"cluster": shard.cluster, "http_url": http_url, "data_url": data_url}
    store.register_service(id, parts.hostname or "", parts.port or 0, f"{http_url}/healthz", meta)
    return id


def instances(store: ConsulStore, shard: Shard) -> Sequence[str]:
    """The `http_url` of every healthy control service of the cluster, leading or not."""
    found = (meta for meta in store.healthy_services() if meta.get("cluster") == shard.cluster)
    return [meta["http_url"] for meta in found if "http_url" in meta]
