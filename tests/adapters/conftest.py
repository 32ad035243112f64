"""The contract suites are plain modules; pytest shall explain their assertions, too."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from consul_server import ConsulServer, running_consul

from nomadfn.adapters.consul_lease import ConsulLease
from nomadfn.adapters.consul_store import ConsulStore, Shard

pytest.register_assert_rewrite(
    "contract_journal", "contract_blobs", "contract_registry", "contract_lease", "contract_cluster"
)


@pytest.fixture(scope="session")
def consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    """One real Consul for all tests of this process; each takes a cluster's name of its own."""
    with running_consul(tmp_path_factory.mktemp("consul")) as server:
        yield server


@pytest.fixture
def store(consul: ConsulServer) -> Iterator[ConsulStore]:
    """Consul as nomadfn sees it, with the documented policy and no other right."""
    store = consul.store()
    yield store
    store.close()


@pytest.fixture
def shard() -> Shard:
    """A shard that no other test knows."""
    return Shard(f"test-{uuid.uuid4()}")


@pytest.fixture
def lease_of(store: ConsulStore) -> Iterator[Callable[..., ConsulLease]]:
    """Makes leases, on shards or on further stores, that are given back at the end of the test."""
    with contextlib.ExitStack() as stack:

        def make(shard: Shard, store: ConsulStore = store, **options: Any) -> ConsulLease:
            lease = ConsulLease(store, shard, **options)
            stack.callback(lease.release)
            return lease

        yield make
