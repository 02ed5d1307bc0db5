"""Keeping the rows of a dataset, as artifacts of some megabytes each, so that memory holds one of them for each fold."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from asyncdl import codec
from asyncdl.components.dataset import FOLDS, Dataset, Fold
from asyncdl.components.states import DatasetState
from asyncdl.databackend.tables import TableSchema
from asyncdl.errors import ComponentNotFoundError
from asyncdl.events.types import ComponentReady
from asyncdl.jobs.rows import Page, pages_of_query, values
from asyncdl.jobs.work import Work
from asyncdl.metadata.changes import AdvanceJob, Change, LinkArtifacts, SetComponentState, SetComponentStatus
from asyncdl.metadata.records import ComponentRecord

_CHUNK = 8 * 1024 * 1024
"""Bytes of an artifact, about: it is whole pages."""


class MaterializingWork(Work):
    """The keeping of one dataset."""

    async def run(self) -> None:
        """Read the rows and keep them, unless an attempt before this one did; one that got half way is begun again."""
        records = await self._stores.metadata.components(uuids=[self._job.target])
        if not records:
            raise ComponentNotFoundError(f"the dataset of job {self._job.id} has been removed")
        self._record = records[0]
        if self._record.status == "ready":
            return
        dataset = await self._stores.registry.load(self._record)
        assert isinstance(dataset, Dataset)  # noqa: S101 - so it was planned
        outputs = await self._stores.registry.outputs_of(dataset.select)  # type: ignore[arg-type]
        schema = await self._stores.databackend.check(dataset.select, outputs)
        last = await self._last_rank(dataset, schema)
        chunks: dict[str, list[str]] = {fold: [] for fold in FOLDS}
        rows: dict[str, int] = dict.fromkeys(FOLDS, 0)
        buffers: dict[Fold, list[bytes]] = {fold: [] for fold in FOLDS}
        columns: Sequence[str] = []
        async for page in pages_of_query(self._stores, dataset.select):
            columns = page[0]
            for fold, count, line in await asyncio.to_thread(_encoded, dataset, schema, page, last):
                rows[fold] += count
                buffers[fold].append(line)
                if sum(map(len, buffers[fold])) >= _CHUNK:
                    chunks[fold].append(await self._keep(buffers[fold], sum(rows.values())))
        for fold in FOLDS:
            if buffers[fold]:
                chunks[fold].append(await self._keep(buffers[fold], sum(rows.values())))
        await self._install(DatasetState(chunks, rows, list(columns)))

    async def _last_rank(self, dataset: Dataset, schema: TableSchema) -> int | None:
        """Return the rank of the last row that is sampled; None: all are."""
        if dataset.sample is None:
            return None
        lowest: list[int] = []  # negated, so that the highest of them is first
        async for page in pages_of_query(self._stores, dataset.select):
            await asyncio.to_thread(_sample, lowest, dataset, schema, page)
        return -lowest[0] if len(lowest) == dataset.sample else None

    async def _keep(self, buffer: list[bytes], done: int) -> str:
        data = b"\n".join(buffer)
        buffer.clear()
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        async with self._stores.leases.held([sha256]) as held:
            await self._stores.registry.artifact_store.put(data)
            self._done = done
            await self._stores.metadata.commit(
                AdvanceJob(self._job.id, self._owner, done, None, "keeping rows"),
                LinkArtifacts(self._record.uuid, linked=[sha256]),
                *held,
            )
        return sha256

    async def _install(self, state: DatasetState) -> None:
        record = self._record
        used = {sha256 for chunks in state.chunks.values() for sha256 in chunks}
        left = await self._stores.metadata.artifacts(record.uuid) - used  # by an attempt that died
        self._done = sum(state.rows.values())
        async with self._stores.leases.dropping(left) as dropped:
            await self._stores.metadata.commit(
                AdvanceJob(self._job.id, self._owner, self._done, self._done, "kept"),
                LinkArtifacts(record.uuid, unlinked=left),
                SetComponentState(record.uuid, state.dumps(), expected=record.state),
                SetComponentStatus(record.uuid, "ready", expected=record.status),
                ComponentReady(**record.identity).change(self._job.first, self._job.last),
                *dropped,
            )

    async def give_up(self) -> Sequence[Change]:
        """Say that the dataset has no rows."""
        records: list[ComponentRecord] = await self._stores.metadata.components(uuids=[self._job.target])
        return [SetComponentStatus(record.uuid, "failed") for record in records if record.status == "pending"]


def _keys(schema: TableSchema, page: Page) -> list[Any]:
    rows = values(page, schema.primary_key)
    return [row[0] for row in rows] if len(schema.primary_key) == 1 else list(rows)


def _sample(lowest: list[int], dataset: Dataset, schema: TableSchema, page: Page) -> None:
    """Keep the lowest ranks."""
    assert dataset.sample is not None  # noqa: S101 - or nothing is sampled
    for key in _keys(schema, page):
        rank = -dataset.rank(key)
        if len(lowest) < dataset.sample:
            heapq.heappush(lowest, rank)
        else:
            heapq.heappushpop(lowest, rank)


def _encoded(dataset: Dataset, schema: TableSchema, page: Page, last: int | None) -> Iterator[tuple[Fold, int, bytes]]:
    """Return the rows of a page that are taken, fold by fold: how many, and their JSON."""
    folds: dict[Fold, list[Any]] = defaultdict(list)
    for key, row in zip(_keys(schema, page), page[1], strict=True):
        if last is None or dataset.rank(key) <= last:
            folds[dataset.fold(key)].append(row)
    return iter([(fold, len(rows), codec.dumps(rows)) for fold, rows in folds.items()])
