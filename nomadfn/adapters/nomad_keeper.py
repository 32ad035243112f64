"""Keeps one job as its rooms want it: registered when it is first needed, its lanes scaled, gone when it is retired.

A keeper is one task a job. Scale calls on one job go one after the other, because Nomad refuses two at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from nomadfn.exception import Error, NotFoundError, ServiceError

from .nomad_api import NomadApi
from .nomad_rooms import Job

RETRY_MIN_S, RETRY_MAX_S = 0.2, 10.0
TOKEN_ITEM = "join_token"

Ask = Callable[..., Awaitable[Any]]


class Keeper:
    """`block(job, why)` hears of trouble, `scaled()` of new counts, `gone(job)` that the job is no more.

    What takes something away is done only while `still_leads()`, which may block, says so: Nomad fences nobody, and a
    control service that was frozen beyond its lease would end containers that the next one has started.
    """

    def __init__(
        self,
        job: Job,
        api: NomadApi,
        ask: Ask,
        join_token: Callable[[str], str] | None,
        block: Callable[[Job, str], None],
        scaled: Callable[[], None],
        gone: Callable[[Job], None],
        still_leads: Callable[[], bool],
    ) -> None:
        self._job = job
        self._api = api
        self._ask = ask
        self._join_token = join_token
        self._block = block
        self._scaled = scaled
        self._gone = gone
        self._still_leads = still_leads
        self._lock = asyncio.Lock()
        self.task = asyncio.get_running_loop().create_task(self._keep())

    def cancel(self) -> None:
        self.task.cancel()

    async def register(self) -> None:
        """Have the job in Nomad, without containers. Raises one of nomadfn's errors."""
        async with self._lock:
            await self._register()

    async def read_counts(self) -> None:
        """Learn the counts from Nomad. Raises one of nomadfn's errors."""
        async with self._lock:
            await self._read_counts()

    async def recheck(self) -> None:
        """See whether others have changed the counts, or removed the job."""
        if not self._job.exists or self._lock.locked():
            return
        await self.read_counts()
        self._job.wake.set()

    async def _keep(self) -> None:
        pause_s = 0.0
        while True:
            await self._wait(self._job.due_s(_now()))
            try:
                async with self._lock:
                    if await self._round():
                        return
                pause_s = 0.0
            except Error as error:
                if isinstance(error, NotFoundError):
                    self._job.exists = self._job.current = False
                self._block(self._job, str(error))
                pause_s = min(RETRY_MAX_S, max(RETRY_MIN_S, 2 * pause_s))
                await asyncio.sleep(pause_s)
                self._job.wake.set()

    async def _wait(self, due_s: float | None) -> None:
        try:
            await asyncio.wait_for(self._job.wake.wait(), due_s)
        except TimeoutError:
            pass
        self._job.wake.clear()

    async def _round(self) -> bool:
        """Bring every lane to its target; says whether the job is gone."""
        job = self._job
        if any(job.targets(_now())) and not job.registered:
            await self._register()
        targets = job.targets(_now())
        # Containers that are wanted come before those that are not.
        for lane in sorted(range(job.lanes), key=lambda lane: targets[lane] < job.counts[lane]):
            await self._scale(lane)
        job.tidy(_now())
        if not job.retired or not job.empty or job.allocs:
            return False
        if job.exists:
            await self._check_lease()
            await self._ask(self._api.deregister, job.id)
            job.exists = job.current = False
            if self._join_token is not None:
                await self._ask(self._api.delete_variable, _token_path(job))
        if not job.empty:
            job.wake.set()
            return False
        self._gone(job)
        return True

    async def _scale(self, lane: int) -> None:
        """Bring one lane to what it must be by now: a start may have come since the round began."""
        job = self._job
        count, target = job.counts[lane], job.targets(_now())[lane]
        if target == count:
            return
        if target < count:
            await self._check_lease()
        over = [alloc for alloc in job.allocs.values() if job.is_over(alloc.index, lane, target)]
        for alloc in over:
            alloc.doomed = True
        try:
            await self._ask(self._api.scale, job.id, f"lane-{lane}", target, job.reason or f"{count} → {target}")
        except Error:
            for alloc in over:
                alloc.doomed = False
            raise
        job.counts[lane] = target
        self._scaled()

    async def _check_lease(self) -> None:
        if not await self._ask(self._still_leads):
            raise ServiceError("another control service leads by now, and says how many containers there are")

    async def _register(self) -> None:
        job = self._job
        if job.registered or job.rendered is None:
            return
        await self._read_counts()
        if job.registered:
            return
        parsed = await self._ask(self._api.parse, job.rendered.hcl, job.rendered.variables)
        if self._join_token is not None:
            await self._ask(self._api.put_variable, _token_path(job), {TOKEN_ITEM: self._join_token(job.id)})
        await self._ask(self._api.register, parsed)
        job.exists = job.current = True

    async def _read_counts(self) -> None:
        counts = await self._ask(self._api.counts, self._job.id)
        self._job.exists = counts is not None
        self._job.current = self._job.current and self._job.exists
        self._job.counts = [(counts or {}).get(f"lane-{lane}", 0) for lane in range(self._job.lanes)]


def _token_path(job: Job) -> str:
    """The variable that Nomad lets the job itself read, and no other job."""
    return f"nomad/jobs/{job.id}"


def _now() -> float:
    return asyncio.get_running_loop().time()
