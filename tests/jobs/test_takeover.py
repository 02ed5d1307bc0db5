"""A new version takes over: who waits for what the old one leaves undone waits for what reads them, too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.events.types import ComponentReady, OutputsReplaced
from asyncdl.jobs.takeover import take_over
from asyncdl.metadata.changes import AppendEvent, FinishJob, PutComponent, PutJob, SetComponentStatus
from asyncdl.metadata.records import ComponentRecord, JobRecord
from asyncdl.metadata.sql import SQLMetadataStore

pytestmark = pytest.mark.anyio

OLD = ComponentRecord("o" * 32, "listener", "length", 0, "print", "ready", "{}", 0.0)
NEW = replace(OLD, uuid="n" * 32, version=1, status="pending")
BACKFILL = JobRecord("backfill", "backfill", NEW.uuid, "{}", 20, 20, 0.0)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLMetadataStore]:
    store = SQLMetadataStore(SQLiteDatabase(tmp_path / "meta.db"))
    await store.open()
    await store.commit(PutComponent(OLD), PutComponent(NEW), PutJob(BACKFILL))
    yield store
    await store.aclose()


async def causes(store: SQLMetadataStore) -> dict[str, tuple[int, int]]:
    conclusion = await take_over(store, BACKFILL)
    assert list(conclusion.retired) == [OLD]
    events = [each for each in conclusion.changes if isinstance(each, AppendEvent)]
    assert [each.type for each in events] == [OutputsReplaced.__name__, ComponentReady.__name__]
    assert SetComponentStatus(OLD.uuid, "retired") in conclusion.changes
    return {each.type: (each.first, each.last) for each in events}


async def test_it_is_caused_by_the_job_and_by_what_the_retired_version_had_still_to_do(store: SQLMetadataStore) -> None:
    own = {OutputsReplaced.__name__: (20, 20), ComponentReady.__name__: (20, 20)}
    assert await causes(store) == own
    undone = [
        JobRecord("earlier", "refresh", OLD.uuid, "{}", 12, 13, 0.0),
        JobRecord("later", "refresh", OLD.uuid, "{}", 25, 25, 0.0),
        JobRecord("another's", "refresh", "x" * 32, "{}", 1, 90, 0.0),
        JobRecord("done", "refresh", OLD.uuid, "{}", 2, 80, 0.0, state="running", owner="me", lease=1e12),
    ]
    await store.commit(*map(PutJob, undone))
    await store.commit(FinishJob("done", "me", "succeeded", 1.0))
    assert await causes(store) == {**own, OutputsReplaced.__name__: (12, 25)}
