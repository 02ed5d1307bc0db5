"""Reading a listener's rows, in batches."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

from asyncdl.components.listener import Listener
from asyncdl.compute.base import ComputeFuture
from asyncdl.databackend.base import DataBackend, SplitsScans
from asyncdl.databackend.requests import ReadQuery
from asyncdl.databackend.tables import Key, OutputTable, Row
from asyncdl.jobs.batching import BatchSize, ReadAhead
from asyncdl.jobs.upstream import Upstream
from asyncdl.metadata.base import MetadataStore
from asyncdl.together import both

_FETCH = 1000


@dataclass(slots=True)
class Batch:
    """Rows between reading and writing.

    Parameters
    ----------
    as_of
        The position in the event log before they were read.
    columns
        The select's key, then the model's input, by column.
    size
        How many rows there are.
    ids
        The root rows that others are told of.
    replaced
        Those of them all of whose outputs this batch has; None: nothing is known of others that they may have.
    reading
        Seconds that reading took.
    """

    as_of: int
    columns: Sequence[Sequence[Any]]
    size: int
    ids: Sequence[Key]
    replaced: Sequence[Key] | None
    reading: float
    future: ComputeFuture | None = None
    writing: bool = False
    keys_only: bool = False
    """Whether there are no inputs: a worker reads them."""
    new: bool = False
    """Whether none of the rows had an output."""


class Reader:
    """Reads the rows that a listener selects.

    Parameters
    ----------
    upstream
        The listeners that its select goes through.
    output
        Its own; not yet made while its datatype is None.
    keys_only
        Whether keys are enough, by now.
    """

    def __init__(
        self,
        metadata: MetadataStore,
        databackend: DataBackend,
        listener: Listener,
        upstream: Upstream,
        output: Callable[[], OutputTable],
        size: BatchSize,
        ahead: ReadAhead,
        keys_only: Callable[[], bool] = lambda: False,
    ) -> None:
        self._metadata = metadata
        self._databackend = databackend
        self._listener = listener
        self._upstream = upstream
        self._outputs = upstream.outputs
        self._output = output
        self._size = size
        self._ahead = ahead
        self._keys_only = keys_only
        self._width = len(output().key)
        self._roots = len(output().root)
        self._missing: int | None = None

    def written(self) -> OutputTable | None:
        """Return the table of the listener's outputs, None before there are any."""
        output = self._output()
        return output if output.datatype is not None else None

    async def count_missing(self) -> int:
        """Return how many rows have no output, or had none when this was first asked."""
        if self._missing is None:
            self._missing = await self._databackend.count_missing(self._listener.select, self._outputs, self.written())
        return self._missing

    async def boundaries(self, size: int) -> list[Row]:
        """Return the keys that divide the rows without output in parts of so many; none for less than two parts.

        Nor where it cannot be told. Rows are counted first: numbering all of them takes several times as long.
        """
        if not isinstance(self._databackend, SplitsScans) or await self.count_missing() < 2 * size:
            return []
        return await self._databackend.boundaries(
            self._listener.select, self._outputs, size=size, missing=self.written()
        )

    async def scan(self, *, missing: bool, after: Row | None = None, until: Row | None = None) -> AsyncIterator[Batch]:
        """Yield the rows in the order of their keys: all of them, or those that have no output, between two keys."""
        bound: dict[str, Any] = {} if until is None else {"until": until}  # not every databackend knows it
        while True:
            await self._ahead.may_read()
            begun, limit = time.perf_counter(), self._size.size
            as_of, keys_only = await self._metadata.last_event(), self._keys_only()
            rows = await self._databackend.scan(
                self._listener.select,
                self._outputs,
                () if keys_only else self._listener.columns,
                after=after,
                limit=limit,
                missing=self.written() if missing else None,
                **bound,
            )
            await self._upstream.check(as_of)
            if rows:
                after = rows[-1][: self._width]
                columns = list(zip(*rows, strict=True))
                ids = self._ids(columns)
                # A root row may have rows on two pages (flattened upstream): only a refresh, by ids, has all of them.
                whole = not missing and self._width == self._roots
                replaced, reading = ids if whole else None, time.perf_counter() - begun
                yield Batch(as_of, columns, len(rows), ids, replaced, reading, keys_only=keys_only, new=missing)
            if len(rows) < limit:
                return

    async def scan_stale(self, since: int, *, again: bool, written: bool) -> AsyncIterator[Batch]:
        """Yield all rows but for those whose outputs are of ``since`` or later.

        Parameters
        ----------
        again
            Whether an attempt has died: what it wrote may not have been told of, nor a root row's elements be complete.
        written
            Whether to leave out rows that have no outputs.
        """
        before: tuple[Key, bool] | None = None
        async with aclosing(self.scan(missing=False)) as batches:  # type: ignore[type-var]
            async for batch in batches:
                output = self.written()
                if again or (output is None and not written):
                    yield batch
                    continue
                roots = self._ids(batch.columns)
                stale = await self._stale(output, roots, since, written=written)
                if before is not None and before[0] == roots[0]:  # its first elements were on the page before
                    stale = stale | {roots[0]} if before[1] else stale - {roots[0]}
                before = roots[-1], roots[-1] in stale
                if stale:
                    yield self._only(batch, stale)
                else:
                    self._ahead.writing()  # another may be read in its place

    def _only(self, batch: Batch, stale: set[Key]) -> Batch:
        """Return a batch without the rows of other root rows."""
        columns = batch.columns
        keys = list(zip(*columns[: self._roots], strict=True)) if self._roots > 1 else columns[0]
        kept = [key in stale for key in keys]
        ids = [key for key in batch.ids if key in stale]
        replaced = None if batch.replaced is None else ids
        columns = [list(compress(column, kept)) for column in columns]
        return replace(batch, columns=columns, size=sum(kept), ids=ids, replaced=replaced)

    async def _stale(self, output: OutputTable | None, roots: Sequence[Key], since: int, *, written: bool) -> set[Key]:
        if output is None:
            return set()
        # In this order: what is written in between is current, and not among those that were.
        there = await self._databackend.current(output, roots, 0) if written else set(roots)
        return there - await self._databackend.current(output, roots, since)

    async def refresh(self, ids: list[Key], since: int, as_of: int) -> AsyncIterator[Batch]:
        """Yield the rows that come from these root rows, but for those whose outputs are of ``since`` or later.

        Parameters
        ----------
        as_of
            The position in the log, as it was a moment ago.
        """
        for at in range(0, len(ids), _FETCH):
            await self._ahead.may_read()
            chunk, begun = ids[at : at + _FETCH], time.perf_counter()
            if at:
                as_of = await self._metadata.last_event()
            rows, current = await both(self._fetch(chunk), self._current(chunk, since))
            stale = chunk
            if current:  # an attempt that died wrote them, or another job did: few, or hardly ever
                stale = [each for each in chunk if each not in current]
                roots, wanted = self._roots, set(stale)
                rows = [row for row in rows if (row[0] if roots == 1 else row[:roots]) in wanted]
            await self._upstream.check(as_of)
            # All of the chunk is told downstream, also what was up to date: its event may not have been.
            columns = list(zip(*rows, strict=True))
            yield Batch(as_of, columns, len(rows), chunk, stale, time.perf_counter() - begun)

    async def _fetch(self, ids: Sequence[Key]) -> Sequence[Row]:
        return await self._databackend.fetch(self._listener.select, self._outputs, self._listener.columns, ids)

    async def _current(self, ids: Sequence[Key], since: int) -> set[Key]:
        output = self.written()
        return set() if output is None else await self._databackend.current(output, ids, since)

    async def filled(self, batch: Batch) -> Batch:
        """Return a batch of keys with the inputs of those rows that are still there."""
        listener = self._listener
        keys, begun = batch.columns, time.perf_counter()
        columns = await columns_of_keys(
            self._databackend, listener.select, self._outputs, listener.columns, keys, self._roots, batch.ids
        )
        size, reading = len(columns[0]) if columns else 0, time.perf_counter() - begun
        return replace(batch, columns=columns, size=size, reading=reading, future=None, keys_only=False)

    def _ids(self, columns: Sequence[Sequence[Any]]) -> Sequence[Key]:
        if self._roots > 1:
            return list(dict.fromkeys(zip(*columns[: self._roots], strict=True)))
        if self._width > 1:
            return list(dict.fromkeys(columns[0]))
        return list(columns[0])


async def columns_of_keys(
    databackend: DataBackend,
    select: ReadQuery,
    outputs: Mapping[str, OutputTable],
    columns: Sequence[str],
    keys: Sequence[Sequence[Any]],
    roots: int,
    ids: Sequence[Key],
) -> Sequence[Sequence[Any]]:
    """Return the rows that have these keys, as far as they are there, by column: the key's first; nothing for no rows.

    Parameters
    ----------
    keys, roots
        The keys, by column; how many of the columns are the root table's.
    ids
        The root rows that they are of.
    """
    rows: list[Row] = []
    for at in range(0, len(ids), _FETCH):
        rows += await databackend.fetch(select, outputs, columns, ids[at : at + _FETCH])
    if len(keys) > roots:  # of a root row with several rows, some may be another batch's
        wanted = set(zip(*keys, strict=True))
        rows = [row for row in rows if row[: len(keys)] in wanted]
    return list(zip(*rows, strict=True))
