"""What a control service does with what it finds of the one before, before it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
from nomadfn_agent import wire

from nomadfn import ports
from nomadfn.adapters.directory_blobs import DirectoryBlobs
from nomadfn.adapters.file_secrets import FileSecrets
from nomadfn.adapters.memory import MemoryCluster, MemoryJournal, MemoryRegistry
from nomadfn.control.address import Address
from nomadfn.control.service import Service
from nomadfn.control.serving import bring_back
from nomadfn.control.tokens import Tokens
from nomadfn.core.core import Core
from nomadfn.core.limits import Limits

TURNS = 20


class Opening(MemoryCluster):
    """A cluster that takes a while to say what runs on it, as a real one does."""

    def __init__(self) -> None:
        super().__init__(answers=False)
        self.is_open = False
        self.early: list[ports.Placement] = []

    async def open(self, listener: Callable[[ports.ClusterEvent], None]) -> None:
        await turns()
        await super().open(listener)
        self.is_open = True

    def start(self, placement: ports.Placement) -> None:
        if not self.is_open:
            self.early.append(placement)
        super().start(placement)


async def turns() -> None:
    """Let everything that waits for its turn of the loop have it."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


def test_no_container_starts_before_it_is_known_which_ones_run_already(tmp_path: Path) -> None:
    registry = MemoryRegistry()
    spec = wire.AppSpec(name="shop", functions=[wire.FunctionSpec(name="f", module="shop", qualname="f")])
    app = {"id": "ap-1", "spec": msgspec.to_builtins(spec), "session": "", "deployed": True, "version": 1}
    registry.put("apps/ap-1", app)
    registry.put("overrides/shop/f", {"min_containers": 1})

    async def take_over() -> Opening:
        faults: list[Exception] = []
        cluster = Opening()
        core = Core(Limits(), epoch=2)
        blobs, tokens = DirectoryBlobs(str(tmp_path)), Tokens("nf_" + "o" * 43)
        journal, named = MemoryJournal(), FileSecrets(tmp_path)
        service = Service(core, cluster, registry, blobs, tokens, Address(), journal, faults.append, named)
        bring_back(service, [])
        await turns()  # the listener of the websockets opens meanwhile
        await service.start(lambda: 0)
        while not cluster.starts and not faults:
            await asyncio.sleep(0.001)
        await service.leave(lambda: None)
        assert faults == []
        return cluster

    cluster = asyncio.run(asyncio.wait_for(take_over(), 30))
    assert cluster.early == []
    assert len(cluster.starts) == 1
