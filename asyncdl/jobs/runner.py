"""The runner: claims jobs, runs them, and sees that each ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import traceback
import uuid
from dataclasses import dataclass, replace
from typing import Any

from asyncdl.errors import ComponentNotFoundError, ConflictError, LeaseLostError, StoreError
from asyncdl.events.types import JobFailed, JobSucceeded
from asyncdl.jobs.kinds import work_of
from asyncdl.jobs.work import Stores, Work
from asyncdl.metadata.base import Change, ClaimJob, FinishJob, JobFilter, JobRecord, RenewLeases

logger = logging.getLogger("asyncdl.jobs")


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How jobs are run.

    Parameters
    ----------
    concurrency
        Jobs at once in this process.
    lease
        Seconds after which the jobs of a process that gave no sign of life are taken over.
    backoff
        Seconds before the second attempt, doubled for each further one, with up to half of it added by chance.
    """

    concurrency: int = 8
    lease: float = 30.0
    backoff: float = 1.0


class Runner:
    """Runs jobs in this process, each in a task of its own."""

    def __init__(self, stores: Stores, options: RunnerOptions) -> None:
        self._stores = stores
        self._options = options
        self.owner = uuid.uuid4().hex
        self._running: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Claim and run jobs until cancelled; then jobs under way go back to the queue, without costing an attempt."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_leases(), name="asyncdl: leases")
            seen = 0
            while True:
                self._room.clear()
                try:
                    now = time.time()  # one for both: what becomes due between two looks would be seen by neither
                    claimed = await self._claim(group, now)
                    due = None if claimed else await self._stores.metadata.next_due(now)
                except StoreError:
                    logger.exception("cannot claim jobs; trying again")
                    await asyncio.sleep(self._options.backoff)
                    continue
                if not claimed:
                    seen = await self._wait(seen, due)

    async def _wait(self, seen: int, due: float | None) -> int:
        """Wait for a commit, for a job to end, or for the time at which a job becomes due."""
        timeout = None if due is None else max(due - time.time(), 0.01)
        commit = asyncio.ensure_future(self._stores.metadata.wait_for_commits(seen, "work"))
        room = asyncio.ensure_future(self._room.wait())
        try:
            await asyncio.wait({commit, room}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            return commit.result() if commit.done() else seen
        finally:
            commit.cancel()
            room.cancel()

    async def _claim(self, group: asyncio.TaskGroup, now: float) -> int:
        free = self._options.concurrency - len(self._running)
        if free <= 0:
            return 0
        claimed = 0
        for job in await self._stores.metadata.claimable(now, limit=free + len(self._running)):
            if job.id in self._running or claimed == free:
                continue
            try:
                until = now + self._options.lease
                await self._stores.metadata.commit(ClaimJob(job.id, self.owner, now, until, job.attempts))
            except ConflictError:
                continue  # another process was first
            mine = replace(job, state="running", owner=self.owner, lease=until, attempts=job.attempts + 1)
            task = group.create_task(self._attempt(mine), name=f"asyncdl: job {job.id}")
            self._running[job.id] = task
            claimed += 1
        return claimed

    async def _attempt(self, job: JobRecord) -> None:
        """Run one attempt of a job to its end, whatever happens in it."""
        work: Work | None = None
        try:
            work = work_of(self._stores, job, self.owner)
            if job.attempts > job.max_attempts:
                raise RuntimeError(f"the processes that ran this job died, {job.attempts - 1} times")
            await work.run()
            await self._succeed(job, work)
        except LeaseLostError:
            logger.info("job %s is no longer ours: cancelled, or taken over", job.id)
        except ComponentNotFoundError as error:
            await self._end(job, FinishJob(job.id, self.owner, "cancelled", time.time(), error=str(error)))
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(job))
            raise
        except Exception as error:
            await self._fail(job, work, error)
        finally:
            self._running.pop(job.id, None)
            self._room.set()

    async def _succeed(self, job: JobRecord, work: Work) -> None:
        event = JobSucceeded(job=job.id, kind=job.kind, target=job.target, done=work.done)
        conclusion = await work.conclude()
        changes: list[Change] = [
            FinishJob(job.id, self.owner, "succeeded", time.time()),
            event.change(job.first, job.last),
            *conclusion.changes,
        ]
        if not conclusion.dropped:
            await self._end(job, *changes)
            return
        async with self._stores.databackend.transaction() as tx:
            for table in conclusion.dropped:
                await self._stores.databackend.drop_outputs(table, tx)
            if self._stores.shared:
                await self._end(job, *changes, joining=tx)
        if not self._stores.shared:
            await self._end(job, *changes)

    async def _fail(self, job: JobRecord, work: Work | None, error: Exception) -> None:
        text = "".join(traceback.format_exception(error)).replace("\0", "\\0")  # PostgreSQL's texts hold no NUL
        now = time.time()
        if job.attempts < job.max_attempts:
            wait = self._options.backoff * 2 ** (job.attempts - 1) * (1 + random.random() / 2)  # noqa: S311 - jitter
            logger.warning("job %s failed, attempt %d of %d: %s", job.id, job.attempts, job.max_attempts, error)
            await self._end(job, FinishJob(job.id, self.owner, "pending", now, error=text, not_before=now + wait))
            return
        logger.error("job %s failed for good after %d attempts", job.id, job.attempts, exc_info=error)
        event = JobFailed(job=job.id, kind=job.kind, target=job.target, error=text, attempts=job.attempts)
        changes: list[Change] = [
            FinishJob(job.id, self.owner, "failed", now, error=text),
            event.change(job.first, job.last),
        ]
        if work is not None:
            changes += await work.give_up()
        await self._end(job, *changes)

    async def _give_back(self, job: JobRecord) -> None:
        await self._end(job, FinishJob(job.id, self.owner, "pending", time.time(), refund=True))

    async def _end(self, job: JobRecord, *changes: Change, joining: Any = None) -> None:
        with contextlib.suppress(LeaseLostError):
            try:
                await self._stores.metadata.commit(*changes, joining=joining)
            except StoreError as error:
                if isinstance(error, ConflictError):
                    raise
                # Its lease will run out, and another attempt be made: nothing is lost.
                logger.exception("the end of job %s could not be recorded", job.id)

    async def _keep_leases(self) -> None:
        """Renew the leases of running jobs, and stop those that were cancelled or taken over."""
        while True:
            await asyncio.sleep(self._options.lease / 3)
            ids = list(self._running)
            if not ids:
                continue
            try:
                await self._stores.metadata.commit(RenewLeases(ids, self.owner, time.time() + self._options.lease))
                held = {job.id for job in await self._stores.metadata.jobs(JobFilter(ids=ids, owner=self.owner))}
            except StoreError:
                logger.exception("cannot renew leases; trying again")
                continue
            for job in set(ids) - held:
                self.stop(job)

    def stop(self, job: str) -> None:
        """Ask a running job's task to stop now; its record says already that it was cancelled, or taken over."""
        task = self._running.get(job)
        if task is not None:
            task.cancel()
