"""What the registry has of changed settings, whoever wrote it, and what a control service makes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nomadfn_agent import wire

from nomadfn.adapters.directory_blobs import DirectoryBlobs
from nomadfn.adapters.file_secrets import FileSecrets
from nomadfn.adapters.memory import MemoryCluster, MemoryJournal, MemoryRegistry
from nomadfn.control.address import Address
from nomadfn.control.overrides import shown_time
from nomadfn.control.service import Service
from nomadfn.control.serving import bring_back
from nomadfn.control.tokens import Identity, Tokens
from nomadfn.core.core import Core
from nomadfn.exception import InvalidError

KEY = "overrides/shop/f"
OWNER = Identity()
FUNCTION = "ap-1/f"


class Shop:
    """One registry, over several control services, with one deployed function."""

    def __init__(self, folder: Path, **autoscaler: Any) -> None:
        self.folder = folder
        self.registry = MemoryRegistry()
        function = wire.FunctionSpec(name="f", autoscaler=wire.AutoscalerSettings(**autoscaler))
        self.spec = msgspec.to_builtins(wire.AppSpec(name="shop", functions=[function]))
        app = {"id": "ap-1", "spec": self.spec, "session": "", "deployed": True, "version": 1}
        self.registry.put("apps/ap-1", app)
        self.logged: list[str] = []

    def begin(self) -> Service:
        blobs, secrets = DirectoryBlobs(str(self.folder)), FileSecrets(self.folder)
        tokens, cluster = Tokens("nf_" + "o" * 43), MemoryCluster(answers=False)
        faults: list[Exception] = []
        service = Service(
            Core(), cluster, self.registry, blobs, tokens, Address(), MemoryJournal(), faults.append, secrets
        )
        service.log = self.logged.append  # type: ignore[method-assign]
        bring_back(service, [])
        return service

    @property
    def entry(self) -> Any:
        return self.registry.get(KEY)


def in_loop(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


async def scale(service: Service, **body: Any) -> Any:
    return await service.perform("function.scale", {"function_id": FUNCTION, **body}, OWNER)


def settings(service: Service) -> wire.AutoscalerSettings:
    return service.core.function(FUNCTION).settings


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_change_for_a_time_stands_in_the_registry_with_its_time(tmp_path: Path) -> None:
    shop = Shop(tmp_path)

    async def work() -> None:
        service = shop.begin()
        await scale(service, min_containers=1)
        assert shop.entry == {"min_containers": 1}
        said = await scale(service, max_containers=9, for_s=3600)
        until = shop.entry["temporary"]["max_containers"]["until"]
        assert 3500 < datetime.fromisoformat(until).timestamp() - time.time() < 3700
        temporary = {"max_containers": {"value": 9, "until": until}}
        assert shop.entry == said["changed"] == {"min_containers": 1, "temporary": temporary}
        await scale(service, reset=["min_containers", "max_containers"])
        assert shop.entry is None

    in_loop(work())


def test_it_reverts_under_another_control_service_which_writes_that_down(tmp_path: Path) -> None:
    shop = Shop(tmp_path)

    async def work() -> None:
        first = shop.begin()
        await scale(first, min_containers=1)
        await scale(first, min_containers=3, for_s=3600)
        second = shop.begin()
        assert settings(second).min_containers == 3
        await second.start()
        shop.registry.put(KEY, {"min_containers": 1, "temporary": {"min_containers": {"value": 3, "until": 1.5}}})
        third = shop.begin()
        await third.start()
        await until(lambda: shop.entry == {"min_containers": 1})
        assert settings(third).min_containers == 1
        for one in (second, third):
            await one.leave(lambda: None)

    in_loop(work())


def test_what_people_write_by_hand_is_taken_old_form_and_new(tmp_path: Path) -> None:
    shop = Shop(tmp_path)

    async def work() -> None:
        service = shop.begin()
        take = service.operations.overrides.take
        take({KEY: {"min_containers": 2, "scaledown_window_s": 7}})
        assert settings(service) == wire.AutoscalerSettings(2, None, 0, 7)
        soon = shown_time(time.time() + 100)
        take({KEY: {"temporary": {"max_containers": {"value": 5, "until": soon}}}})
        assert settings(service) == wire.AutoscalerSettings(0, 5, 0, 60.0)
        take({KEY: {"min_containers": 1, "temporary": {"max_containers": {"value": 5, "until": time.time() - 1}}}})
        assert settings(service) == wire.AutoscalerSettings(1, None, 0, 60.0), "its time is over already"
        take({})
        assert settings(service) == wire.AutoscalerSettings()
        assert shop.logged == []

    in_loop(work())


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"min": 2}, "overrides are an object with some of min_containers"),
        ([], "overrides are an object"),
        ({"temporary": 3}, "temporary is an object with some of"),
        ({"temporary": {"max_containers": 3}}, 'must be like {"value": 20, "until": "'),
        ({"temporary": {"max_containers": {"value": 3, "until": "soon"}}}, "must be like"),
        ({"temporary": {"max_containers": {"value": 0, "until": 9e9}}}, "max_containers must be a whole number"),
        ({"min_containers": 9, "temporary": {"max_containers": {"value": 20, "until": 9e9}}}, "min_containers=9"),
    ],
)
def test_what_is_wrong_is_said_once_and_changes_nothing(tmp_path: Path, entry: Any, why: str) -> None:
    shop = Shop(tmp_path, max_containers=5)

    async def work() -> None:
        service = shop.begin()
        for _ in range(2):
            service.operations.overrides.take({KEY: entry})
        assert len(shop.logged) == 1
        assert KEY in shop.logged[0]
        assert why in shop.logged[0]
        assert settings(service) == wire.AutoscalerSettings(max_containers=5)

    in_loop(work())


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"min_containers": 9}, "min_containers=9 is more than max_containers=5"),
        ({"max_containers": 20, "for_s": 0.5}, "for 1 second to 30 days, not for 0.5 seconds"),
        ({"max_containers": 20, "for_s": True}, "not for True seconds"),
        ({"for_s": 60}, "`for` goes with settings to change"),
        ({"reset": ["size"]}, "reset is a list with some of min_containers"),
        ({"reset": ["min_containers"], "min_containers": 1}, "changed and reset at once"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path: Path, body: dict[str, Any], why: str) -> None:
    shop = Shop(tmp_path, max_containers=5)

    async def work() -> None:
        service = shop.begin()
        with pytest.raises(InvalidError, match=why.replace("(", r"\(")):
            await scale(service, **body)
        assert shop.entry is None
        assert settings(service) == wire.AutoscalerSettings(max_containers=5)

    in_loop(work())


def test_what_would_be_wrong_once_it_reverts_is_refused_before(tmp_path: Path) -> None:
    shop = Shop(tmp_path, max_containers=5)

    async def work() -> None:
        service = shop.begin()
        await scale(service, max_containers=20, for_s=60)
        with pytest.raises(InvalidError, match="when what is temporary has reverted: min_containers=9 is more than"):
            await scale(service, min_containers=9)
        await scale(service, min_containers=9, for_s=60)
        assert settings(service).min_containers == 9

    in_loop(work())
