"""The runner: claims jobs, runs them, and sees that each ends."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from asyncdl.errors import (
    ComponentNotFoundError,
    ComponentNotReadyError,
    ConflictError,
    JobTimeoutError,
    LeaseLostError,
    QueueDeadlineError,
    StoreError,
    StoreUnavailableError,
)
from asyncdl.jobs.dropping import Dropping
from asyncdl.jobs.endings import Endings
from asyncdl.jobs.kinds import work_of
from asyncdl.jobs.pausing import Pauses
from asyncdl.jobs.planner import REFRESH
from asyncdl.jobs.room import Size, full, may_run, size_of
from asyncdl.jobs.work import InterruptedWork, Stores, Work
from asyncdl.metadata.base import JobFilter
from asyncdl.metadata.changes import Change, ClaimJob, FinishJob, RenewLeases
from asyncdl.metadata.records import JobRecord
from asyncdl.together import finished, give_up, raise_if_cancelled

logger = logging.getLogger("asyncdl.jobs")


_MOST_CLAIMABLE = 4096
"""Jobs looked through, at most, for those that this process may run."""
_UNFAIR = 7
"""Claims by priority, after which one is by age."""
_OLDEST = 8
"""Jobs looked through then, for each that may run at once: of trainings, and of a backfill's shards, not all may run here."""
_FAIR_EVERY = 1.0
"""Seconds, at least, from one that is by age to the next: with a deep queue such a look takes a while."""


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How jobs are run.

    Parameters
    ----------
    concurrency
        Jobs at once in this process; of long ones eight, at most.
    lease
        Seconds after which the jobs of a process that gave no sign of life are taken over.
    backoff
        Seconds before the second attempt, doubled for each further one, with up to half of it added by chance.
    timeout
        Seconds that one attempt may take.
    deadline
        Seconds that a job may wait for its first attempt.
    """

    concurrency: int = 64
    lease: float = 30.0
    backoff: float = 1.0
    timeout: float | None = None
    deadline: float | None = None


@dataclass(slots=True)
class _Running:
    """A job that runs in this process, and what works on it, once that is made."""

    size: Size
    task: asyncio.Task[None]
    work: Work | None = None


class Runner:
    """Runs jobs in this process, each in a task of its own."""

    def __init__(self, stores: Stores, options: RunnerOptions, dropping: Dropping, pauses: Pauses) -> None:
        self._stores = stores
        self._pauses = pauses
        self._options = options
        self.owner = uuid.uuid4().hex
        self._endings = Endings(stores, self.owner, options.backoff, options.lease, dropping, pauses)
        self._running: dict[str, _Running] = {}
        self._claiming = asyncio.Lock()
        """Held from before a claim is committed until the job is among those that run: a stop in between would miss it."""
        self._claims, self._fair = 0, 0.0
        self._shut: set[str] = set()
        """The targets whose jobs could not be taken, as they are paused: they are claimed as others are."""
        self._group: asyncio.TaskGroup | None = None
        self._waits = False
        """Whether there was nothing to claim."""
        self._room = asyncio.Event()
        self._draining = False
        self._drained = asyncio.Event()

    async def run(self) -> None:
        """Claim and run jobs until cancelled; then jobs under way go back to the queue, without costing an attempt."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_leases(), name="asyncdl: leases")
            self._group = group
            try:
                await self._claim_always(group)
            finally:
                self._group = None

    async def _claim_always(self, group: asyncio.TaskGroup) -> None:
        seen = 0
        while True:
            self._room.clear()
            try:
                await self._give_back_strays()
                now = self._now()  # one for both: what becomes due between two looks would be seen by neither
                claimed = await self._claim(group, now)
                if not claimed:
                    due = await self._stores.metadata.next_due(now)
                    self._waits = True
                    seen = await self._wait(seen, due)
            except StoreError:
                raise_if_cancelled()
                logger.exception("cannot claim jobs; trying again")
                self._endings.unsure = True
                await asyncio.sleep(self._options.backoff)
            finally:
                self._waits = False

    async def _give_back_strays(self) -> None:
        """Give back what is ours by its record alone, instead of leaving it to the lease."""
        if self._endings.unsure:
            self._endings.unsure = False
            mine = JobFilter(owner=self.owner, states=["running"])
            for job in await self._stores.metadata.jobs(mine):
                if job.id not in self._running:
                    await self._endings.give_back(job)

    async def _wait(self, seen: int, due: float | None) -> int:
        """Wait for a commit, for a job to end, or for the time at which a job becomes due."""
        timeout = None if due is None else max(due - self._now(), 0.01)
        commit = asyncio.ensure_future(self._stores.metadata.wait_for_commits(seen, "work"))
        room = asyncio.ensure_future(self._room.wait())
        try:
            await asyncio.wait({commit, room}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            return commit.result() if commit.done() else seen
        finally:
            give_up(commit)
            give_up(room)

    def _now(self) -> float:
        return self._stores.metadata.clock.now()

    async def drain(self) -> None:
        """Claim no more jobs, and wait until those that run have ended."""
        self._draining = True
        self._drained.clear()
        while self._running:
            await self._drained.wait()
            self._drained.clear()

    async def _claim(self, group: asyncio.TaskGroup, now: float) -> int:
        free = 0 if self._draining else self._options.concurrency - len(self._running)
        if free <= 0:
            return 0
        claimed = await self._claim_oldest(group, now)
        looked, limit = 0, free + len(self._running)
        while claimed < free and looked < limit <= _MOST_CLAIMABLE:
            found = await self._stores.metadata.claimable(
                now, limit=limit, besides=full(self._sizes(), self._options.concurrency)
            )
            claimed += await self._claim_among(found, group, now, free - claimed)
            # Fewer than asked for: these were all. Otherwise there may be others behind those that were passed over.
            looked, limit = (limit, 0) if len(found) < limit else (limit, limit * 4)
        return claimed

    async def _claim_oldest(self, group: asyncio.TaskGroup, now: float) -> int:
        """Now and then, claim the job that has waited longest, whatever its priority: so that each one's turn comes."""
        if self._claims < _UNFAIR or time.monotonic() < self._fair:
            return 0
        self._claims, self._fair = 0, time.monotonic() + _FAIR_EVERY
        limit = _OLDEST * self._options.concurrency
        oldest = await self._stores.metadata.jobs(JobFilter(states=["pending"], due=now, limit=limit))
        return await self._claim_among(oldest, group, now, 1)

    async def _claim_among(self, jobs: Sequence[JobRecord], group: asyncio.TaskGroup, now: float, free: int) -> int:
        claimed, rest = 0, list(jobs)
        while True:
            async with self._claiming:
                room = self._options.concurrency - len(self._running)  # one may have been taken meanwhile
                chosen = self._choose(rest, max(min(free - claimed, room), 0))
                if not chosen:
                    return claimed
                mine = await self._claim_all(chosen, group, now)
            claimed += len(mine)
            # Of the others another process was first, or their listener is paused.
            missed = {job.target for job in chosen if job.id not in mine}
            closed = await self._pauses.closed(missed) if missed else {}
            for target, stands in closed.items():
                paused = [job for job in jobs if job.target == target and job.id not in self._running]
                await self._pauses.put_aside(paused, stands, self.owner)
            rest = [job for job in rest if job not in chosen and job.target not in closed]

    def _sizes(self) -> list[Size]:
        return [each.size for each in self._running.values()]

    def _choose(self, jobs: Sequence[JobRecord], free: int) -> list[JobRecord]:
        """Return the first jobs that may run here beside each other, and beside those that do."""
        chosen: list[JobRecord] = []
        beside = self._sizes()
        for job in jobs:
            if len(chosen) == free:
                break
            if job.id not in self._running and may_run(size := size_of(job), beside, self._options.concurrency):
                chosen.append(job)
                beside.append(size)
        return chosen

    async def _claim_all(self, jobs: Sequence[JobRecord], group: asyncio.TaskGroup, now: float) -> set[str]:
        claims = [await self._claim_of(job, now) for job in jobs]
        begun = await self._stores.metadata.claim(*claims)
        for job in jobs:
            if job.id in begun:
                self._begin(job, group, now, now + self._options.lease)
        return begun

    async def _claim_of(self, job: JobRecord, now: float) -> ClaimJob:
        gate = await self._pauses.gate(job.target)
        return ClaimJob(job.id, self.owner, now, now + self._options.lease, job.attempts, gate)

    def _begin(self, job: JobRecord, group: asyncio.TaskGroup, now: float, until: float) -> None:
        mine = replace(job, state="running", owner=self.owner, lease=until, attempts=job.attempts + 1, started=now)
        task = group.create_task(self._attempt(mine), name=f"asyncdl: job {job.id}")
        self._running[job.id] = _Running(size_of(job), task)
        self._shut.discard(job.target)
        self._claims += 1

    @asynccontextmanager
    async def taking(self, jobs: Sequence[JobRecord]) -> AsyncIterator[Sequence[Change]]:
        """Give what claims one of the jobs that a commit in this block makes, if this process is idle; it begins after it.

        The others are left to be claimed by whichever process is first: so each gets its share.
        """
        now = self._now()
        job = max((each for each in jobs if self._takes(each, now)), key=lambda each: each.priority, default=None)
        if job is None or not self._waits or self._running or self._draining or self._claiming.locked():
            yield ()
            return
        async with self._claiming:
            claim = await self._claim_of(job, now)
            try:
                yield [claim]
            except ConflictError:
                self._shut |= set(await self._pauses.closed([job.target]))
                raise
            except StoreError:
                self._endings.unsure = True
                raise
            except asyncio.CancelledError:  # it may have been committed
                await finished(self._endings.give_back(job))
                raise
            if self._group is None:
                await self._endings.give_back(job)
            else:
                self._begin(job, self._group, now, claim.lease)

    def _takes(self, job: JobRecord, now: float) -> bool:
        """Return whether a job may be taken: one of few rows, that somebody waits for.

        Backfills are claimed in the order in which they were planned, without a start of one over those that read its outputs:
        these would be computed twice.
        """
        due = job.state == "pending" and job.not_before <= now
        return due and job.kind == REFRESH and job.target not in self._shut

    async def _attempt(self, job: JobRecord) -> None:
        """Run one attempt of a job to its end, whatever happens in it."""
        work: Work | None = None
        try:
            work = work_of(self._stores, job, self.owner)
            self._running[job.id].work = work
            if job.attempts > job.max_attempts:
                raise RuntimeError(f"the processes that ran this job died, {job.attempts - 1} times")
            try:
                await self._do(job, work)
            except StoreUnavailableError as error:
                await self._endings.postpone(job, error)
            except ComponentNotReadyError as error:
                await self._endings.put_off(job, error)
        except InterruptedWork:
            await self._endings.set_aside(job)
        except LeaseLostError:
            logger.info("job %s is no longer ours: cancelled, or taken over", job.id)
        except ComponentNotFoundError as error:
            await self._endings.end(job, FinishJob(job.id, self.owner, "cancelled", self._now(), error=str(error)))
        except asyncio.CancelledError:
            await finished(self._endings.give_back(job))
            raise
        except Exception as error:
            await self._endings.fail(job, work, error)
        finally:
            self._running.pop(job.id, None)
            self._endings.under_way.discard(job.id)
            self._room.set()
            self._drained.set()

    async def _do(self, job: JobRecord, work: Work) -> None:
        """Do a job's work, and conclude it."""
        try:
            await self._in_time(job, work)
            await self._endings.succeed(job, work)
        except Exception:
            raise_if_cancelled()
            raise

    async def _in_time(self, job: JobRecord, work: Work) -> None:
        waited = (job.started or 0.0) - max(job.created, job.not_before)
        if self._options.deadline is not None and job.attempts == 1 and waited > self._options.deadline:
            raise QueueDeadlineError(f"no worker began with job {job.id} within {self._options.deadline:g} s")
        try:
            async with asyncio.timeout(self._options.timeout) as limit:
                await work.run()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise JobTimeoutError(f"this attempt was not done within {self._options.timeout:g} s") from error

    async def _keep_leases(self) -> None:
        """Renew the leases of running jobs, and stop those that were cancelled or taken over."""
        seen, renew = 0, 0.0
        while True:
            try:
                seen = await self._stopping(seen, renew - self._now())
                async with self._claiming:
                    ids = list(self._running)
                await self._pause(ids)
                if self._now() >= renew:
                    await self._stores.metadata.clock.set()
                    renew = self._now() + self._options.lease / 3
                    await self._renew(ids)
                held = await self._held(ids)
            except StoreError:
                raise_if_cancelled()
                logger.exception("cannot renew leases; trying again")
                await asyncio.sleep(self._options.lease / 10)
                renew = 0.0
                continue
            for job in set(ids) - held:
                self.stop(job)

    async def _pause(self, ids: list[str]) -> None:
        """Have those jobs stop soon whose listeners are paused."""
        works = self._works(ids)
        closed = await self._pauses.closed([work.target for work in works]) if works else {}
        for work in works:
            if work.target in closed:
                work.pause()

    async def _stopping(self, seen: int, seconds: float) -> int:
        """Wait until a job may have been stopped by another process, or for so many seconds."""
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                return await self._stores.metadata.wait_for_commits(seen, "stops")
        except TimeoutError:
            return seen

    async def _held(self, ids: list[str]) -> set[str]:
        found = await self._stores.metadata.jobs(JobFilter(ids=ids, owner=self.owner, limit=len(ids))) if ids else []
        return {job.id for job in found}

    async def _renew(self, ids: list[str]) -> None:
        if ids:
            until = self._now() + self._options.lease
            await self._stores.metadata.commit(RenewLeases(ids, self.owner, until))
            for work in self._works(ids):
                work.lease.until = until

    def _works(self, ids: Sequence[str]) -> list[Work]:
        running = filter(None, map(self._running.get, ids))
        return [each.work for each in running if each.work is not None]

    def stop(self, job: str) -> None:
        """Ask a running job's task to stop now; its record says already that it was cancelled, or taken over."""
        found = self._running.get(job)
        if found is not None and job not in self._endings.under_way:
            found.task.cancel()
