"""Reading rows for training and validation: of a query, or of a dataset."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from asyncdl import codec
from asyncdl.components.dataset import Fold
from asyncdl.components.states import DatasetState
from asyncdl.databackend.requests import ReadQuery
from asyncdl.errors import ComponentNotReadyError, UnknownColumnError
from asyncdl.jobs.work import Stores
from asyncdl.metadata.records import ComponentRecord

Page = tuple[Sequence[str], Sequence[Any]]
"""Column names and rows; no names: the rows are documents."""


async def pages_of_query(stores: Stores, select: ReadQuery) -> AsyncGenerator[Page, None]:
    """Yield the rows of a query, a page at a time."""
    outputs = await stores.registry.outputs_of(select)  # type: ignore[arg-type]
    async with aclosing(stores.databackend.read(select, outputs)) as pages:  # type: ignore[type-var]
        async for page in pages:
            yield page


async def pages_of_dataset(
    stores: Stores, record: ComponentRecord, folds: Sequence[Fold]
) -> AsyncGenerator[Page, None]:
    """Yield the rows of some folds of a dataset, a page at a time.

    Raises
    ------
    ComponentNotReadyError
        They have not been kept yet.
    """
    if record.status != "ready":
        raise ComponentNotReadyError(
            f"dataset {record.identifier!r} is {record.status}", failed=record.status == "failed"
        )
    state = DatasetState.of(record)
    for fold in folds:
        for sha256 in state.chunks.get(fold, ()):
            for line in (await stores.registry.artifact_store.get(sha256)).split(b"\n"):
                yield state.columns, await asyncio.to_thread(codec.loads, line)


def values(page: Page, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return some columns' values of each row of a page.

    Raises
    ------
    UnknownColumnError
        There is no such column. (Of documents, what one lacks is None.)
    """
    names, rows = page
    if not names:
        return [tuple(_within(document, column) for column in columns) for document in rows]
    missing = [column for column in columns if column not in names]
    if missing:
        raise UnknownColumnError(f"there is no column {missing[0]!r}; there are {', '.join(names)}")
    places = [names.index(column) for column in columns]
    return [tuple(row[place] for place in places) for row in rows]


def _within(document: Any, path: str) -> Any:
    for name in path.split("."):
        document = document.get(name) if isinstance(document, dict) else None
    return document


def grouped(rows: Sequence[tuple[Any, ...]], columns: Sequence[str], group: str | tuple[str, ...]) -> list[Any]:
    """Return what a group of columns is in each row: a value, or a tuple."""
    if isinstance(group, str):
        place = columns.index(group)
        return [row[place] for row in rows]
    places = [columns.index(name) for name in group]
    return [tuple(row[place] for place in places) for row in rows]
