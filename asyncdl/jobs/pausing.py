"""Pausing and resuming listeners.

A cursor is a listener's gate: below 0 it is closed, and no job of the listener can be claimed: that is a condition of the
claim itself, so it holds from the commit that closes it on, in whatever process. Jobs whose gate is closed are put aside, as
``paused``, by who pauses and by each worker that meets one; they are nobody's work until the gate is open again. Each
closing and each opening moves the cursor further away from 0: so what is decided for one of them never takes effect in
another.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from asyncdl.components.cursors import gate_of
from asyncdl.errors import ConflictError
from asyncdl.events.types import ListenerPaused, ListenerResumed
from asyncdl.metadata.base import JobFilter, MetadataStore
from asyncdl.metadata.changes import Change, ClaimJob, FinishJob, LinkArtifacts, MoveCursor, SetJobState
from asyncdl.metadata.records import ComponentRecord, JobRecord

_PAGE = 500
_ATTEMPTS = 20
"""Commits tried before a conflict with others is given up on; each means that another one got through."""


class Pauses:
    """Closes gates and opens them; puts jobs aside, and back into the queue."""

    def __init__(self, metadata: MetadataStore) -> None:
        self._metadata = metadata
        self._gates: dict[str, str | None] = {}

    async def gate(self, target: str) -> str | None:
        """Return the gate of the jobs that work for a component; None: they have none."""
        if target not in self._gates:
            records = await self._metadata.components(uuids=[target])
            if not records:
                return None
            listener = records[0].type_id == "listener"
            self._gates[target] = gate_of(records[0].identifier) if listener else None
        return self._gates[target]

    async def closed(self, targets: Collection[str]) -> dict[str, int]:
        """Return those of some components whose gates are closed, with where they stand."""
        cursors = await self._metadata.cursors()
        found = {}
        for target in set(targets):
            stands = cursors.get(await self.gate(target) or "", 0)
            if stands < 0:
                found[target] = stands
        return found

    async def pause(self, record: ComponentRecord) -> None:
        """Close a listener's gate, and put its jobs aside that wait; those that run put themselves aside."""
        gate = gate_of(record.identifier)
        for _ in range(_ATTEMPTS):
            stands = await self._metadata.cursor(gate) or 0
            if stands < 0:
                break
            paused = ListenerPaused(**record.identity).change()
            try:
                # linking nothing: on condition that it is installed
                await self._metadata.commit(
                    LinkArtifacts(record.uuid), MoveCursor(gate, -stands - 1, expected=stands), paused
                )
            except ConflictError as error:
                conflict = error
                continue
            break
        else:
            raise conflict
        for each in await self._versions(record.identifier):
            await self._put_aside(each)

    async def _versions(self, identifier: str) -> list[str]:
        return [each.uuid for each in await self._metadata.components(type_id="listener", identifier=identifier)]

    async def _put_aside(self, target: str) -> None:
        while jobs := await self._metadata.jobs(JobFilter(states=["pending"], target=target, limit=_PAGE)):
            closed = await self.closed([target])
            if target not in closed:
                return  # resumed meanwhile
            await self.put_aside(jobs, closed[target], "")

    async def put_aside(self, jobs: Sequence[JobRecord], stands: int, owner: str) -> None:
        """Put jobs aside that nobody runs, all for listeners of one gate, which stands where it did; others' conflicts win."""
        gate = await self.gate(jobs[0].target)
        if gate is None:
            return
        now = self._metadata.clock.now()
        changes: list[Change] = [MoveCursor(gate, stands, expected=stands)]
        for job in jobs:
            if job.state == "pending":
                changes.append(SetJobState(job.id, "paused", ("pending",), now, job.error))
            else:  # of a process that died: it is taken over, and put aside
                changes.append(ClaimJob(job.id, owner, now, now, job.attempts))
                changes.append(FinishJob(job.id, owner, "paused", now, job.error, refund=True))
        try:
            await self._metadata.commit(*changes)
        except ConflictError:
            return  # one was claimed, or put aside by another process, or the gate is open: whoever looks again sees

    async def stopped(self, job: JobRecord, owner: str, closed: int) -> bool:
        """Put a running job aside that has stopped for its gate; return False if that is open again."""
        gate = await self.gate(job.target)
        if gate is None:
            return False
        aside = FinishJob(job.id, owner, "paused", self._metadata.clock.now(), refund=True)
        try:
            await self._metadata.commit(MoveCursor(gate, closed, expected=closed), aside)
        except ConflictError:
            return False
        return True

    async def resume(self, record: ComponentRecord) -> None:
        """Open a listener's gate, and put its jobs back into the queue."""
        gate = gate_of(record.identifier)
        for _ in range(_ATTEMPTS):
            stands = await self._metadata.cursor(gate) or 0
            if stands >= 0:
                break
            resumed = ListenerResumed(**record.identity).change()
            try:
                await self._metadata.commit(
                    LinkArtifacts(record.uuid), MoveCursor(gate, -stands + 1, expected=stands), resumed
                )
            except ConflictError as error:
                conflict = error
                continue
            break
        else:
            raise conflict
        for each in await self._versions(record.identifier):
            await self._put_back(each)

    async def _put_back(self, target: str) -> None:
        gate = await self.gate(target)
        where = JobFilter(states=["paused"], target=target, limit=_PAGE)
        while gate is not None and (jobs := await self._metadata.jobs(where)):
            stands = await self._metadata.cursor(gate) or 0
            if stands < 0:
                return  # paused again
            back = [SetJobState(job.id, "pending", ("paused",), self._metadata.clock.now(), job.error) for job in jobs]
            try:
                await self._metadata.commit(MoveCursor(gate, stands, expected=stands), *back)
            except ConflictError:
                continue

    async def recover(self) -> None:
        """Put jobs back into the queue that a process left aside which died while it resumed their listener."""
        paused = {job.target for job in await self._metadata.jobs(JobFilter(states=["paused"], limit=10 * _PAGE))}
        for target in paused - set(await self.closed(paused)) if paused else ():
            await self._put_back(target)
