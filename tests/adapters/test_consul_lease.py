"""The lease in a real Consul: one leader at a time, told when it leads no more, found by whoever looks for it."""

from __future__ import annotations

import contextlib
import http.server
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from consul.callback import CB
from consul_server import MIN_TTL_S, ConsulServer, managed, wait_until
from contract_lease import LeaseContract

from nomadfn.adapters import consul_discovery
from nomadfn.adapters.consul_lease import ConsulLease
from nomadfn.adapters.consul_store import LOCK_NODE, POLICY, ConsulStore, Shard, delete
from nomadfn.exception import ServiceError
from nomadfn.ports import Lease, LeaseHeldError

pytestmark = pytest.mark.consul
LeaseOf = Callable[..., ConsulLease]


class TestConsulLease(LeaseContract):
    @pytest.fixture
    def rival(self, lease_of: LeaseOf, shard: Shard) -> Callable[[], Lease]:
        return lambda: lease_of(shard)


def test_the_epoch_is_the_lock_index_of_the_key(lease_of: LeaseOf, shard: Shard, store: ConsulStore) -> None:
    lease = lease_of(shard)
    for _ in range(3):
        epoch = lease.acquire()
        lease.describe("note")
        entry = store.get(shard.lock)
        assert entry is not None
        assert entry.lock_index == epoch
        lease.release()


def test_its_session_hangs_on_no_server_and_on_no_health_check(
    lease_of: LeaseOf, shard: Shard, consul: ConsulServer
) -> None:
    lease = lease_of(shard)
    lease.acquire()
    with managed(consul.client()) as client:
        session = client.session.info(lease.hold.session)[1]
        node = client.catalog.node(LOCK_NODE)[1]
    assert session["Node"] == LOCK_NODE
    assert session["LockDelay"] == 0
    assert session["TTL"] == "15000ms"
    assert not session.get("Checks")
    assert not session["NodeChecks"]
    assert node["Services"] == {}


def test_a_holder_that_renews_keeps_it_over_many_ttls(lease_of: LeaseOf, shard: Shard) -> None:
    lost: queue.Queue[str] = queue.Queue()
    lease = lease_of(shard, ttl_s=MIN_TTL_S, on_lost=lost.put)
    epoch = lease.acquire()
    with pytest.raises(queue.Empty):
        lost.get(timeout=4 * MIN_TTL_S)
    leader = lease.leader()
    assert leader is not None
    assert leader.epoch == epoch


HOLDER = """
import json, sys
from nomadfn.adapters.consul_lease import ConsulLease
from nomadfn.adapters.consul_store import ConsulSettings, ConsulStore, Shard
address, token, cluster, ttl = json.loads(sys.argv[1])
store = ConsulStore(ConsulSettings(address, token))
lease = ConsulLease(store, Shard(cluster), ttl_s=ttl, on_lost=lambda reason: print(reason, flush=True))
print(lease.acquire(), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def a_holder(consul: ConsulServer, shard: Shard, ttl_s: float) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lease."""
    arguments = json.dumps([consul.address, consul.token, shard.cluster, ttl_s])
    command = [sys.executable, "-c", HOLDER, arguments]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "1\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate(timeout=30)


def test_the_lease_of_a_killed_holder_runs_out_and_not_before_its_ttl(
    consul: ConsulServer, lease_of: LeaseOf, shard: Shard
) -> None:
    standby = lease_of(shard)
    with a_holder(consul, shard, 3.0) as holder:
        leader = standby.leader()
        killed_at = time.monotonic()
        holder.kill()
        while leader is not None:
            leader = standby.wait_for_change(leader, 20)
        assert time.monotonic() - killed_at > 1.5
        assert standby.acquire() == 2


def test_a_holder_that_was_stopped_past_its_ttl_is_told_that_it_leads_no_more(
    consul: ConsulServer, lease_of: LeaseOf, shard: Shard
) -> None:
    standby = lease_of(shard)
    with a_holder(consul, shard, MIN_TTL_S) as holder:
        assert holder.stdout is not None
        holder.send_signal(signal.SIGSTOP)
        leader = standby.leader()
        while leader is not None:
            leader = standby.wait_for_change(leader, 20)
        assert standby.acquire() == 2
        holder.send_signal(signal.SIGCONT)
        assert f"{shard} is not led from here any more" in holder.stdout.readline()


def test_a_standby_that_saw_the_leader_die_takes_over_at_once(
    consul: ConsulServer, lease_of: LeaseOf, shard: Shard
) -> None:
    standby = lease_of(shard)
    with a_holder(consul, shard, 600.0) as holder:
        leader = standby.leader()
        assert leader is not None
        holder.kill()
        assert standby.take_over(leader) == 2


def test_a_leader_that_is_wrongly_suspected_is_told_at_once(lease_of: LeaseOf, shard: Shard) -> None:
    lost: queue.Queue[str] = queue.Queue()
    lease, standby = lease_of(shard, ttl_s=600.0, on_lost=lost.put), lease_of(shard)
    lease.acquire()
    leader = standby.leader()
    assert leader is not None
    standby.take_over(leader)
    assert "is not led from here any more" in lost.get(timeout=20)
    with pytest.raises(ServiceError, match="take the lease first"):
        _ = lease.hold
    standby.release()
    assert lease.acquire() == 3
    assert lost.empty()


def test_taking_over_from_a_leader_of_old_leaves_the_next_one_in_place(lease_of: LeaseOf, shard: Shard) -> None:
    first, second, late = lease_of(shard), lease_of(shard), lease_of(shard)
    first.acquire()
    leader = late.leader()
    assert leader is not None
    second.take_over(leader)
    with pytest.raises(LeaseHeldError):
        late.take_over(leader)
    assert second.hold.epoch == 2


def test_of_many_who_suspect_the_leader_one_takes_over(lease_of: LeaseOf, shard: Shard) -> None:
    first = lease_of(shard)
    first.acquire()
    leader = first.leader()
    assert leader is not None
    rivals = [lease_of(shard) for _ in range(6)]

    def try_it(lease: ConsulLease) -> int:
        try:
            return lease.take_over(leader)
        except LeaseHeldError:
            return 0

    with ThreadPoolExecutor(6) as pool:
        epochs = sorted(pool.map(try_it, rivals))
    assert epochs == [0] * 5 + [2]


def test_a_standby_waits_until_the_lease_is_given_back(lease_of: LeaseOf, shard: Shard) -> None:
    lease, standby = lease_of(shard), lease_of(shard)
    lease.acquire()
    leader = standby.leader()
    assert leader is not None
    assert standby.wait_for_change(leader, 0.05) == leader
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(standby.wait_for_change, leader, 60.0)
        lease.release()
        assert waiting.result(timeout=20) is None
    assert standby.acquire() == 2


def test_whoever_looks_finds_the_leader_its_addresses_and_what_changes(
    lease_of: LeaseOf, shard: Shard, store: ConsulStore
) -> None:
    assert consul_discovery.find_leader(store, shard) is None
    lease = lease_of(shard)
    lease.acquire()
    before = consul_discovery.find_leader(store, shard)
    assert before is not None
    assert before.data_url == ""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(consul_discovery.wait_for_leader, store, shard, before, 60.0)
        lease.announce(http_url="http://10.0.0.1:8420", data_url="ws://10.0.0.1:8421/v1/connect")
        after = waiting.result(timeout=20)
    assert after is not None
    assert (after.epoch, after.data_url) == (1, "ws://10.0.0.1:8421/v1/connect")
    lease.describe("größer")
    entry = store.get(shard.lock)
    assert entry is not None
    assert json.loads(entry.value)["note"] == "größer"
    assert json.loads(entry.value)["http_url"] == "http://10.0.0.1:8420"


def test_a_holder_that_lost_it_does_not_write_over_the_next_ones_record(lease_of: LeaseOf, shard: Shard) -> None:
    first, second = lease_of(shard), lease_of(shard)
    first.acquire()
    leader = first.leader()
    assert leader is not None
    second.take_over(leader)
    second.describe("the second")
    first.describe("the first")
    found = second.leader()
    assert found is not None
    assert found.note == "the second"


def test_epochs_grow_even_where_the_lock_key_was_deleted_or_put(
    lease_of: LeaseOf, shard: Shard, store: ConsulStore
) -> None:
    lost: queue.Queue[str] = queue.Queue()
    lease = lease_of(shard, on_lost=lost.put)
    assert [lease.acquire(), lease.release(), lease.acquire()] == [1, None, 2]
    assert store.transact([delete(shard.lock)]) == []
    lost.get(timeout=20)
    assert lease.acquire() == 3
    store.put(shard.lock, b"{}")
    lease.release()
    assert lease.acquire() == 4


def test_a_record_that_somebody_has_changed_still_names_a_holder(
    lease_of: LeaseOf, shard: Shard, store: ConsulStore
) -> None:
    lease = lease_of(shard)
    lease.acquire()
    store.put(shard.lock, b"mine!")
    with pytest.raises(LeaseHeldError, match="an unknown host"):
        lease_of(shard).acquire()


@pytest.mark.parametrize(
    ("missing", "needs"),
    [("key_prefix", 'key_prefix "nomadfn/"'), ("session", 'session "nomadfn-lock"'), ("node ", 'node "nomadfn-lock"')],
)
def test_a_right_that_the_token_lacks_is_named(
    consul: ConsulServer, shard: Shard, lease_of: LeaseOf, missing: str, needs: str
) -> None:
    policy = "".join(line for line in POLICY.splitlines(keepends=True) if not line.startswith(missing))
    with managed(consul.client()) as client:
        body, headers = json.dumps({"Node": LOCK_NODE}), client.prepare_headers()
        assert client.http.put(CB.boolean(), "/v1/catalog/deregister", headers=headers, data=body)
    store = consul.store(token=consul.make_token(policy))
    try:
        with pytest.raises(ServiceError, match=f'The token\'s policy needs: {needs} {{ policy = "write" }}'):
            lease_of(shard, store).acquire()
    finally:
        store.close()


def test_a_token_that_consul_does_not_know_is_named(consul: ConsulServer, shard: Shard, lease_of: LeaseOf) -> None:
    store = consul.store(token="11111111-2222-3333-4444-555555555555")
    try:
        with pytest.raises(ServiceError, match=r"does not know the token\. Set CONSUL_HTTP_TOKEN"):
            lease_of(shard, store).acquire()
    finally:
        store.close()


class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_control_service_is_found_while_it_is_healthy(store: ConsulStore, shard: Shard) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        id = consul_discovery.register(store, shard, url, "ws://127.0.0.1:1")
        try:
            wait_until(lambda: consul_discovery.instances(store, shard) == [url], 30)
            assert consul_discovery.instances(store, Shard("another")) == []
        finally:
            store.deregister_service(id)
            server.shutdown()
            thread.join()
        wait_until(lambda: consul_discovery.instances(store, shard) == [], 30)
