"""An idle worker claims a job in the commit that makes it: one commit less between a row and its output."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import asyncdl
from asyncdl import Listener, Model
from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.metadata.base import JobFilter
from asyncdl.metadata.changes import Change, ClaimJob, PutJob
from asyncdl.metadata.records import EventRecord
from asyncdl.metadata.sql import SQLMetadataStore
from tests import models
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio


class Watched(SQLMetadataStore):
    """A store that keeps what was committed, and can be slow to answer who takes a job."""

    def __init__(self, path: Path) -> None:
        super().__init__(SQLiteDatabase(path))
        self.commits: list[tuple[Change, ...]] = []
        self.taken: asyncio.Event | None = None

    async def commit(self, *changes: Change, joining: Any = None) -> list[EventRecord]:
        found = await super().commit(*changes, joining=joining)
        self.commits.append(changes)
        if self.taken is not None and taken_in(changes):
            self.taken.set()
            await asyncio.Event().wait()
        return found


def taken_in(changes: tuple[Change, ...]) -> set[str]:
    """Return the jobs that a commit makes and claims."""
    made = {each.record.id for each in changes if isinstance(each, PutJob)}
    return made & {each.id for each in changes if isinstance(each, ClaimJob)}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Watched]:
    store = Watched(tmp_path / "meta.db")
    await store.open()
    yield store
    await store.aclose()


def connected(store: Watched, tmp_path: Path, **settings: Any) -> Any:
    artifacts = f"filesystem://{tmp_path / 'artifacts'}"
    return asyncdl.connect(
        f"sqlite:///{tmp_path / 'app.db'}", metadata_store=store, artifact_store=artifacts, **settings
    )


def doubled(db: Any, name: str = "doubled", model: Any = models.double) -> Listener:
    return Listener(name, model=Model(name, model), key="x", select=db["numbers"])


async def insert(db: Any, *ids: int) -> Any:
    return await db.execute(db["numbers"].insert([{"id": n, "x": n} for n in ids]))


async def idle(db: Any) -> None:
    """Wait until the worker has found that there is nothing to claim."""
    await db.wait_idle(60)
    while not db._runner._waits:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)


async def insert_until_taken(db: Any, store: Watched, first: int) -> int:
    """Insert row after row until a job is taken: the worker may just be looking for others. Return the next row's id."""
    store.commits.clear()
    while not any(map(taken_in, store.commits)):
        await idle(db)
        await (await insert(db, first)).wait(60)
        first += 1
    return first


async def test_an_idle_worker_claims_a_job_in_the_commit_that_makes_it(store: Watched, tmp_path: Path) -> None:
    async with connected(store, tmp_path) as db:
        await insert(db, 1)
        await db.add(doubled(db), wait=True)
        end = await insert_until_taken(db, store, 2)
        [[taken]] = filter(None, map(taken_in, store.commits))
        claims = [each.id for changes in store.commits for each in changes if isinstance(each, ClaimJob)]
        assert claims.count(taken) == 1
        found = await rows_of(db, db["numbers"].outputs("doubled").select("id", "doubled"))
        assert found == [(n, 2 * n) for n in range(1, end)]


async def test_a_worker_with_one_place_never_has_two_jobs(store: Watched, tmp_path: Path) -> None:
    models.inside.clear()
    async with connected(store, tmp_path, job_concurrency=1) as db:
        await insert(db, 1)
        for name in ("a", "b", "c"):
            await db.add(doubled(db, name, models.inside_now), wait=True)
        for n in range(2, 12):
            await idle(db)
            await insert(db, n)
        await db.wait_idle(60)
        assert max(models.inside) == 1
        for name in ("a", "b", "c"):
            assert len(await rows_of(db, db["numbers"].outputs(name).select("id", name))) == 11


async def test_what_a_busy_worker_plans_is_left_to_whoever_is_free(store: Watched, tmp_path: Path) -> None:
    models.gate.set()
    async with connected(store, tmp_path) as db:
        await insert(db, 1)
        await db.add(doubled(db, "gated", models.gated), wait=True)
        await idle(db)
        models.gate.clear()
        models.began.clear()
        await insert(db, 2)
        await asyncio.to_thread(models.began.wait, 60)
        store.commits.clear()
        await insert(db, 3)
        seen = 0
        while not any(isinstance(each, PutJob) for changes in store.commits for each in changes):
            seen = await store.wait_for_commits(seen, "work")
        assert not any(map(taken_in, store.commits))
        models.gate.set()
        await db.wait_idle(60)


async def test_the_jobs_of_a_paused_listener_are_planned_and_put_aside(store: Watched, tmp_path: Path) -> None:
    async with connected(store, tmp_path) as db:
        await insert(db, 1)
        await db.add(doubled(db), wait=True)
        await db.pause("listener", "doubled")
        for n in (2, 3):
            await idle(db)
            store.commits.clear()
            await insert(db, n)
            await db.wait_idle(60)
            assert not any(map(taken_in, store.commits))
        assert {job.state for job in await db.jobs.list(target=(await db.load("listener", "doubled")).uuid)} == {
            "succeeded",
            "paused",
        }
        await db.resume("listener", "doubled")
        end = await insert_until_taken(db, store, 4)  # as before it was paused
        assert len(await rows_of(db, db["numbers"].outputs("doubled").select("id", "doubled"))) == end - 1


async def test_a_job_taken_as_the_datalayer_closes_goes_back_to_the_queue(store: Watched, tmp_path: Path) -> None:
    async with connected(store, tmp_path) as db:
        await insert(db, 1)
        await db.add(doubled(db), wait=True)
        store.taken, end = asyncio.Event(), 2
        taken = asyncio.ensure_future(store.taken.wait())  # it is committed, and its answer never comes
        while not taken.done():
            await idle(db)
            written = asyncio.ensure_future((await insert(db, end)).wait(60))
            await asyncio.wait({taken, written}, return_when=asyncio.FIRST_COMPLETED)
            written.cancel()
            end += 1
        await db.aclose()
        store.taken = None
    [job] = await store.jobs(JobFilter(states=["pending", "running"]))
    assert (job.state, job.attempts, job.owner) == ("pending", 0, None)
    async with connected(store, tmp_path) as db:
        await db.wait_idle(60)
        found = await rows_of(db, db["numbers"].outputs("doubled").select("id", "doubled"))
        assert found == [(n, 2 * n) for n in range(1, end)]
