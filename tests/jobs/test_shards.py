"""Large backfills in shards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import asyncdl
from asyncdl import ComponentReady, Datalayer, Listener, Model
from asyncdl.errors import JobFailedError
from tests import models
from tests.conftest import rows_of
from tests.jobs.test_many_processes import exists, setup  # noqa: F401 - a fixture
from tests.postgresql import Server

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgresql", "two databases"])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Datalayer]:
    uri, settings = f"sqlite:///{tmp_path / 'app.db'}", {"artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("postgresql")
        uri = server.url(tmp_path)
    elif request.param == "two databases":
        settings["metadata_store"] = f"sqlite:///{tmp_path / 'meta.db'}"
    async with asyncdl.connect(uri, job_shard_rows=100, job_backoff=0.01, job_max_attempts=1, **settings) as db:
        yield db


async def filled(db: Datalayer, count: int) -> asyncdl.Query:
    rows = [{"id": (n * 7919) % 100_003, "x": n} for n in range(count)]
    for at in range(0, count, 5000):
        await db.execute(db["numbers"].insert(rows[at : at + 5000]))
    await db.wait_idle(60)
    return db["numbers"]


@pytest.mark.parametrize(("rows", "shards"), [(199, 0), (200, 2), (201, 3), (1000, 10), (1050, 11)])
async def test_a_large_backfill_is_split_and_a_small_one_is_not(db, rows, shards):
    t = await filled(db, rows)
    added = await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t))
    steps = [step async for step in added.progress()]
    assert steps[-1] == (rows, rows, "done")
    await added.wait()
    jobs = await db.jobs.list(kind="backfill")
    assert len(jobs) == 1 + shards
    assert sum(job.done for job in jobs) == rows
    assert [job.done for job in jobs if job.total] == [job.total for job in jobs if job.total]
    assert len([each for each in await db.events.read(0, ComponentReady) if each.type_id == "listener"]) == 1
    assert (await db.show("listener", "doubled", -1))["status"] == "ready"
    assert len([1 for _, x, y in await rows_of(db, t.outputs("doubled")) if y == 2 * x]) == rows
    assert await db.metadata.cursor(f"shards:{jobs[0].id}") is None


async def test_keys_of_several_columns(db):
    t = db["pairs"]
    await db.add(asyncdl.Table("pairs", {"a": "string", "b": "int64", "x": "int64"}, primary_key=("a", "b")))
    await db.execute(t.insert([{"a": "aBÄß"[n % 4] * (n % 3), "b": n, "x": n} for n in range(500)]))
    await db.wait_idle(60)
    await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t), wait=True)
    assert len(await db.jobs.list(kind="backfill")) == 6
    assert sorted(y for *_, y in await rows_of(db, t.outputs("doubled"))) == [2 * n for n in range(500)]


async def test_the_last_shard_completes_it_even_if_it_failed_before(db):
    t = await filled(db, 500)
    await db.execute(t.update({"x": -1}, where=t.x == 333))
    await db.wait_idle(60)
    models.broken = True
    added = await db.add(
        Listener("fragile", model=Model("fragile", models.breaks_on_negative, batch=True), key="x", select=t)
    )
    with pytest.raises(JobFailedError):
        await added.wait(60)
    [failed] = await db.jobs.list(state="failed")
    assert (await db.show("listener", "fragile", -1))["status"] == "failed"
    assert len(await rows_of(db, t.outputs("fragile"))) == 400
    models.broken = False
    await db.jobs.retry(failed.id)
    await added.wait(60)
    assert (await db.show("listener", "fragile", -1))["status"] == "ready"
    assert len(await rows_of(db, t.outputs("fragile"))) == 500
    assert len([each for each in await db.events.read(0, ComponentReady) if each.type_id == "listener"]) == 1


async def test_two_workers_share_a_backfill(setup):  # noqa: F811 - the fixture
    async with setup.writer() as db:
        import gating

        await asyncio.gather(*(setup.ready(name, job_shard_rows=100) for name in ("one", "two")))
        t = await filled(db, 300)
        added = await db.add(Listener("gated", model=Model("gated", gating.gated), key="x", select=t))
        for name in ("one", "two"):  # both have begun with theirs, before either has ended
            await exists(setup.path(name))
        running = await db.jobs.list(state="running")
        assert len({job.owner for job in running}) == 2
        for name in ("one", "two"):
            setup.path(f"{name}.gate").touch()
        await added.wait(60)
        assert len(await rows_of(db, t.outputs("gated"))) == 300
        assert len([each for each in await db.events.read(0, ComponentReady) if each.type_id == "listener"]) == 1
