"""The scheduler's cursor: when it is moved, and that everything is planned whoever moved it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from asyncdl.artifact_store.filesystem import FilesystemArtifactStore
from asyncdl.components.registry import Registry
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.events.types import Event, JobSucceeded, OutputsWritten, RowsInserted
from asyncdl.jobs import scheduler as module
from asyncdl.jobs.scheduler import CURSOR, Scheduler
from asyncdl.metadata.base import Change, EventRecord, MoveCursor
from asyncdl.metadata.sql import SQLMetadataStore

pytestmark = pytest.mark.anyio


class Watched(SQLMetadataStore):
    """One that notes where its cursor was moved to."""

    def __init__(self, database: SQLiteDatabase) -> None:
        super().__init__(database)
        self.moves: list[int] = []

    async def commit(self, *changes: Change, joining: Any = None) -> list[EventRecord]:
        found = await super().commit(*changes, joining=joining)
        self.moves += [change.seq for change in changes if isinstance(change, MoveCursor)]
        return found


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Watched]:
    store = Watched(SQLiteDatabase(tmp_path / "meta.db"))
    await store.open()
    yield store
    await store.aclose()


@pytest.fixture
def scheduler(store: Watched, tmp_path: Path) -> Scheduler:
    artifacts = FilesystemArtifactStore(tmp_path / "artifacts")
    return Scheduler(
        store, Registry(store, artifacts, Datatypes(allow_pickle=False), allow_pickle=False), max_attempts=3
    )


def outputs() -> OutputsWritten:
    return OutputsWritten(identifier="length", uuid="u" * 32, ids=[1, 2])


async def happens(store: Watched, event: Event, cause: int = 0) -> int:
    [record] = await store.commit(event.change(cause, cause))
    return record.seq


async def test_batches_from_which_nothing_follows_are_passed_with_the_end_of_their_job(
    store: Watched, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LAG", 1e6)
    await happens(store, RowsInserted(table="docs", ids=[1]))
    await scheduler.step()
    for _ in range(10):
        await happens(store, outputs(), cause=1)
        await scheduler.step()
    assert store.moves == [1]  # which has the first of them be waited for no longer than before
    end = await happens(store, JobSucceeded(job="j", kind="refresh", target="t", done=10), cause=1)
    await scheduler.step()
    assert store.moves == [1, end]
    await happens(store, JobSucceeded(job="k", kind="refresh", target="t", done=0), cause=1)
    await scheduler.step()
    assert store.moves == [1, end]  # nobody waits for that


async def test_what_a_write_asked_for_is_never_put_off(
    store: Watched, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LAG", 1e6)
    moves = []
    for event, cause in [
        (RowsInserted(table="docs", ids=[1]), 0),
        (outputs(), 0),
        (RowsInserted(table="x", ids=[1]), 1),
    ]:
        moves.append(await happens(store, event, cause))
        await scheduler.step()
    assert store.moves == moves


async def test_without_an_end_the_cursor_follows_by_itself(
    store: Watched, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LAG", 0.01)
    running = asyncio.create_task(scheduler.run())
    try:
        await happens(store, RowsInserted(table="docs", ids=[1]))
        for _ in range(20):
            last = await happens(store, outputs(), cause=1)
        seen = 0
        async with asyncio.timeout(30):
            while await store.cursor(CURSOR) != last:
                seen = await store.wait_for_commits(seen)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_another_process_moves_the_cursor_meanwhile(
    store: Watched, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LAG", 1e6)
    await happens(store, RowsInserted(table="docs", ids=[1]))
    await scheduler.step()
    passed = await happens(store, outputs(), cause=1)
    await scheduler.step()  # read, and not passed yet
    await store.commit(MoveCursor(CURSOR, passed))
    end = await happens(store, JobSucceeded(job="j", kind="refresh", target="t", done=1), cause=1)
    assert await scheduler.step()  # a conflict: from what is stored
    last = await happens(store, RowsInserted(table="docs", ids=[2]))
    await scheduler.step()
    assert await store.cursor(CURSOR) == last > end
