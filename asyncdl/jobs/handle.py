"""Handles: what `add` and writes return, to wait for the work that follows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from asyncdl.components.component import Component
from asyncdl.databackend.tables import Key
from asyncdl.errors import JobCancelledError, JobFailedError, JobTimeoutError
from asyncdl.jobs.completion import Completion
from asyncdl.metadata.base import JobFilter, MetadataStore
from asyncdl.together import end, give_up


class Progress(NamedTuple):
    """How far work has come: rows dealt with, rows in all (None while unknown), and what is being done."""

    done: int
    total: int | None
    stage: str


Show = Callable[["Handle"], Awaitable[None]]
"""Shows a handle's progress on a screen until it is cancelled."""


@dataclass(frozen=True, slots=True)
class Follow:
    """What a handle needs in order to follow its work."""

    metadata: MetadataStore
    completion: Completion
    show: Show | None = None


@dataclass(frozen=True, kw_only=True)
class Handle:
    """Work that follows from what was committed.

    The work does not depend on anybody waiting for it: dropping a handle, or cancelling a wait, changes nothing.

    Attributes
    ----------
    first, last
        The range in the event log of what was committed; (0, 0): nothing was.
    """

    first: int
    last: int
    follow: Follow = field(repr=False)

    async def wait(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - what users expect
        """Wait until all work that follows has been done, that of listeners on listeners too.

        Parameters
        ----------
        timeout
            Seconds; None: as long as it takes.

        Raises
        ------
        JobFailedError, JobCancelledError
            A job did not do its work; the message holds the traceback of its last attempt. Rows on which a model failed
            are no such failure: ``await db.errors(listener)`` lists them.
        JobTimeoutError
            Time is up; the work goes on.
        """
        if not self.last:
            return
        showing = None
        if self.follow.show is not None:
            showing = asyncio.create_task(_shown(self.follow.show, self), name="asyncdl: progress bar")
        try:
            async with asyncio.timeout(timeout):
                await self.follow.completion.wait(self.first, self.last)
        except TimeoutError as error:
            raise JobTimeoutError(f"the work was not done within {timeout} s; it goes on") from error
        finally:
            if showing is not None:
                await end([showing])
        await self._check()

    async def _check(self) -> None:
        bad = await self.follow.metadata.jobs(
            JobFilter(states=("failed", "upstream_failed", "cancelled"), covers=self.last, first=self.first)
        )
        for job in sorted(bad, key=lambda each: ("failed", "upstream_failed", "cancelled").index(each.state)):
            kind = JobCancelledError if job.state == "cancelled" else JobFailedError
            why = job.error or "by request"
            raise kind(f"job {job.id} ({job.kind}) is {job.state} after {job.attempts} attempts: {why}")

    async def progress(self) -> AsyncIterator[Progress]:
        """Yield how far the work has come, whenever that changes, until it has been done."""
        waiting = asyncio.ensure_future(self.wait_quietly())
        last: Progress | None = None
        seen = 0
        try:
            while not waiting.done():
                commit = asyncio.ensure_future(self.follow.metadata.wait_for_commits(seen))
                try:
                    await asyncio.wait({waiting, commit}, return_when=asyncio.FIRST_COMPLETED)
                    seen = commit.result() if commit.done() else seen
                finally:
                    give_up(commit)
                found = await self._progress()
                if found != last:
                    last = found
                    yield found
            await waiting
            found = await self._progress()
            if found != last:
                yield found
        finally:
            give_up(waiting)

    async def wait_quietly(self) -> None:
        """Wait without showing anything, and without regard to failures."""
        if self.last:
            await self.follow.completion.wait(self.first, self.last)

    async def _progress(self) -> Progress:
        jobs = await self.follow.metadata.jobs(JobFilter(covers=self.last, first=self.first)) if self.last else []
        done = sum(job.done for job in jobs)
        totals = [job.total for job in jobs]
        total = None if not jobs or None in totals else sum(each or 0 for each in totals)
        running = [job.stage for job in jobs if job.state == "running"]
        states = {job.state for job in jobs}
        stage = "waiting" if "pending" in states or not jobs else "paused" if "paused" in states else "done"
        stage = running[0] if running else stage
        return Progress(done, total, stage)


async def _shown(show: Show, handle: Handle) -> None:
    await show(handle)


@dataclass(frozen=True, kw_only=True)
class Added(Handle):
    """What `Datalayer.add` returns.

    Attributes
    ----------
    component
        The installed component, with its version and uuid; one that was there already, when it was equal.
    created
        Whether anything was installed.
    """

    component: Component
    created: bool


@dataclass(frozen=True, kw_only=True)
class Written(Handle):
    """What `Datalayer.execute` returns for a write.

    Attributes
    ----------
    ids
        The primary keys of the rows that were inserted, changed or deleted (tuples, where the key is composite).
    document
        On MongoDB, what ``find_one_and_update`` and its kin return.
    counts
        On MongoDB, what else the driver tells: ``matched_count``, ``upserted_ids``, ...
    """

    ids: list[Key]
    document: Any = None
    counts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)
