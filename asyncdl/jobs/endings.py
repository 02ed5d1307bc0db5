"""How an attempt of a job ends: each way is one commit, on the condition that the job is still this process's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import traceback
from typing import Any

from asyncdl.errors import (
    ComponentNotReadyError,
    ConflictError,
    LeaseLostError,
    QueueDeadlineError,
    StoreError,
    StoreUnavailableError,
)
from asyncdl.events.types import JobFailed, JobSucceeded
from asyncdl.jobs.dropping import Dropping
from asyncdl.jobs.pausing import Pauses
from asyncdl.jobs.work import Stores, Work
from asyncdl.metadata.changes import Change, FinishJob
from asyncdl.metadata.records import JobRecord, JobState
from asyncdl.together import PATIENCE, raise_if_cancelled

logger = logging.getLogger("asyncdl.jobs")

_CONCLUSIONS = 20
"""Tries to conclude a job; each that fails means that another got through."""
_LOOK_AGAIN = 0.02, 5.0
"""Seconds after which a job is looked at again that could not be done yet, at least and at most: a quarter of its age."""


class Endings:
    """Ends the attempts of one process.

    Parameters
    ----------
    owner
        Who holds the jobs' leases.
    backoff, lease
        As `RunnerOptions` has them.

    Attributes
    ----------
    under_way
        The jobs that are not to be stopped any more: the commit of their end says itself whether they still may.
    unsure
        Whether a claim, or a job's end, may have been committed or not: its answer was lost.
    """

    def __init__(
        self, stores: Stores, owner: str, backoff: float, lease: float, dropping: Dropping, pauses: Pauses
    ) -> None:
        self._stores = stores
        self._owner = owner
        self._backoff = backoff
        self._lease = lease
        self._dropping = dropping
        self._pauses = pauses
        self.under_way: set[str] = set()
        self.unsure = False

    def _now(self) -> float:
        return self._stores.metadata.clock.now()

    async def succeed(self, job: JobRecord, work: Work) -> None:
        """Conclude a job whose work is done."""
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
            FinishJob(job.id, self._owner, "succeeded", self._now()),
            event.change(job.first, job.last),
            *conclusion.changes,
        ]
        self.under_way.add(job.id)
        try:
            await self._dropping.drop(
                conclusion.retired, lambda tx, announced: self._commit(*changes, *announced, joining=tx)
            )
        except ConflictError:  # it is concluded again, and may be stopped before
            self.under_way.discard(job.id)
            raise

    async def postpone(self, job: JobRecord, error: StoreUnavailableError) -> None:
        """Give back a job that a store's outage stopped: that costs no attempt, however often it happens.

        The store that is away may be the one that must be told, so this waits for it, with growing pauses.
        """
        logger.warning("job %s waits for a store that is unavailable: %s", job.id, error)
        wait = self._backoff
        while True:
            now = self._now()
            text = str(error).replace("\0", "\\0")
            back = FinishJob(job.id, self._owner, "pending", now, error=text, not_before=now + wait, refund=True)
            try:
                await self._stores.metadata.commit(back)
            except StoreUnavailableError:
                raise_if_cancelled()
                await asyncio.sleep(wait * (1 + random.random() / 2))  # noqa: S311 - jitter
                wait = min(2 * wait, max(self._lease / 3, self._backoff))
            else:
                return

    async def put_off(self, job: JobRecord, error: ComponentNotReadyError) -> None:
        """Look again later at a job that cannot be done yet; what needs another component is held back before, mostly."""
        now, (least, most) = self._now(), _LOOK_AGAIN
        state: JobState = "upstream_failed" if error.failed else "pending"
        later = now + min(max((now - job.created) / 4, least), most)
        await self.end(job, FinishJob(job.id, self._owner, state, now, error=str(error), not_before=later, refund=True))

    async def fail(self, job: JobRecord, work: Work | None, error: Exception) -> None:
        """Leave a job to another attempt, or, after the last one and where there is no hope, have it failed."""
        text = "".join(traceback.format_exception(error)).replace("\0", "\\0")  # PostgreSQL's texts hold no NUL
        now = self._now()
        hopeless = isinstance(error, QueueDeadlineError) or (work is not None and work.gives_up_on(error))
        if job.attempts < job.max_attempts and not hopeless:
            wait = self._backoff * 2 ** (job.attempts - 1) * (1 + random.random() / 2)  # noqa: S311 - jitter
            logger.warning("job %s failed, attempt %d of %d: %s", job.id, job.attempts, job.max_attempts, error)
            await self.end(job, FinishJob(job.id, self._owner, "pending", now, error=text, not_before=now + wait))
            return
        logger.error("job %s failed for good after %d attempts", job.id, job.attempts, exc_info=error)
        named = await self._named(job)
        event = JobFailed(job=job.id, kind=job.kind, target=job.target, error=text, attempts=job.attempts, **named)
        changes: list[Change] = [
            FinishJob(job.id, self._owner, "failed", now, error=text),
            event.change(job.first, job.last),
        ]
        if work is not None:
            changes += await work.give_up()
        await self.end(job, *changes)

    async def _named(self, job: JobRecord) -> dict[str, Any]:
        """Return how events name a job's component: it is known, unless loading it is what failed."""
        try:
            return await self._stores.registry.named(job.target)
        except StoreError:
            return {}  # its uuid is there all the same

    async def give_back(self, job: JobRecord) -> None:
        """Put a job back into the queue, at no cost; a store that does not answer is not waited for, there is the lease."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.end(job, FinishJob(job.id, self._owner, "pending", self._now(), refund=True))
        except TimeoutError:
            self.unsure = True
            logger.warning("job %s could not be given back within %.0f s", job.id, PATIENCE)

    async def set_aside(self, job: JobRecord) -> None:
        """Put a job aside whose listener was paused, or back into the queue if that has been resumed meanwhile."""
        closed = await self._pauses.closed([job.target])
        if not closed or not await self._pauses.stopped(job, self._owner, closed[job.target]):
            await self.give_back(job)

    async def _commit(self, *changes: Change, joining: Any = None) -> bool:
        """Commit a job's end; return whether it was still ours to end."""
        with contextlib.suppress(LeaseLostError):
            await self._stores.metadata.commit(*changes, joining=joining)
            return True
        return False

    async def end(self, job: JobRecord, *changes: Change) -> None:
        """Commit a job's end, or leave it to the lease."""
        try:
            await self._commit(*changes)
        except ConflictError:
            raise
        except StoreError:
            # It is given back when the store is there again, or its lease runs out, and another attempt is made.
            self.unsure = True
            logger.exception("the end of job %s could not be recorded", job.id)
