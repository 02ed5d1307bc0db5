"""The datalayer with its models on Dask: two worker processes beside the test."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

import asyncdl
from asyncdl import Listener, Model
from asyncdl.errors import ModelError
from tests import models
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def stores(tmp_path):
    return {
        "databackend": f"sqlite:///{tmp_path / 'app.db'}",
        "artifact_store": f"filesystem://{tmp_path / 'artifacts'}",
    }


async def test_a_listener_over_many_rows(stores, dask_cluster):
    offset = 3

    def model(x):
        time.sleep(0.0001)  # long enough for a second batch to be under way beside the first
        return [x + offset, os.getpid()]

    async with asyncdl.connect(**stores, compute=dask_cluster.url) as db:
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n} for n in range(10_000)]))
        await db.add(Listener("moved", model=Model("move", model, datatype="json"), key="x", select=t), wait=True)
        rows = await (await db.execute(t.outputs("moved"))).to_list()
        assert sorted((row["id"], row["moved"][0]) for row in rows) == [(n, n + 3) for n in range(10_000)]
        assert {row["moved"][1] for row in rows} == {each.pid for each in dask_cluster.workers}

        written = await db.execute(t.insert({"id": 10_000, "x": -1}))
        await written.wait()
        [row] = await (await db.execute(t.outputs("moved").filter(t.id == 10_000))).to_list()
        assert row["moved"][0] == 2


async def test_coroutine_models_and_bad_rows(stores, dask_cluster):
    async with asyncdl.connect(**stores, compute=dask_cluster.url) as db:
        t = db["numbers"]
        await db.execute(t.insert([{"id": n, "x": n - 1} for n in range(100)]))
        await db.add(Listener("slow", model=Model("slowly", models.slowly), key="x", select=t), wait=True)
        await db.add(Listener("picky", model=Model("picky", models.fails_on_negative), key="x", select=t), wait=True)
        assert len(await rows_of(db, t.outputs("slow"))) == 100
        [(key, error)] = await db.errors("picky")
        assert (key, error.message) == (0, "-1 is negative")
        assert await db.predict("slowly", 1) == 101


async def test_concurrent_predictions_are_few_batches(stores, dask_cluster):
    def sized(xs):
        if min(xs) < 0:
            raise ValueError("negative")
        return [[x, len(xs)] for x in xs]

    async with asyncdl.connect(**stores, compute=dask_cluster.url) as db:
        await db.add(Model("sized", sized, batch=True, datatype="json"))
        found = await asyncio.gather(*(db.predict("sized", n) for n in range(300)))
        assert [x for x, _ in found] == list(range(300))
        assert {size for _, size in found} == {256, 44}
        bad, good = await asyncio.gather(db.predict("sized", -1), db.predict("sized", 1), return_exceptions=True)
        assert isinstance(bad, ModelError)
        assert good == [1, 1]  # computed once more, alone


async def test_a_cluster_of_our_own(stores):
    async with asyncdl.connect(**stores, compute="dask://?workers=1&threads=2") as db:
        await db.add(Model("double", models.double))
        assert await db.predict("double", 4) == 8
        assert "dask://" in repr(db)
