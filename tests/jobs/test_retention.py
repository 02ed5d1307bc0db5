"""Retention: what is deleted, what holds the log, and what those see who ask for what is gone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import asyncdl
from asyncdl import Datalayer, Event, EventsTrimmed, Listener, Model, RowsInserted
from asyncdl.drivers.sql import Statement
from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.errors import ConflictError, EventsTrimmedError
from asyncdl.events.bus import EventBus
from asyncdl.events.log import TRIMMED, EventLog
from asyncdl.jobs import retention
from asyncdl.jobs.retention import Retention
from asyncdl.jobs.scheduler import CURSOR, Scheduler
from asyncdl.metadata.base import MetadataStore
from asyncdl.metadata.changes import AppendEvent, MoveCursor, PutJob, SetJobState
from asyncdl.metadata.records import JobRecord
from asyncdl.metadata.sql import SQLMetadataStore
from tests import models
from tests.conftest import rows_of
from tests.places import METADATA, PLACES, metadata_store

pytestmark = pytest.mark.anyio

LONG_AGO = 1_000.0


@dataclass(frozen=True, kw_only=True)
class Noted(Event):
    """An event of the user's: nothing is planned for it."""

    n: int = 0


@pytest.fixture
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MetadataStore]:
    with PLACES[getattr(request, "param", "sqlite")](request, tmp_path) as uri:
        made = metadata_store(uri)
        await made.open()
        yield made
        await made.aclose()


def old(topic: str = "", created: float = LONG_AGO) -> AppendEvent:
    return replace(Noted().change(), topic=topic, created=created)


async def seqs(store: MetadataStore) -> list[int]:
    return [each.seq for each in await store.events(0, types=[Noted.__name__], limit=100_000)]


@pytest.mark.parametrize("store", METADATA, indirect=True)
async def test_what_is_old_goes_and_what_is_young_stays(store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "STEP", 7)
    made = await store.commit(*(old(created=LONG_AGO + n) for n in range(50)))
    going = made[29].seq
    assert await Retention(store, 100.0).trim(LONG_AGO + 130) == going
    left = await store.events(0)
    assert left[:20] == made[30:]
    [told] = left[20:]
    assert Event.from_record(told) == EventsTrimmed(up_to=going)
    assert await store.cursor(TRIMMED) == going
    log = EventLog(store)
    assert [each.seq for each in await log.read()] == [each.seq for each in left]
    assert [each.seq for each in await log.read(going, Noted)] == [each.seq for each in made[30:]]
    with pytest.raises(EventsTrimmedError, match=f"begins with {going + 1}") as error:
        await log.read(0)
    assert error.value.first == going + 1
    with pytest.raises(EventsTrimmedError):
        async with log.subscribe(since=going - 1):
            pass
    async with log.subscribe(since=error.value.first - 1) as events:
        assert (await anext(events)).seq == made[30].seq


async def test_what_tells_of_a_deletion_leads_to_no_other(store: MetadataStore) -> None:
    await store.commit(*(old() for _ in range(3)))
    kept = Retention(store, 0.0)
    later = time.time() + 1
    for _ in range(5):
        await kept.trim(later)
    assert [each.type for each in await store.events(0)] == ["EventsTrimmed"] * 2


async def test_nothing_goes_from_an_empty_log(store: MetadataStore) -> None:
    assert await Retention(store, 0.0).trim(time.time()) == 0
    await store.commit(old())
    assert await Retention(store, 0.0).trim(time.time()) == 0  # the newest stays
    assert await store.cursor(TRIMMED) is None


async def test_a_named_subscription_holds_what_it_has_not_dealt_with(store: MetadataStore) -> None:
    log, kept = EventLog(store), Retention(store, 10.0)
    async with log.subscribe(name="billing"), log.subscribe(name="gone"):
        pass
    await store.commit(*(old() for _ in range(10)))
    assert await log.cursors() == {"billing": 0, "gone": 0}
    assert await kept.trim(time.time()) == 0
    async with log.subscribe(name="billing") as events:
        for _ in range(5):
            await anext(events)
    assert await log.cursors() == {"billing": 4, "gone": 0}
    assert await kept.trim(time.time()) == 0
    await log.forget("gone")
    assert await log.cursors() == {"billing": 4}
    assert await kept.trim(time.time()) == 4
    async with log.subscribe(name="billing") as events:
        assert (await anext(events)).seq == 5


async def test_what_is_still_to_be_planned_holds_and_so_does_what_a_job_followed_from(store: MetadataStore) -> None:
    kept = Retention(store, 10.0)
    planned = replace(RowsInserted(table="docs", ids=[1]).change(), created=LONG_AGO)
    await store.commit(*(old() for _ in range(4)), planned, *(old() for _ in range(4)))  # 5 is to be planned
    assert await kept.trim(time.time()) == 4
    job = JobRecord("j", "refresh", "u", "{}", first=5, last=5, created=1.0)
    await store.commit(PutJob(job), MoveCursor(CURSOR, 5), old(), old())
    assert await kept.trim(time.time()) == 4
    await store.commit(SetJobState("j", "cancelled", ("pending",), 1.0))
    assert await kept.trim(time.time()) >= 9


async def test_of_two_at_once_one_deletes(
    store: MetadataStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "STEP", 3)
    other = SQLMetadataStore(SQLiteDatabase(tmp_path / "app.db"))
    await other.open()
    await store.commit(*(old() for _ in range(100)))
    runs = [Retention(each, 10.0).trim(time.time()) for each in (store, other)]
    done = await asyncio.gather(*runs, return_exceptions=True)
    assert [each for each in done if isinstance(each, ConflictError)] or set(done) == {99}
    assert len(await store.events(0, types=["EventsTrimmed"])) == 1
    await other.aclose()
    assert await Retention(store, 10.0).trim(time.time()) == 100
    assert await seqs(store) == []


async def test_a_slow_subscriber_without_a_name_learns_of_the_gap(store: MetadataStore) -> None:
    log = EventLog(store)
    await store.commit(*(old() for _ in range(1200)))
    async with log.subscribe(Noted, since=0) as events, log.subscribe(EventsTrimmed, since=0) as rare:
        assert (await anext(events)).seq == 1  # it has read a page of 500
        await Retention(store, 10.0).trim(time.time())
        found = [1]
        with contextlib.suppress(EventsTrimmedError):
            async for event in events:
                found.append(event.seq)  # noqa: PERF401 - it ends by an error
        assert found == list(range(1, len(found) + 1))  # the rest of its page
        assert len(found) < 1200
        with pytest.raises(EventsTrimmedError) as error:
            await anext(events)
        assert error.value.first == 1200
        with pytest.raises(EventsTrimmedError):
            await anext(rare)


async def test_handlers_that_are_too_slow_go_on_behind_the_gap(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log, seen, reached, go_on = EventLog(store), [], asyncio.Event(), asyncio.Event()
    done = asyncio.Event()
    bus = EventBus(log)

    @bus.on(Noted)
    async def slow(event: Noted) -> None:
        seen.append(event.seq)
        if event.seq == 1:
            reached.set()
            await go_on.wait()
        if event.seq == 1200:
            done.set()

    await store.commit(*(old() for _ in range(1200)))
    task = asyncio.create_task(bus.run(since=0))
    await reached.wait()
    await Retention(store, 10.0).trim(time.time())
    go_on.set()
    await done.wait()
    assert seen == [*range(1, len(seen)), 1200]  # the rest of the page, and what there is behind the gap
    assert len(seen) < 1200
    assert "deleted before their turn" in caplog.text
    task.cancel()
    await asyncio.wait([task])


async def test_a_scheduler_that_lagged_behind_learns_of_components_whose_events_are_gone(
    db: Datalayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = db["numbers"]
    await db.execute(t.insert([{"id": 1, "x": 1}]))
    await db.wait_idle(60)
    lagging = Scheduler(db.metadata, db._registry, max_attempts=3)
    assert not await lagging.step()
    await db.add(Listener("first", model=Model("double", models.double), key="x", select=t), wait=True)
    await db.wait_idle(60)
    later = time.time() + 10
    assert await Retention(db.metadata, 0.0).trim(later) > 1
    assert await db.metadata.events(0, types=["ComponentAdded"]) == []
    [made] = await db.metadata.commit(RowsInserted(table="none", ids=[1]).change())
    lagging._known, lagging._position = 1, made.seq - 1  # what it knows is as of before the listener
    await lagging.step()
    assert [each.identifier for each in lagging._installation.listeners] == ["first"]


async def test_handles_on_events_that_are_gone_answer_rightly(tmp_path: Path) -> None:
    models.gate.clear()
    models.began.clear()
    uris = {"databackend": f"sqlite:///{tmp_path / 'app.db'}", "artifact_store": f"filesystem://{tmp_path / 'blobs'}"}
    async with asyncdl.connect(**uris, threads=1) as db:
        t = db["numbers"]
        written = await db.execute(t.insert([{"id": 1, "x": 1}]))
        await written.wait(60)
        listener = Listener("gated", model=Model("gated", models.gated), key="x", select=t)
        added = await db.add(listener)
        await asyncio.to_thread(models.began.wait, 60)
        kept = Retention(db.metadata, 0.0)
        first = await kept.trim(time.time() + 10)
        assert written.last <= first < added.last  # the running job holds what it followed from
        again = await db.add(listener)
        assert not again.created
        waiting = [asyncio.create_task(each.wait(60)) for each in (added, again)]
        done, _ = await asyncio.wait(waiting, timeout=0)
        assert not done
        models.gate.set()
        await asyncio.gather(*waiting)
        await db.wait_idle(60)
        assert await kept.trim(time.time() + 10) > added.last
        await written.wait(60)
        await added.wait(60)
        assert [each.stage async for each in added.progress()] == ["done"]
        assert await rows_of(db, t.outputs("gated")) == [(1, 1, 1)]
        await (await db.execute(t.insert([{"id": 2, "x": 5}]))).wait(60)
        assert await rows_of(db, t.outputs("gated")) == [(1, 1, 1), (2, 5, 5)]


async def test_by_the_setting(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'app.db'}"
    artifacts = f"filesystem://{tmp_path / 'blobs'}"
    async with asyncdl.connect(uri, artifact_store=artifacts) as db:
        await db.metadata.commit(*(old() for _ in range(10)))
    async with (
        asyncdl.connect(uri, artifact_store=artifacts, events_keep=3600) as db,
        db.events.subscribe(EventsTrimmed, since=9) as events,
    ):
        assert await anext(events) == EventsTrimmed(up_to=9)


async def test_a_million_events_go_while_others_write(store: MetadataStore, tmp_path: Path) -> None:
    """Not a matter of time: a writer gets through between any two steps."""
    database = store.database  # type: ignore[attr-defined]
    await store.commit(old())
    numbers = "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)"
    async with database.transaction() as tx:
        tx.defer(*_insert(numbers))
        await tx.commit()
    other = SQLMetadataStore(SQLiteDatabase(tmp_path / "app.db"))
    await other.open()
    await other.commit(Noted().change())  # the newest event stays, whichever of the two begins
    trimming = asyncio.create_task(Retention(store, 10.0).trim(time.time()))
    between = 0
    while not trimming.done():
        before = await other.cursor(TRIMMED) or 0
        await other.commit(Noted().change())
        between += before < (await other.cursor(TRIMMED) or 0) < 1_000_000
    assert await trimming == 1_000_000
    assert between > 10
    await other.aclose()


def _insert(numbers: str) -> list[Any]:
    sql = f"{numbers} INSERT INTO _asyncdl_events SELECT i, 'Noted', '', '{{}}', 1.0, i, i FROM n"
    return [Statement(sql, ())]
