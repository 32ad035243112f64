"""What happens in Nomad: its event stream, and polling beside it, because a stream can break and skip."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from nomadfn.exception import Error

from .nomad_api import EventStream, NomadApi

if TYPE_CHECKING:
    from .nomad_cluster import NomadCluster

POLL_S = 5.0
POLL_ALONE_S = 1.0
"""While there is no event stream."""
RECONNECT_S = 1.0


class Watch:
    """Tells the cluster of every allocation and evaluation whose job's id begins with `prefix`."""

    def __init__(self, api: NomadApi, prefix: str, cluster: NomadCluster) -> None:
        self._api = api
        self._prefix = prefix
        self._cluster = cluster
        self._stream: EventStream | None = None
        self._stopped = threading.Event()
        self._wake = asyncio.Event()

    async def open(self) -> None:
        """Look once, then go on looking. Raises one of nomadfn's errors."""
        self._loop = asyncio.get_running_loop()
        await self._poll()
        self._poller = self._loop.create_task(self._keep_polling())
        threading.Thread(target=self._listen, name="nomad-events", daemon=True).start()

    async def close(self) -> None:
        self._stopped.set()
        if self._stream is not None:
            self._stream.close()
        self._poller.cancel()
        await asyncio.gather(self._poller, return_exceptions=True)

    async def _keep_polling(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), POLL_S if self._stream is not None else POLL_ALONE_S)
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self._poll()
            except Error:
                pass  # Nomad is away; those who need it hear so from their own calls.

    async def _poll(self) -> None:
        records = await self._cluster.ask(self._api.allocations, self._prefix)
        for record in records:
            self._cluster.observe(record)
        listed = {record["ID"] for record in records}
        for job in self._cluster.jobs():
            for alloc in [one for one in job.allocs.values() if one.id not in listed]:
                found = await self._cluster.ask(self._api.allocation, alloc.id)
                self._cluster.observe(found or {**alloc.record, "ClientStatus": "complete", "DesiredStatus": "stop"})
            await self._cluster.recheck(job)

    def _listen(self) -> None:
        """The thread of the event stream."""
        while not self._stopped.is_set():
            try:
                with self._api.events() as stream:
                    self._stream = stream
                    self._call(self._wake.set)
                    for event in stream:
                        self._call(self._on_event, event)
            except Error:
                pass
            self._stream = None
            self._stopped.wait(RECONNECT_S)

    def _call(self, what: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:
            self._stopped.set()  # The loop has ended.

    def _on_event(self, event: dict[str, Any]) -> None:
        payload = event.get("Payload") or {}
        if (alloc := payload.get("Allocation")) is not None:
            self._cluster.observe(alloc)
        elif (evaluation := payload.get("Evaluation")) is not None:
            self._cluster.on_evaluation_event(evaluation)
