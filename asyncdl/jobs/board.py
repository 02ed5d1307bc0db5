"""Jobs as users see them: ``db.jobs``."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

from asyncdl import codec
from asyncdl.databackend.tables import Key
from asyncdl.errors import ConflictError, JobError, JobNotFoundError
from asyncdl.events.types import JobCancelled
from asyncdl.jobs.planner import MATERIALIZE, TRAIN
from asyncdl.jobs.runner import Runner
from asyncdl.metadata.base import JobFilter, MetadataStore
from asyncdl.metadata.changes import Change, PrioritizeJobs, SetComponentStatus, SetJobState
from asyncdl.metadata.records import UNFINISHED, JobRecord, JobState

_RETRIABLE: tuple[JobState, ...] = ("failed", "cancelled", "upstream_failed")
_DEPENDENT: tuple[JobState, ...] = ("upstream_failed",)


@dataclass(frozen=True)
class Job(JobRecord):
    """A job, as it stood when it was asked for: a `JobRecord`, and what its payload says."""

    @classmethod
    def of(cls, record: JobRecord) -> Job:
        """Return a record as a job."""
        return cls(**{each.name: getattr(record, each.name) for each in fields(JobRecord)})

    @property
    def arguments(self) -> dict[str, Any]:
        """What its work is given."""
        found: dict[str, Any] = codec.loads(self.payload)
        return found

    @property
    def rows(self) -> Sequence[Key]:
        """The primary keys of the rows that it is about; empty: all, or a range of them, or none."""
        return [tuple(key) if isinstance(key, list) else key for key in self.arguments.get("ids", ())]


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
    ) -> list[Job]:
        """Return jobs, oldest first.

        Parameters
        ----------
        state
            A state, or several: pending, running, paused, succeeded, failed, cancelled, upstream_failed.
        target
            The uuid of the component that they work for.
        """
        states = (state,) if isinstance(state, str) else tuple(state)
        found = await self._metadata.jobs(JobFilter(states=states, kind=kind, target=target, limit=limit))
        return [Job.of(each) for each in found]

    async def get(self, job: str) -> Job:
        """Return a job: its state, attempts, the traceback of its last failure (``error``), the ``rows`` that it is about.

        Raises
        ------
        JobNotFoundError
        """
        found = await self._metadata.jobs(JobFilter(ids=[job]))
        if not found:
            raise JobNotFoundError(f"there is no job {job!r}")
        return Job.of(found[0])

    async def retry(self, job: str) -> None:
        """Have a job that failed or was cancelled run again, from no attempts, and what had failed because of it.

        Raises
        ------
        JobNotFoundError
        JobError
            It has not failed.
        """
        found = await self.get(job)
        await self._move(job, "pending", _RETRIABLE)
        dependent = JobFilter(states=_DEPENDENT, covers=found.last, limit=100_000)
        for each in await self._metadata.jobs(dependent):
            if codec.loads(each.payload).get("upstream") == job:
                with contextlib.suppress(JobError):  # another has been quicker
                    await self.retry(each.id)

    async def prioritize(self, job: str, priority: int) -> None:
        """Give a job that is still to be begun another priority than its listener's gives it.

        Raises
        ------
        JobNotFoundError
        JobError
            It has ended already.
        """
        found = await self.get(job)
        if found.state not in UNFINISHED:
            raise JobError(f"job {job} is {found.state}; only one that is still to end can get another priority")
        await self._metadata.commit(PrioritizeJobs({job: priority}))

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
        changes: list[Change] = [SetJobState(job, state, among, self._metadata.clock.now())]
        named: dict[str, Any] = {}
        for each in await self._metadata.components(uuids=[found.target]):
            named = {"type_id": each.type_id, "identifier": each.identifier}
        event = JobCancelled(job=job, kind=found.kind, target=found.target, **named).change(found.first, found.last)
        if state == "cancelled":
            changes += [event, *await _ended(self._metadata, found)]
        try:
            await self._metadata.commit(*changes)
        except ConflictError as error:
            now = (await self.get(job)).state
            raise JobError(f"job {job} is {now}; only one that is {' or '.join(among)} can become {state}") from error


async def _ended(metadata: MetadataStore, job: JobRecord) -> Sequence[Change]:
    """Return what a cancellation changes besides: what was to be trained, or kept, will not be."""
    if job.kind not in {TRAIN, MATERIALIZE}:
        return ()
    records = await metadata.components(uuids=[job.target])
    return [SetComponentStatus(each.uuid, "failed", "pending") for each in records if each.status == "pending"]
