"""Trainings on a real Dask cluster, whose workers are killed."""

from __future__ import annotations

import pytest

import asyncdl
from asyncdl import Listener, MetricReported, Model, Trainer
from asyncdl.errors import JobFailedError
from tests import fits
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio


def declared(db, fit, **options):
    trainer = Trainer(select=db["numbers"], key=("x", "y"), fit=fit, **options)
    model = Model("mean", fits.Mean(), trainer=trainer)
    return Listener("means", model=model, key="x", select=db["numbers"].select("id", "x"))


@pytest.fixture
def where(tmp_path):
    return {
        "databackend": f"sqlite:///{tmp_path / 'app.db'}",
        "artifact_store": f"filesystem://{tmp_path / 'artifacts'}",
    }


async def insert(db):
    await db.execute(db["numbers"].insert([{"id": n, "x": float(n), "y": 15.0} for n in range(4)]))


async def check(db):
    assert [event.done for event in await db.events.read(0, MetricReported)][-1] == 6
    outputs = await rows_of(db, db["numbers"].outputs("means").select("id", "means"))
    assert outputs == [(id, 15.0) for id in range(4)]
    shown = await db.show("model", "mean", -1)
    assert {sha256 async for sha256 in db.artifact_store.list()} == set(shown["artifacts"])


@pytest.mark.parametrize("on", ["thread", "process"])
async def test_training_on_a_worker_reports_and_keeps_checkpoints(where, dask_cluster, tmp_path, on):
    async with asyncdl.connect(**where, compute=dask_cluster.url) as db:
        await insert(db)
        log = tmp_path / "log"
        await db.add(declared(db, fits.epochs, on=on, kwargs={"log": str(log)}), wait=True)
        assert log.read_text().split() == list("012345")
        await check(db)


async def test_a_coroutine_function_trains_on_a_workers_loop(where, dask_cluster):
    async with asyncdl.connect(**where, compute=dask_cluster.url) as db:
        await insert(db)
        await db.add(declared(db, fits.epochs_on_loop, kwargs={"count": 6}), wait=True)
        await check(db)


async def test_a_training_that_fails_on_a_worker_says_why(where, dask_cluster):
    async with asyncdl.connect(**where, compute=dask_cluster.url, job_max_attempts=1) as db:
        await insert(db)
        with pytest.raises(JobFailedError, match="nothing to be learned"):
            await db.add(declared(db, fits.fails), wait=True)


async def test_a_worker_that_is_killed_in_a_training_costs_no_epoch_that_was_kept(where, dask, tmp_path):
    dask.start_worker(ASYNCDL_TEST_HANG_AFTER="3")
    log = tmp_path / "log"
    async with asyncdl.connect(**where, compute=dask.url) as db:
        await insert(db)
        added = await db.add(declared(db, fits.epochs, kwargs={"log": str(log)}))
        seen = 0
        while len(await db.events.read(0, MetricReported)) < 4:
            seen = await db.metadata.wait_for_commits(seen, "events")
        dask.kill_workers()
        dask.start_worker()
        await added.wait()
        assert log.read_text().split() == list("012345")
        await check(db)
