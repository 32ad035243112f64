"""Where the control service of a cluster is that leads now: its record in Consul, or what one of them says."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from nomadfn.exception import InvalidError, ServiceError
from nomadfn.profiles import Profile

ASK_S = 3.0
WAIT_S = 1.0
"""How long one look waits for another leader than the one that was lost."""


@dataclass(frozen=True, slots=True)
class Leader:
    http_url: str
    data_url: str


def find_leader(profile: Profile, environ: Mapping[str, str] = os.environ, lost: str = "") -> Leader | None:
    """None where none leads, or none that serves yet. Raises `ServiceError` where nobody can be asked.

    Where that is only the one that was `lost` (its data address), or none after it, or one that is about to serve, this
    waits a moment for another one.
    """
    return ask(profile.control_urls, lost) if profile.control_urls else _look_up(profile, environ, lost)


def ask(urls: Sequence[str], lost: str = "") -> Leader | None:
    """What the control services at these addresses say; the first that knows is believed."""
    query = f"?unlike={quote(lost)}" if lost else ""
    faults = []
    for url in urls:
        try:
            status, text = _get(f"{url.rstrip('/')}/v1/leader{query}")
            if status == 200:
                content = json.loads(text)
                return Leader(str(content["http_url"]), str(content["data_url"]))
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
            faults.append(f"{url}: {error}")
    if len(faults) == len(urls):
        raise ServiceError(f"no control service answers: {'; '.join(faults)}; check control_urls, and that they run")
    return None


def _get(url: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=ASK_S)
    try:
        connection.request("GET", parts.path + (f"?{parts.query}" if parts.query else ""))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _look_up(profile: Profile, environ: Mapping[str, str], lost: str) -> Leader | None:
    try:
        from nomadfn.adapters import consul_discovery
        from nomadfn.adapters.consul_store import ConsulSettings, ConsulStore, Shard
    except ModuleNotFoundError as error:
        raise InvalidError(
            f"{profile} is looked up in Consul, which needs {error.name}; install it: pip install 'nomadfn[consul]', "
            "or give the profile control_urls"
        ) from None
    chosen = {"CONSUL_HTTP_ADDR": profile.consul} if profile.consul else {}
    store = ConsulStore(ConsulSettings.from_environment({**environ, **chosen}))
    shard = Shard(profile.cluster, profile.shard)
    end = time.monotonic() + WAIT_S
    try:
        found = consul_discovery.find_leader(store, shard)
        # One that has the lease and no address yet is taking over at this moment.
        while (found.data_url in ("", lost) if found is not None else lost) and (left_s := end - time.monotonic()) > 0:
            found = consul_discovery.wait_for_leader(store, shard, found, left_s)
    finally:
        store.close()
    return Leader(found.http_url, found.data_url) if found is not None and found.data_url else None
