"""Telling runners what they need not keep for the next leader: the outputs that one which led has.

An output counts as taken once the lease was seen to be held after it came, and what became of it is in the journal. A
leader that was frozen beyond its lease reads outputs, too, and loses them; of those nothing is said here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from nomadfn_agent import wire

from nomadfn.exception import ServiceError

if TYPE_CHECKING:
    from nomadfn.control.service import Service

EVERY_S = 1.0


async def acknowledge_outputs(service: Service, still_leads: Callable[[], bool]) -> None:
    """Do so while the service leads. `still_leads` may block; it raises `ServiceError` where it cannot tell."""
    while True:
        await asyncio.sleep(EVERY_S)
        taken = [(one, one.outputs) for one in service.containers.unacknowledged()]
        if not taken:
            continue
        try:
            if not await asyncio.to_thread(still_leads):
                continue
        except ServiceError:
            continue
        await service.journal_reached(service.core.state.record_number)
        for connection, frames in taken:
            connection.acknowledged = frames
            connection.send(wire.Ack(frames))
