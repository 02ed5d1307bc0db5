"""Writing a listener's outputs: each batch's with the job's progress and the event about them.

They are one commit, where the databackend shares one with the metadata store; otherwise the outputs land first, and a crash
between them only repeats the batch.

An output is stamped with the position in the event log as of which its row was read, and never overwrites one with a
larger stamp. A row that was changed or deleted after it was read, and before its output was written, is looked at again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from asyncdl.components.listener import Listener
from asyncdl.components.registry import ListenerState, with_datatype
from asyncdl.databackend.tables import Key, Outputs, OutputTable
from asyncdl.datatypes import infer
from asyncdl.errors import (
    AsyncDLError,
    ComponentNotFoundError,
    ConflictError,
    DatatypeError,
    DuplicateKeyError,
    LeaseLostError,
)
from asyncdl.events.types import OutputsWritten, RowsDeleted, RowsUpdated
from asyncdl.jobs.batching import ReadAhead
from asyncdl.jobs.dropping import announce_dropping
from asyncdl.jobs.planner import REFRESH
from asyncdl.jobs.reading import Batch
from asyncdl.jobs.shaping import Shape
from asyncdl.jobs.work import Lease, Stores
from asyncdl.metadata.base import JobFilter
from asyncdl.metadata.changes import AdvanceJob, Change, SetComponentState
from asyncdl.metadata.records import ComponentRecord, JobRecord


class RetiredError(Exception):
    """A newer version has taken over."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt of a job: who makes it, and what is known of its lease."""

    job: JobRecord
    owner: str
    lease: Lease

    async def record(self, stores: Stores) -> ComponentRecord:
        """Return the record of the listener that it works for; raises as `needed` does."""
        return self.needed(await stores.metadata.components(uuids=[self.job.target]))

    def needed(self, records: Sequence[ComponentRecord]) -> ComponentRecord:
        """Return the listener's record among these.

        Raises
        ------
        ComponentNotFoundError
            It has been removed.
        RetiredError
            A newer version has taken over from it.
        """
        own = [each for each in records if each.uuid == self.job.target]
        if not own:
            raise ComponentNotFoundError(f"the listener of job {self.job.id} has been removed")
        if own[0].status == "retired":
            raise RetiredError
        return own[0]


@dataclass
class Progress:
    """How many units have been dealt with, and of how many, as far as it is known."""

    done: int = 0
    total: int | None = None


class Writer:
    """Writes the outputs of an attempt of a job for a listener.

    Parameters
    ----------
    outputs
        Those that the listener's select goes through, by listener.
    """

    def __init__(
        self,
        stores: Stores,
        attempt: Attempt,
        progress: Progress,
        record: ComponentRecord,
        listener: Listener,
        outputs: Mapping[str, OutputTable],
        shape: Shape,
        ahead: ReadAhead,
    ) -> None:
        self._stores = stores
        self._attempt = attempt
        self._progress = progress
        self._record = record
        self._listener = listener
        self._outputs = outputs
        self._shape = shape
        self._ahead = ahead
        self._state = ListenerState.loads(record.state)
        self._held = False

    @property
    def root(self) -> str:
        """The table that the select starts from."""
        return self._state.root

    @property
    def output(self) -> OutputTable:
        """The table of the outputs; it is not there while its datatype is None."""
        return self._state.output

    # one batch

    async def write(self, batch: Batch, results: Outputs) -> None:
        """Write a batch's outputs, the first into a table that is made for them; a value that does not fit is its row's error.

        Raises
        ------
        LeaseLostError
            The job is another's by now, or was cancelled: nothing of the batch stays that would be wrong.
        """
        if batch.size and self.output.datatype is None:
            await self._establish(results)
        try:
            await self._commit(batch, replace(results, new=batch.new))
        except DuplicateKeyError:
            if not batch.new:
                raise
            await self._commit(batch, results)  # another job has written some of them since they were read
        except DatatypeError:
            await self._commit(batch, self._shape.checked(self._stores.databackend, self.output, results))

    async def _establish(self, results: Outputs) -> None:
        """Find out the outputs' datatype from the first of them, and make their table."""
        values = [value for at, value in enumerate(results.values) if at not in results.errors]
        if self._listener.flatten:
            values = [each for value in values for each in value]
        try:
            datatype = infer(values) or "json"
        except AsyncDLError:
            datatype = "json"  # mixed: whatever does not fit it is an error of its row
        state = with_datatype(self._state, datatype)
        change = SetComponentState(self._record.uuid, state.dumps(), expected=self._state.dumps())
        try:
            await self._make_table(state.output, change)
        except ConflictError:
            records = await self._stores.metadata.components(uuids=[self._record.uuid])
            if not records:
                raise ComponentNotFoundError(f"{self._listener} has been removed") from None
            state = ListenerState.loads(records[0].state)
        self._state = state

    async def _make_table(self, table: OutputTable, change: SetComponentState) -> None:
        stores = self._stores
        # Not every database makes a table in a transaction: should the listener be removed meanwhile, it must not stay.
        made = await announce_dropping(stores.intents, [table])
        with stores.intents.settling(made):
            async with stores.databackend.transaction() as tx:
                await stores.databackend.create_outputs(table, tx)
                if stores.shared:
                    await stores.metadata.commit(change, made, joining=tx)
            if not stores.shared:
                await stores.metadata.commit(change, made)

    async def _commit(self, batch: Batch, results: Outputs) -> None:
        stores = self._stores
        if not stores.shared:
            await self.hold()
        async with stores.databackend.transaction() as tx:
            if self.output.datatype is not None:
                await stores.databackend.put_outputs(
                    self.output, results, as_of=batch.as_of, replaced=batch.replaced, tx=tx
                )
            if not batch.writing:
                batch.writing = True
                self._ahead.writing()
            if stores.shared:
                await stores.metadata.commit(*self._changes(batch, len(results.errors)), joining=tx)
        if not stores.shared:
            await self.tell(batch, len(results.errors))
        self._progress.done += self.units(batch)

    def units(self, batch: Batch) -> int:
        """Return by how much a batch takes the job on."""
        return len(batch.ids) if self._attempt.job.kind == REFRESH else batch.size

    def _changes(self, batch: Batch, errors: int) -> list[Change]:
        """Return progress, on the condition that the job is still ours, and the event about a batch."""
        done = self._progress.done + self.units(batch)
        return [self._advanced("computing", done), self._event(batch.ids, errors)]

    def _event(self, ids: Sequence[Key], errors: int = 0) -> Change:
        job = self._attempt.job
        event = OutputsWritten(
            identifier=self._listener.identifier, uuid=self._record.uuid, ids=list(ids), errors=errors
        )
        return event.change(job.first, job.last)

    async def tell(self, batch: Batch, errors: int) -> None:
        """Commit progress and event after the outputs, which are taken back if they should not have been written."""
        try:
            await self._stores.metadata.commit(*self._changes(batch, errors))
        except LeaseLostError:
            await self._put_right(batch)
            raise

    async def hold(self) -> None:
        """Raise `LeaseLostError` unless the job is still ours: by its record, and, should we have slept since, by the clock.

        A listener that was retired ends its work here: what has been dropped must not be made again and filled. Before the
        first batch its record has only just been read.
        """
        if self._held:
            await self._attempt.record(self._stores)
        self._held = True
        mine = JobFilter(ids=[self._attempt.job.id], owner=self._attempt.owner, states=["running"])
        if not await self._stores.metadata.jobs(mine):
            raise LeaseLostError(f"job {self._attempt.job.id} was taken over by another worker, or cancelled")
        self._attempt.lease.check()

    async def _put_right(self, batch: Batch) -> None:
        """Take back what was written after the lease was lost, as far as it is wrong.

        Where outputs are one commit with the lease's condition there is nothing of the kind. Elsewhere an output cannot have
        overwritten a newer one, but it may belong to a row that went meanwhile, or to a listener that did.
        """
        stores = self._stores
        gone = not await stores.metadata.components(uuids=[self._record.uuid])
        if self.output.datatype is not None:
            async with stores.databackend.transaction() as tx:
                if gone:
                    await stores.databackend.drop_outputs(self.output, tx)
                else:
                    await self._swept(list(batch.ids), tx)

    # all of them

    async def look_again(self, batch: Batch) -> None:
        """Delete the outputs of rows that went, or left the select, between being read and having their outputs written."""
        changed = await self._stores.metadata.events(
            batch.as_of, types=[RowsDeleted.__name__, RowsUpdated.__name__], topics=[self.root], limit=1
        )
        if changed:
            await self.sweep(batch.ids)

    async def sweep(self, ids: Sequence[Key] | None) -> None:
        """Delete the outputs of rows that the select does not have any more; ``ids`` None: of all of them."""
        stores = self._stores
        if self.output.datatype is None:
            return

        async def attempt() -> list[Change]:
            async with stores.databackend.transaction() as tx:
                gone = await self._swept(ids, tx)
                changes = [self._advanced("sweeping"), *([self._event(gone)] if gone else [])]
                if stores.shared:
                    await stores.metadata.commit(*changes, joining=tx)
            return changes

        changes = await stores.databackend.retrying(attempt)
        if not stores.shared:
            await stores.metadata.commit(*changes)

    async def _swept(self, ids: Sequence[Key] | None, tx: Any) -> list[Key]:
        select = self._listener.select
        return await self._stores.databackend.sweep(select, self._outputs, self.output, ids=ids, tx=tx)

    async def empty(self) -> None:
        """Leave no outputs, as there are no rows."""
        stores = self._stores
        async with stores.databackend.transaction() as tx:
            if self.output.datatype is not None:
                await stores.databackend.drop_outputs(self.output, tx)
                await stores.databackend.create_outputs(self.output, tx)
            if stores.shared:
                await stores.metadata.commit(self._advanced("sweeping"), joining=tx)
        if not stores.shared:
            await self.advance("sweeping")

    async def advance(self, stage: str) -> None:
        """Commit the progress."""
        await self._stores.metadata.commit(self._advanced(stage))

    def _advanced(self, stage: str, done: int | None = None) -> AdvanceJob:
        progress, attempt = self._progress, self._attempt
        return AdvanceJob(attempt.job.id, attempt.owner, progress.done if done is None else done, progress.total, stage)
