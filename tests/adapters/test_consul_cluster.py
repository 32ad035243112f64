"""Three Consul servers on loopback, and what becomes of a leader of ours when theirs is killed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from consul_server import ConsulServer, running_cluster

from nomadfn.adapters.consul_journal import ConsulJournal
from nomadfn.adapters.consul_lease import ConsulLease
from nomadfn.adapters.consul_registry import ConsulRegistry
from nomadfn.adapters.consul_store import Shard

pytestmark = pytest.mark.consul


@pytest.fixture
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ConsulServer]]:
    with running_cluster(tmp_path_factory.mktemp("three"), 3) as servers:
        yield servers


@pytest.mark.timeout(240)
def test_when_consuls_leader_is_killed_under_writes_nothing_is_lost_and_the_lease_is_kept(
    servers: list[ConsulServer], lease_of: Callable[..., ConsulLease], shard: Shard
) -> None:
    address = servers[0].leader()
    [leading] = [server for server in servers if address.endswith(f":{server.server_port}")]
    follower = next(server for server in servers if server is not leading)
    store = follower.store(timeout_s=2.0)
    lost: list[str] = []
    lease = lease_of(shard, store, on_lost=lost.append)
    epoch = lease.acquire()
    journal = ConsulJournal(store, lease.hold)
    registry = ConsulRegistry(store, shard, lease.hold)
    acknowledged: list[bytes] = []
    reached = threading.Semaphore(0)
    enough = threading.Event()

    def write() -> None:
        while not enough.is_set():
            body = b"body %d" % len(acknowledged)
            assert journal.append(body) == len(acknowledged) + 1
            acknowledged.append(body)
            reached.release()

    def some_more() -> None:
        for _ in range(50):
            assert reached.acquire(timeout=60)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        some_more()
        leading.kill()
        while reached.acquire(blocking=False):
            pass
        some_more()
        registry.put("apps/a", 1)
        leading.start()
        leading.wait_until_led()
        some_more()
        enough.set()
        writing.result(timeout=60)
    assert lost == []
    assert lease.hold.epoch == epoch
    again = leading.store()
    assert [body for _, body in ConsulJournal(again, lease.hold).replay()] == acknowledged
    assert ConsulRegistry(again, shard).list("") == {"apps/a": 1}
    again.close()
    lease.release()
    store.close()
