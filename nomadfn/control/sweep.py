"""Deleting blobs that nobody refers to any more, as clients that were killed leave them behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nomadfn import ports
from nomadfn.exception import Error

if TYPE_CHECKING:
    from nomadfn.control.service import Service

INTERVAL_S = 3600.0
"""How often that is done, and how old a blob has to be for it."""


async def sweep_blobs(service: Service) -> None:
    """Go on until it is cancelled."""
    while True:
        await asyncio.sleep(INTERVAL_S)
        try:
            old = await asyncio.to_thread(_old_blobs, service.blobs)
            live = service.core.live_blobs() | service.operations.kept_blobs if old else set()
            for name in old - live:
                await service.desk.drop(name)
        except (Error, OSError) as error:
            service.log(f"blobs were not swept: {error}")


def _old_blobs(blobs: ports.Blobs) -> set[str]:
    return {name for name, age_s in blobs.names() if age_s > INTERVAL_S}
