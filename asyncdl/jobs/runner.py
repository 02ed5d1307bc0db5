"""The runner: claims jobs, runs them, and sees that each ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from asyncdl import codec
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
from asyncdl.events.types import JobFailed, JobSucceeded
from asyncdl.jobs.dropping import Dropping
from asyncdl.jobs.kinds import work_of
from asyncdl.jobs.pausing import Pauses
from asyncdl.jobs.planner import BACKFILL, TRAIN
from asyncdl.jobs.shards import Shard
from asyncdl.jobs.work import InterruptedWork, Stores, Work
from asyncdl.metadata.base import Change, ClaimJob, FinishJob, JobFilter, JobRecord, JobState, RenewLeases

logger = logging.getLogger("asyncdl.jobs")


_CONCLUSIONS = 20
"""Tries to conclude a job; each that fails means that another got through."""
_LOOK_AGAIN = 5.0
"""Seconds after which a job is looked at again whose needs were not ready."""
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
        Jobs at once in this process.
    lease
        Seconds after which the jobs of a process that gave no sign of life are taken over.
    backoff
        Seconds before the second attempt, doubled for each further one, with up to half of it added by chance.
    timeout
        Seconds that one attempt may take.
    deadline
        Seconds that a job may wait for its first attempt.
    """

    concurrency: int = 8
    lease: float = 30.0
    backoff: float = 1.0
    timeout: float | None = None
    deadline: float | None = None


class Runner:
    """Runs jobs in this process, each in a task of its own."""

    def __init__(self, stores: Stores, options: RunnerOptions, dropping: Dropping, pauses: Pauses) -> None:
        self._stores = stores
        self._pauses = pauses
        self._dropping = dropping
        self._options = options
        self.owner = uuid.uuid4().hex
        self._running: dict[str, asyncio.Task[None]] = {}
        self._works: dict[str, Work] = {}
        self._claiming = asyncio.Lock()
        """Held from before a claim is committed until the job is among those that run: a stop in between would miss it."""
        self._claims, self._fair = 0, 0.0
        self._parts: dict[str, str | None] = {}
        """The running jobs, with the backfill of which they are shards."""
        self._ending: set[str] = set()
        """The running jobs that are not to be stopped any more: the commit of their end says itself whether they still may."""
        self._unsure = False
        """Whether a claim, or a job's end, may have been committed or not: its answer was lost."""
        self._trainings: set[str] = set()
        self._room = asyncio.Event()
        self._draining = False
        self._drained = asyncio.Event()

    async def run(self) -> None:
        """Claim and run jobs until cancelled; then jobs under way go back to the queue, without costing an attempt."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_leases(), name="asyncdl: leases")
            seen = 0
            while True:
                self._room.clear()
                try:
                    await self._give_back_strays()
                    now = self._now()  # one for both: what becomes due between two looks would be seen by neither
                    claimed = await self._claim(group, now)
                    if not claimed:
                        seen = await self._wait(seen, await self._stores.metadata.next_due(now))
                except StoreError:
                    logger.exception("cannot claim jobs; trying again")
                    self._unsure = True
                    await asyncio.sleep(self._options.backoff)

    async def _give_back_strays(self) -> None:
        """Give back what is ours by its record alone, instead of leaving it to the lease."""
        if self._unsure:
            self._unsure = False
            mine = JobFilter(owner=self.owner, states=["running"])
            for job in await self._stores.metadata.jobs(mine):
                if job.id not in self._running:
                    await self._give_back(job)

    async def _wait(self, seen: int, due: float | None) -> int:
        """Wait for a commit, for a job to end, or for the time at which a job becomes due."""
        timeout = None if due is None else max(due - self._now(), 0.01)
        commit = asyncio.ensure_future(self._stores.metadata.wait_for_commits(seen, "work"))
        room = asyncio.ensure_future(self._room.wait())
        try:
            await asyncio.wait({commit, room}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            return commit.result() if commit.done() else seen
        finally:
            commit.cancel()
            room.cancel()

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
            found = await self._stores.metadata.claimable(now, limit=limit)
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
        while chosen := self._choose(rest, free - claimed):
            async with self._claiming:
                mine = await self._claim_all(chosen, group, now)
            claimed += len(mine)
            # Of the others another process was first, or their listener is paused.
            missed = {job.target for job in chosen if job.id not in mine}
            closed = await self._pauses.closed(missed) if missed else {}
            for target, stands in closed.items():
                paused = [job for job in jobs if job.target == target and job.id not in self._running]
                await self._pauses.put_aside(paused, stands, self.owner)
            rest = [job for job in rest if job not in chosen and job.target not in closed]
        return claimed

    def _choose(self, jobs: Sequence[JobRecord], free: int) -> list[JobRecord]:
        """Return the first jobs that may run here beside each other, and beside those that do."""
        chosen: list[JobRecord] = []
        for job in jobs:
            if len(chosen) == free:
                break
            if job.id not in self._running and self._may_run(job, chosen):
                chosen.append(job)
        return chosen

    async def _claim_all(self, jobs: Sequence[JobRecord], group: asyncio.TaskGroup, now: float) -> set[str]:
        until = now + self._options.lease
        claims = [
            ClaimJob(job.id, self.owner, now, until, job.attempts, await self._pauses.gate(job.target)) for job in jobs
        ]
        begun = await self._stores.metadata.claim(*claims)
        for job in jobs:
            if job.id in begun:
                self._begin(job, group, now, until)
        return begun

    def _begin(self, job: JobRecord, group: asyncio.TaskGroup, now: float, until: float) -> None:
        mine = replace(job, state="running", owner=self.owner, lease=until, attempts=job.attempts + 1, started=now)
        self._running[job.id] = group.create_task(self._attempt(mine), name=f"asyncdl: job {job.id}")
        self._parts[job.id] = _part(job)
        if job.kind == TRAIN:
            self._trainings.add(job.id)
        self._claims += 1

    def _may_run(self, job: JobRecord, chosen: Sequence[JobRecord]) -> bool:
        """Return whether a job may run here: of a backfill in shards one at a time, so that other processes get theirs."""
        if job.kind == TRAIN:
            trainings = len(self._trainings & self._running.keys()) + sum(each.kind == TRAIN for each in chosen)
            if trainings >= max(1, self._options.concurrency // 2):
                return False  # they take long, and others have work to do as well
        part = _part(job)
        return part is None or part not in {*self._parts.values(), *map(_part, chosen)}

    async def _attempt(self, job: JobRecord) -> None:
        """Run one attempt of a job to its end, whatever happens in it."""
        work: Work | None = None
        try:
            work = work_of(self._stores, job, self.owner)
            self._works[job.id] = work
            if job.attempts > job.max_attempts:
                raise RuntimeError(f"the processes that ran this job died, {job.attempts - 1} times")
            try:
                await self._in_time(job, work)
                await self._succeed(job, work)
            except StoreUnavailableError as error:
                await self._postpone(job, error)
            except ComponentNotReadyError as error:
                await self._put_off(job, error)
        except InterruptedWork:
            await self._set_aside(job)
        except LeaseLostError:
            logger.info("job %s is no longer ours: cancelled, or taken over", job.id)
        except ComponentNotFoundError as error:
            await self._end(job, FinishJob(job.id, self.owner, "cancelled", self._now(), error=str(error)))
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(job))
            raise
        except Exception as error:
            await self._fail(job, work, error)
        finally:
            self._running.pop(job.id, None)
            self._works.pop(job.id, None)
            self._parts.pop(job.id, None)
            self._ending.discard(job.id)
            self._trainings.discard(job.id)
            self._room.set()
            self._drained.set()

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

    async def _succeed(self, job: JobRecord, work: Work) -> None:
        for _ in range(_CONCLUSIONS):
            try:
                await self._conclude(job, work)
            except ConflictError as error:  # what it concluded from was changed meanwhile: it is concluded again
                conflict = error
            else:
                return
        raise conflict

    async def _conclude(self, job: JobRecord, work: Work) -> None:
        named = await self._named(job)
        event = JobSucceeded(job=job.id, kind=job.kind, target=job.target, done=work.done, **named)
        conclusion = await work.conclude()
        changes: list[Change] = [
            FinishJob(job.id, self.owner, "succeeded", self._now()),
            event.change(job.first, job.last),
            *conclusion.changes,
        ]
        self._ending.add(job.id)
        try:
            await self._dropping.drop(conclusion.retired, lambda tx: self._commit(*changes, joining=tx))
        except ConflictError:  # it is concluded again, and may be stopped before
            self._ending.discard(job.id)
            raise

    async def _postpone(self, job: JobRecord, error: StoreUnavailableError) -> None:
        """Give back a job that a store's outage stopped: that costs no attempt, however often it happens.

        The store that is away may be the one that must be told, so this waits for it, with growing pauses.
        """
        logger.warning("job %s waits for a store that is unavailable: %s", job.id, error)
        wait = self._options.backoff
        while True:
            now = self._now()
            text = str(error).replace("\0", "\\0")
            back = FinishJob(job.id, self.owner, "pending", now, error=text, not_before=now + wait, refund=True)
            try:
                await self._stores.metadata.commit(back)
            except StoreUnavailableError:
                await asyncio.sleep(wait * (1 + random.random() / 2))  # noqa: S311 - jitter
                wait = min(2 * wait, max(self._options.lease / 3, self._options.backoff))
            else:
                return

    async def _put_off(self, job: JobRecord, error: ComponentNotReadyError) -> None:
        """Look again later at a job that needs what is not ready; such ones are held back before they get here, mostly."""
        now = self._now()
        state: JobState = "upstream_failed" if error.failed else "pending"
        await self._end(
            job,
            FinishJob(job.id, self.owner, state, now, error=str(error), not_before=now + _LOOK_AGAIN, refund=True),
        )

    async def _fail(self, job: JobRecord, work: Work | None, error: Exception) -> None:
        text = "".join(traceback.format_exception(error)).replace("\0", "\\0")  # PostgreSQL's texts hold no NUL
        now = self._now()
        hopeless = isinstance(error, QueueDeadlineError) or (work is not None and work.gives_up_on(error))
        if job.attempts < job.max_attempts and not hopeless:
            wait = self._options.backoff * 2 ** (job.attempts - 1) * (1 + random.random() / 2)  # noqa: S311 - jitter
            logger.warning("job %s failed, attempt %d of %d: %s", job.id, job.attempts, job.max_attempts, error)
            await self._end(job, FinishJob(job.id, self.owner, "pending", now, error=text, not_before=now + wait))
            return
        logger.error("job %s failed for good after %d attempts", job.id, job.attempts, exc_info=error)
        named = await self._named(job)
        event = JobFailed(job=job.id, kind=job.kind, target=job.target, error=text, attempts=job.attempts, **named)
        changes: list[Change] = [
            FinishJob(job.id, self.owner, "failed", now, error=text),
            event.change(job.first, job.last),
        ]
        if work is not None:
            changes += await work.give_up()
        await self._end(job, *changes)

    async def _named(self, job: JobRecord) -> dict[str, Any]:
        """Return how events name a job's component: it is known, unless loading it is what failed."""
        try:
            return await self._stores.registry.named(job.target)
        except StoreError:
            return {}  # its uuid is there all the same

    async def _give_back(self, job: JobRecord) -> None:
        await self._end(job, FinishJob(job.id, self.owner, "pending", self._now(), refund=True))

    async def _set_aside(self, job: JobRecord) -> None:
        """Put a job aside whose listener was paused, or back into the queue if that has been resumed meanwhile."""
        closed = await self._pauses.closed([job.target])
        if not closed or not await self._pauses.stopped(job, self.owner, closed[job.target]):
            await self._give_back(job)

    async def _commit(self, *changes: Change, joining: Any = None) -> bool:
        """Commit a job's end; return whether it was still ours to end."""
        with contextlib.suppress(LeaseLostError):
            await self._stores.metadata.commit(*changes, joining=joining)
            return True
        return False

    async def _end(self, job: JobRecord, *changes: Change) -> None:
        """Commit a job's end, or leave it to the lease."""
        try:
            await self._commit(*changes)
        except ConflictError:
            raise
        except StoreError:
            # It is given back when the store is there again, or its lease runs out, and another attempt is made.
            self._unsure = True
            logger.exception("the end of job %s could not be recorded", job.id)

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
                logger.exception("cannot renew leases; trying again")
                await asyncio.sleep(self._options.lease / 10)
                renew = 0.0
                continue
            for job in set(ids) - held:
                self.stop(job)

    async def _pause(self, ids: list[str]) -> None:
        """Have those jobs stop soon whose listeners are paused."""
        works = [self._works[job] for job in ids if job in self._works]
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
            for work in filter(None, map(self._works.get, ids)):
                work.lease.until = until

    def stop(self, job: str) -> None:
        """Ask a running job's task to stop now; its record says already that it was cancelled, or taken over."""
        task = self._running.get(job)
        if task is not None and job not in self._ending:
            task.cancel()


def _part(job: JobRecord) -> str | None:
    shard = Shard.of_job(codec.loads(job.payload)) if job.kind == BACKFILL else None
    return None if shard is None else shard.of
