"""Jobs as users see them: ``db.jobs``."""

from __future__ import annotations

import time
from collections.abc import Collection

from asyncdl.errors import ConflictError, JobError, JobNotFoundError
from asyncdl.events.types import JobCancelled
from asyncdl.jobs.runner import Runner
from asyncdl.metadata.base import UNFINISHED, JobFilter, JobRecord, JobState, MetadataStore, SetJobState

_RETRIABLE: tuple[JobState, ...] = ("failed", "cancelled", "upstream_failed")


class Jobs:
    """Lists jobs, retries and cancels them."""

    def __init__(self, metadata: MetadataStore, runner: Runner) -> None:
        self._metadata = metadata
        self._runner = runner

    async def list(
        self,
        *,
        state: JobState | Collection[JobState] = (),
        kind: str | None = None,
        target: str | None = None,
        limit: int = 1000,
    ) -> list[JobRecord]:
        """Return jobs, oldest first.

        Parameters
        ----------
        state
            A state, or several: pending, running, succeeded, failed, cancelled, upstream_failed.
        target
            The uuid of the component that they work for.
        """
        states = (state,) if isinstance(state, str) else tuple(state)
        return await self._metadata.jobs(JobFilter(states=states, kind=kind, target=target, limit=limit))

    async def get(self, job: str) -> JobRecord:
        """Return a job.

        Raises
        ------
        JobNotFoundError
        """
        found = await self._metadata.jobs(JobFilter(ids=[job]))
        if not found:
            raise JobNotFoundError(f"there is no job {job!r}")
        return found[0]

    async def retry(self, job: str) -> None:
        """Have a job that failed or was cancelled run again, from no attempts.

        Raises
        ------
        JobNotFoundError
        JobError
            It has not failed.
        """
        await self._move(job, "pending", _RETRIABLE)

    async def cancel(self, job: str) -> None:
        """Cancel a job: one that waits never starts; one that runs is stopped, and what it still returns is dropped.

        Raises
        ------
        JobNotFoundError
        JobError
            It has ended already.
        """
        await self._move(job, "cancelled", UNFINISHED)
        self._runner.stop(job)

    async def _move(self, job: str, state: JobState, among: tuple[JobState, ...]) -> None:
        found = await self.get(job)
        changes = [SetJobState(job, state, among, time.time())]
        event = JobCancelled(job=job, kind=found.kind, target=found.target).change(found.first, found.last)
        try:
            await self._metadata.commit(*changes, *([event] if state == "cancelled" else []))
        except ConflictError as error:
            now = (await self.get(job)).state
            raise JobError(f"job {job} is {now}; only one that is {' or '.join(among)} can become {state}") from error
