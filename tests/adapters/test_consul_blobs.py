"""Blobs in a real Consul: what a cluster without a blob store keeps its code in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from contract_blobs import BlobsContract

from nomadfn.adapters import consul_blobs
from nomadfn.adapters.consul_blobs import ConsulBlobs
from nomadfn.adapters.consul_lease import ConsulLease
from nomadfn.adapters.consul_store import ConsulStore, Shard
from nomadfn.exception import ResourceExhaustedError, ServiceError
from nomadfn.ports import Blobs

pytestmark = pytest.mark.consul


@pytest.fixture
def lease(lease_of: Callable[[Shard], ConsulLease], shard: Shard) -> ConsulLease:
    lease = lease_of(shard)
    lease.acquire()
    return lease


@pytest.fixture
def blobs(store: ConsulStore, lease: ConsulLease) -> Blobs:
    return ConsulBlobs(store, lease.hold)


class TestConsulBlobs(BlobsContract):
    pass


def test_what_there_is_no_room_for_is_refused_with_the_setting(
    blobs: ConsulBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_blobs, "MAX_BYTES", 1000)
    blobs.put("first", bytes(900))
    blobs.put("first", bytes(1000))
    with pytest.raises(ResourceExhaustedError, match="set blobs in the profile") as caught:
        blobs.put("second", b"x")
    assert (caught.value.limit, caught.value.value, caught.value.maximum) == ("blobs", 1001, 1000)
    assert [name for name, _ in blobs.names()] == ["first"]


def test_who_leads_no_more_changes_nothing(
    blobs: ConsulBlobs, lease: ConsulLease, lease_of: Callable[[Shard], ConsulLease], store: ConsulStore
) -> None:
    blobs.put("code", b"needed")
    lease.release()
    successor = lease_of(lease.shard)
    successor.acquire()
    for work in (lambda: blobs.delete("code"), lambda: blobs.put("code", b"another")):
        with pytest.raises(ServiceError, match="Consul refused"):
            work()
    assert ConsulBlobs(store, successor.hold).get("code") == b"needed"
