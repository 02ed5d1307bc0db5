"""Training, datasets and validations on MongoDB's documents."""

from __future__ import annotations

import uuid

import pytest

import asyncdl
from asyncdl import Dataset, Listener, Metric, Model, Trainer, Validation
from asyncdl.errors import InvalidComponentError
from tests import fits

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["replica set", "standalone"])
async def db(request):
    server = request.getfixturevalue("mongodb_replica_set" if request.param == "replica set" else "mongodb_standalone")
    uri = f"{server.rpartition('/')[0]}/training_{uuid.uuid4().hex[:8]}"
    async with asyncdl.connect(uri) as db:
        yield db


async def test_documents_are_kept_trained_on_measured_and_followed(db):
    points = db["points"]
    documents = [{"at": {"x": float(n)}, "y": 5.0, "note": {"n": n}} for n in range(40)]
    await db.execute(points.insert_many(documents))
    known = Dataset("known", select=points.find(), valid_fraction=0.25)
    measured = Validation("v", datasets=known, metrics=Metric("error", fits.mean_error), key=("at.x", "y"))
    trainer = Trainer(select=known, key=("at.x", "y"))
    model = Model("mean", fits.Mean(), trainer=trainer, validation=measured)
    await db.add(Listener("means", model=model, key="at.x", select=points.find()), wait=True)
    assert await db.validations("mean") == {0: {"v": {"error": 0.0}}}
    rows = [row async for row in db.rows("known")]
    assert sorted(row["note"]["n"] for row in rows) == list(range(40))
    assert {type(row["_id"]).__name__ for row in rows} == {"ObjectId"}

    written = await db.execute(points.insert_one({"at": {"x": 1.0}, "y": 500.0}))
    await written.wait()
    await (await db.train("mean")).wait()  # on the same rows
    found = await (await db.execute(points.outputs("means").find())).to_list()
    assert [row["means"] for row in found] == [5.0] * 41
    [job] = await db.jobs.list(kind="materialize")
    assert job.state == "succeeded"
    await db.remove("listener", "means")
    await db.remove("model", "mean")
    await db.remove("validation", "v")
    await db.remove("dataset", "known")
    left = {sha256 async for sha256 in db.artifact_store.list()}
    assert left == {
        each for record in await db.metadata.components() for each in await db.metadata.artifacts(record.uuid)
    }


async def test_documents_without_their_key_are_no_dataset(db):
    await db.execute(db["points"].insert_one({"x": 1}))
    with pytest.raises(InvalidComponentError, match="primary key"):
        await db.add(Dataset("d", select=db["points"].find({}, {"_id": 0})))
    with pytest.raises(InvalidComponentError, match="must be a query"):
        Dataset("d", select=db["points"].count_documents({}))
