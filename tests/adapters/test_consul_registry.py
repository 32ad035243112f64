"""The registry in a real Consul: readable, fenced, and watched, whoever changes it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from consul_server import ConsulServer
from contract_registry import RegistryContract

from nomadfn.adapters.consul_lease import ConsulLease
from nomadfn.adapters.consul_registry import ConsulRegistry
from nomadfn.adapters.consul_store import VALUE_BYTES, ConsulStore, Shard, delete
from nomadfn.exception import ConflictError, ServiceError
from nomadfn.ports import Registry

pytestmark = pytest.mark.consul


@pytest.fixture
def registry(store: ConsulStore, shard: Shard) -> Iterator[ConsulRegistry]:
    registry = ConsulRegistry(store, shard)
    yield registry
    registry.close()


@pytest.fixture
def reopen(store: ConsulStore, shard: Shard) -> Callable[[Registry], Registry]:
    def again(registry: Registry) -> Registry:
        registry.close()
        return ConsulRegistry(store, shard)

    return again


class TestConsulRegistry(RegistryContract):
    pass


def test_values_stand_in_consul_as_readable_json(registry: ConsulRegistry, store: ConsulStore, shard: Shard) -> None:
    registry.put("apps/größe", {"name": "größe"})
    entry = store.get(f"nomadfn/{shard.cluster}/apps/größe")
    assert entry is not None
    assert entry.value == '{"name": "größe"}'.encode()


def test_the_state_of_shards_is_none_of_its_keys(
    registry: ConsulRegistry, lease_of: Callable[..., ConsulLease], shard: Shard
) -> None:
    lease_of(shard).acquire()
    assert registry.list("") == {}


@pytest.mark.parametrize("key", ["a/../b", "/a//b/", "./a", "a b?c#d%2F", "x" * 500])
def test_any_key_stays_as_it_is(registry: ConsulRegistry, key: str) -> None:
    registry.put(key, 1)
    assert registry.get(key) == 1
    assert registry.list("") == {key: 1}
    registry.delete(key)
    assert registry.list("") == {}


def test_a_value_that_consul_would_not_take_is_refused_with_its_size(registry: ConsulRegistry) -> None:
    registry.put("key", "x" * (VALUE_BYTES - 2))
    with pytest.raises(ServiceError, match="would have 358,401 bytes; Consul takes 358,400"):
        registry.put("key", "x" * (VALUE_BYTES - 1))


def test_a_value_that_somebody_has_broken_is_named(registry: ConsulRegistry, store: ConsulStore, shard: Shard) -> None:
    store.put(f"nomadfn/{shard.cluster}/overrides/a/f", b"{max: 3}")
    with pytest.raises(ServiceError, match=r"overrides/a/f in Consul is not JSON .* Correct it with `consul kv put`"):
        registry.get("overrides/a/f")


def test_a_leader_of_old_changes_nothing(
    store: ConsulStore, lease_of: Callable[..., ConsulLease], shard: Shard
) -> None:
    old, new = lease_of(shard), lease_of(shard)
    old.acquire()
    registry = ConsulRegistry(store, shard, old.hold)
    registry.put("apps/thumbs", 1)
    leader = old.leader()
    assert leader is not None
    new.take_over(leader)
    for write in (lambda: registry.put("apps/thumbs", 2), lambda: registry.delete("apps/thumbs")):
        with pytest.raises(ConflictError, match="the change was not made"):
            write()
    assert ConsulRegistry(store, shard, new.hold).get("apps/thumbs") == 1


def test_a_listing_leaves_out_what_somebody_has_broken_where_that_is_told(
    registry: ConsulRegistry, store: ConsulStore, shard: Shard
) -> None:
    registry.put("overrides/a/f", {"max_containers": 3})
    store.put(f"nomadfn/{shard.cluster}/overrides/a/g", b"five")
    told: list[str] = []
    assert registry.list("overrides/", told.append) == {"overrides/a/f": {"max_containers": 3}}
    assert ["overrides/a/g in Consul is not JSON" in fault for fault in told] == [True]
    with pytest.raises(ServiceError, match="overrides/a/g in Consul is not JSON"):
        registry.list("overrides/")


def test_a_right_that_the_token_lacks_is_named(consul: ConsulServer, shard: Shard) -> None:
    store = consul.store(token=consul.make_token('key_prefix "nomadfn/" { policy = "read" }'))
    registry = ConsulRegistry(store, shard)
    assert registry.list("") == {}
    with pytest.raises(ServiceError, match=rf"change the key nomadfn/{shard.cluster}/a.* needs: key_prefix"):
        registry.put("a", 1)
    store.close()


def test_a_watch_tells_what_is_there_and_each_change_whoever_made_it(
    registry: ConsulRegistry, store: ConsulStore, shard: Shard
) -> None:
    seen: queue.Queue[dict[str, Any]] = queue.Queue()
    faults: queue.Queue[str] = queue.Queue()
    registry.put("overrides/a/f", {"max_containers": 3})
    registry.put("apps/a", "none of it")
    registry.watch("overrides/", seen.put, faults.put, wait_s=0.5)
    assert seen.get(timeout=20) == {"overrides/a/f": {"max_containers": 3}}
    by_hand = f"nomadfn/{shard.cluster}/overrides/a/g"
    store.put(by_hand, b'{"max_containers": 5}')
    assert seen.get(timeout=20) == {"overrides/a/f": {"max_containers": 3}, "overrides/a/g": {"max_containers": 5}}
    store.put(by_hand, b"five")
    assert f"{by_hand} in Consul is not JSON" in faults.get(timeout=20)
    registry.delete("overrides/a/f")
    assert seen.get(timeout=20) == {"overrides/a/g": {"max_containers": 5}}
    store.transact([delete(by_hand)])
    assert seen.get(timeout=20) == {}
    registry.put("apps/a", "still none of it")
    registry.close()
    assert seen.empty()
    assert faults.empty()


def test_a_watch_of_nothing_asks_consul_no_more_often_than_it_must(
    registry: ConsulRegistry, store: ConsulStore, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Consul answers a query for an empty prefix at every write, wherever it is."""
    asked: list[str] = []
    told = queue.Queue[dict[str, Any]]()
    wait_below = store.wait_below

    def counted(prefix: str, index: int, wait_s: float) -> Any:
        asked.append(prefix)
        return wait_below(prefix, index, wait_s)

    monkeypatch.setattr(store, "wait_below", counted)
    monkeypatch.setattr("nomadfn.adapters.consul_registry.LEAST_S", 0.3)
    registry.watch("overrides/", told.put, wait_s=0.5)
    assert told.get(timeout=20) == {}
    for number in range(200):
        store.put(f"{shard.prefix}elsewhere", b"%d" % number)
    registry.put("overrides/a/f", {})
    assert told.get(timeout=20) == {"overrides/a/f": {}}
    registry.close()
    assert len(asked) < 20
