"""Backfills whose rows do not pass the client: workers read them from the databackend, and write the outputs there.

The client reads keys, which it needs anyhow for the events, and sends a batch of them to a worker, with a site: what opens the
databackend there (`DataBackend.elsewhere`), and the metadata store with it where both are one database. The worker opens a site
once, reads the rows of these keys, has its model called, and writes the outputs, through the same code as the client. What comes
back is how many rows there were, how many failed, and how long it took.

- Where the metadata store is in the databackend's database, outputs, the event about them and the condition that the job is
  still its owner's (`HoldJob`) are one commit, as they are when the client writes: a job that was cancelled or taken over
  leaves nothing behind, however late its errands end.
- Elsewhere the outputs land first, and the client commits event and progress when it is told. What a row's end overtook is taken
  back by whoever wrote it, at once; an output never overwrites a newer one; and outputs of a listener that was removed meanwhile
  are dropped once more while jobs of it may still write (`Dropping`).

Dask runs an errand twice if its worker dies: outputs are upserts, and the client counts what it is told, once. Progress is the
client's, in either case.

A worker that cannot open the site, or finds another database there, says so: that batch, and those of some minutes, go through
the client. So does everything where the databackend is embedded, where calls go one by one (``rate_limit``), what there is before
the outputs' datatype is known, and the few rows of a write, whose latency would not gain.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncdl.compute.base import Errand, ModelCall, ModelTask, UnreachableError
from asyncdl.compute.futures import completed
from asyncdl.databackend.requests import ReadQuery
from asyncdl.databackend.tables import Key, Outputs, OutputTable
from asyncdl.errors import DatatypeError, TableNotFoundError
from asyncdl.events.types import OutputsWritten
from asyncdl.jobs.batching import weight_of
from asyncdl.jobs.reading import Batch, columns_of_keys
from asyncdl.jobs.shaping import Shape
from asyncdl.jobs.sites import DataSite, Errands, OpenDataSite
from asyncdl.metadata.changes import AppendEvent, Change, HoldJob


@dataclass(frozen=True, slots=True)
class Report:
    """What an errand tells.

    Parameters
    ----------
    rows, errors
        How many rows were still there, and on how many the model failed.
    computing, moving
        Seconds of the model's, and of reading and writing.
    weight
        Bytes of an average row.
    """

    rows: int
    errors: int
    computing: float
    moving: float
    weight: float


@dataclass(frozen=True, slots=True)
class Assignment:
    """What all errands of a job have in common.

    Parameters
    ----------
    select, outputs, columns, roots
        What is read: a listener's select, where the outputs that it goes through are, its model's columns, and how many
        columns of the key are the root table's.
    table, shape
        Where its own outputs are, and how rows become them.
    hold
        The condition on which they may be written.
    identifier, uuid, first, last
        The listener's, and the events that caused it: for the event about them.
    """

    select: ReadQuery
    outputs: Mapping[str, OutputTable]
    columns: tuple[str, ...]
    roots: int
    table: OutputTable
    shape: Shape
    hold: HoldJob
    identifier: str
    uuid: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class RowsErrand(Errand):
    """A batch of a backfill, as keys.

    Parameters
    ----------
    keys
        The select's key, by column.
    ids, as_of, replaced
        As a `Batch` has them.
    """

    site: DataSite
    work: Assignment
    keys: Sequence[Sequence[Any]]
    ids: Sequence[Key]
    as_of: int
    replaced: Sequence[Key] | None

    def __len__(self) -> int:
        return len(self.keys[0])

    async def run(self, site: OpenDataSite, compute: Callable[[Sequence[Any]], Awaitable[list[Any]]]) -> Report:
        """Read, compute and write."""
        work, begun = self.work, time.perf_counter()
        columns = await self._read(site)
        size = len(columns[0]) if columns else 0
        read = computed = time.perf_counter()
        results = Outputs([[] for _ in self.keys], [])
        if size:
            outputs = await compute(work.shape.inputs(columns))
            computed = time.perf_counter()
            results = work.shape.results(columns, outputs)
        results = await self._write(site, results)
        moving = read - begun + time.perf_counter() - computed
        weight = weight_of(columns[-1]) if columns else 0.0
        return Report(size, len(results.errors), computed - read, moving, weight)

    async def _read(self, site: OpenDataSite) -> Sequence[Sequence[Any]]:
        work = self.work
        try:
            columns = await columns_of_keys(
                site.databackend, work.select, work.outputs, work.columns, self.keys, work.roots, self.ids
            )
        except TableNotFoundError as error:
            raise UnreachableError(f"{site.databackend.url} lacks a table there: {error}") from error
        if not columns and site.metadata is None:  # all gone? or is "localhost" another machine there?
            raise UnreachableError(f"{site.databackend.url} has none of the rows there")
        return columns

    async def _write(self, site: OpenDataSite, results: Outputs) -> Outputs:
        try:
            await self._commit(site, results)
        except DatatypeError:
            results = self.work.shape.checked(site.databackend, self.work.table, results)
            await self._commit(site, results)
        return results

    async def _commit(self, site: OpenDataSite, results: Outputs) -> None:
        table, databackend, metadata = self.work.table, site.databackend, site.metadata
        async with databackend.transaction() as tx:
            await databackend.put_outputs(table, results, as_of=self.as_of, replaced=self.replaced, tx=tx)
            if metadata is not None:
                changes: list[Change] = [self.work.hold, self._event(len(results.errors))]
                await metadata.commit(*changes, joining=tx)
        if metadata is None:
            async with databackend.transaction() as tx:
                await databackend.sweep(self.work.select, self.work.outputs, table, ids=list(self.ids), tx=tx)

    def _event(self, errors: int) -> AppendEvent:
        work = self.work
        event = OutputsWritten(identifier=work.identifier, uuid=work.uuid, ids=list(self.ids), errors=errors)
        return event.change(work.first, work.last)


class Delegation:
    """Has workers read and write the rows of a job.

    Parameters
    ----------
    assignment
        Returns what its errands have in common, as of now.
    """

    def __init__(self, errands: Errands, site: DataSite, call: ModelCall, assignment: Callable[[], Assignment]) -> None:
        self._errands = errands
        self._site = site
        self._call = call
        self._assignment = assignment

    @property
    def possible(self) -> bool:
        """Whether workers can reach the databackend, as far as one knows."""
        return self._errands.possible

    def task(self, key: str, batch: Batch) -> ModelTask:
        """Return the task that does a batch of keys."""
        errand = RowsErrand(self._site, self._assignment(), batch.columns, batch.ids, batch.as_of, batch.replaced)
        return ModelTask(key, self._call, (), errand)

    async def report(self, batch: Batch) -> Report | None:
        """Return what a worker tells of a batch when it is done; None if a worker cannot reach the databackend."""
        assert batch.future is not None, "it was submitted"  # noqa: S101 - tells mypy
        try:
            [report] = await completed(batch.future)
        except UnreachableError as error:
            self._errands.give_up(str(error))
            return None
        return report  # type: ignore[no-any-return]
