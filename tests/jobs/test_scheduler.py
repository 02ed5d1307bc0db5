"""The scheduler's cursor: when it is moved, and that everything is planned whoever moved it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asyncdl.artifact_store.filesystem import FilesystemArtifactStore
from asyncdl.components.registry import ListenerState, Registry
from asyncdl.databackend.tables import OutputTable
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.events.types import ComponentReady, Event, JobFailed, JobSucceeded, OutputsWritten, RowsInserted
from asyncdl.jobs import scheduler as module
from asyncdl.jobs.scheduler import CURSOR, Scheduler
from asyncdl.metadata.base import JobFilter
from asyncdl.metadata.changes import Change, MoveCursor, PutComponent, PutJob, SetComponentStatus
from asyncdl.metadata.records import ComponentRecord, EventRecord, JobRecord
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


MODEL = ComponentRecord(
    *("m" * 32, "model", "model", 0, "print", "pending", '{"fields": {}, "children": {}}', 0.0),
)
LISTENER = ComponentRecord(
    *(
        "l" * 32,
        "listener",
        "length",
        0,
        "print",
        "ready",
        f'{{"fields": {{}}, "children": {{"model/model": "{MODEL.uuid}"}}}}',
        0.0,
    ),
    ListenerState(OutputTable("o", "length", ("id",), {"id": "int64"}, "int64"), "docs", ["docs"], []).dumps(),
)
HELD_BACK = JobRecord(
    "held", "refresh", LISTENER.uuid, '{"ids": [1], "since": 0, "waits": ["m"]}', 1, 1, 0.0, not_before=1e12
)
READY = ComponentReady(uuid=MODEL.uuid, type_id="model", identifier="model", version=0)


async def lies_behind(store: Watched, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a job be held back for a model, and the cursor lie behind another one's outputs."""
    monkeypatch.setattr(module, "_LAG", 1e6)
    await store.commit(PutComponent(MODEL), PutComponent(LISTENER, [MODEL.uuid]), PutJob(HELD_BACK))
    await happens(store, RowsInserted(table="others", ids=[1]))
    await scheduler.step()
    await happens(store, outputs(), cause=1)
    await scheduler.step()
    assert store.moves == [1]
    assert await store.jobs(JobFilter(due=store.clock.now())) == []


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


async def test_what_was_held_back_is_let_go_with_the_event_that_says_so_wherever_the_cursor_lies(
    store: Watched, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lies_behind(store, scheduler, monkeypatch)
    await happens(store, outputs(), cause=1)
    await happens(store, JobSucceeded(job="j", kind="train", target=MODEL.uuid, done=10), cause=1)
    [ready] = await store.commit(SetComponentStatus(MODEL.uuid, "ready"), READY.change(1, 1))
    await happens(store, JobSucceeded(job="k", kind="refresh", target="t", done=10), cause=1)
    last = await happens(store, outputs(), cause=1)
    await scheduler.step()  # all in one page
    assert store.moves == [1, last]
    assert last > ready.seq
    [job] = await store.jobs(JobFilter(due=store.clock.now()))
    assert (job.id, job.state) == ("held", "pending")


async def test_what_was_held_back_ends_with_what_it_waits_for_wherever_the_cursor_lies(
    store: Watched, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lies_behind(store, scheduler, monkeypatch)
    failed = JobFailed(job="j", kind="train", target=MODEL.uuid, error="why", attempts=3)
    [record] = await store.commit(SetComponentStatus(MODEL.uuid, "failed"), failed.change(1, 1))
    await scheduler.step()
    assert store.moves == [1, record.seq]
    [job] = await store.jobs(JobFilter(target=LISTENER.uuid, states=["upstream_failed"], ids=["held"]))
    assert "job j" in str(job.error)


async def test_what_another_process_let_go_is_not_let_go_twice(
    store: Watched, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lies_behind(store, scheduler, monkeypatch)
    [ready] = await store.commit(SetComponentStatus(MODEL.uuid, "ready"), READY.change(1, 1))
    await store.commit(
        MoveCursor(CURSOR, ready.seq), PutJob(replace(HELD_BACK, id="newer"))
    )  # held back for another reason
    assert await scheduler.step()  # a conflict: from what is stored
    assert not await scheduler.step()
    assert await store.jobs(JobFilter(due=store.clock.now())) == []
