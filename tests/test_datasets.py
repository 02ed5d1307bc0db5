"""Datasets: pinned, sampled, folded; metrics and validations on them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import asyncdl
from asyncdl import Dataset, Metric, Model, ModelValidated, Table, Trainer, Validation
from asyncdl.errors import (
    ComponentInUseError,
    ComponentNotFoundError,
    ComponentNotReadyError,
    InvalidComponentError,
    JobFailedError,
    UnknownColumnError,
)
from tests import fits

pytestmark = pytest.mark.anyio


async def numbers(db, count):
    rows = [{"id": n, "x": float(n), "y": float(2 * n)} for n in range(count)]
    if rows:
        await db.execute(db["numbers"].insert(rows))
    return db["numbers"]


async def ids(db, name, fold=None):
    return [row["id"] async for row in db.rows(name, fold)]


async def stored(db):
    return {sha256 async for sha256 in db.artifact_store.list()}


async def test_a_dataset_stays_as_it_was(db):
    t = await numbers(db, 10)
    await db.add(Dataset("few", select=t.filter(t.x < 5).order_by(t.id.desc())), wait=True)
    before = [row async for row in db.rows("few")]
    await db.execute(t.update({"x": -1.0}, where=True))
    await db.execute(t.delete(where=t.id == 3))
    await db.execute(t.insert({"id": 50, "x": 0.0, "y": 0.0}))
    assert [row async for row in db.rows("few")] == before
    assert before[0] == {"id": 4, "x": 4.0, "y": 8.0}
    assert [row["id"] for row in before] == [4, 3, 2, 1, 0]
    assert not (await db.add(Dataset("few", select=t.filter(t.x < 5).order_by(t.id.desc())))).created
    assert (await db.show("dataset", "few", -1))["state"]["rows"] == {"train": 5, "valid": 0}


async def test_folds_follow_from_keys_and_seed_and_not_from_chance(db, tmp_path):
    t = await numbers(db, 2000)
    await db.add(Dataset("a", select=t, valid_fraction=0.3), wait=True)
    await db.add(Dataset("other_seed", select=t, valid_fraction=0.3, seed=1), wait=True)
    train, valid = await ids(db, "a", "train"), await ids(db, "a", "valid")
    assert sorted(train + valid) == list(range(2000))
    assert 500 < len(valid) < 700
    assert set(valid) != set(await ids(db, "other_seed", "valid"))
    # in another database, with rows that come and go, in another order, each row is where it was
    async with asyncdl.connect(
        f"sqlite:///{tmp_path / 'b.db'}", artifact_store=f"filesystem://{tmp_path / 'b'}"
    ) as other:
        await other.execute(other["numbers"].insert([{"id": n, "x": 0.0, "y": 0.0} for n in range(2999, 0, -1)]))
        await other.add(Dataset("b", select=other["numbers"], valid_fraction=0.3), wait=True)
        there = set(await ids(other, "b", "valid"))
        assert {id for id in there if id < 2000} == set(valid) - {0}


async def test_samples_have_their_size_and_are_the_same_again(db):
    t = await numbers(db, 3000)
    for name, seed in (("a", 0), ("again", 0), ("other", 1)):
        await db.add(Dataset(name, select=t, sample=100, seed=seed), wait=True)
    found = {name: set(await ids(db, name)) for name in ("a", "again", "other")}
    assert {len(each) for each in found.values()} == {100}
    assert found["a"] == found["again"] != found["other"]
    await db.execute(t.insert([{"id": n, "x": 0.0, "y": 0.0} for n in range(3000, 3100)]))
    await db.add(Dataset("later", select=t, sample=100), wait=True)
    assert len(found["a"] & set(await ids(db, "later"))) > 90  # new rows move few others
    await db.add(Dataset("all", select=t, sample=10_000), wait=True)
    assert len(await ids(db, "all")) == 3100


async def test_an_empty_dataset_and_values_of_all_kinds(db):
    await db.add(Table("things", {"id": "string", "at": "timestamp", "v": "vector(float32, 3)", "n": "decimal(10, 2)"}))
    t = db["things"]
    await db.add(Dataset("none", select=t), wait=True)
    assert await ids(db, "none") == []
    from datetime import datetime
    from decimal import Decimal

    row = {"id": "a\nb", "at": datetime(2026, 1, 2), "v": np.array([1, 2, 3], "float32"), "n": Decimal("1.50")}
    await db.execute(t.insert(row))
    await db.add(Dataset("one", select=t), wait=True)
    [found] = [row async for row in db.rows("one")]
    assert {**found, "v": found["v"].tolist()} == {**row, "v": [1.0, 2.0, 3.0]}
    assert found["v"].dtype == np.float32


async def test_artifacts_come_in_parts_and_go_with_the_dataset(db, monkeypatch):
    monkeypatch.setattr("asyncdl.jobs.materializing._CHUNK", 10_000)
    t = await numbers(db, 5000)
    await db.add(Dataset("large", select=t, valid_fraction=0.5), wait=True)
    shown = await db.show("dataset", "large", -1)
    assert len(shown["artifacts"]) == 10  # a page is not divided
    assert sorted(await ids(db, "large")) == list(range(5000))
    assert await stored(db) == set(shown["artifacts"])
    await db.remove("dataset", "large")
    assert await stored(db) == set()


async def test_memory_does_not_grow_with_rows(db, monkeypatch):
    monkeypatch.setattr("asyncdl.jobs.materializing._CHUNK", 200_000)

    async def peak(count):
        name = f"rows{count}"
        await db.execute(db[name].insert([{"id": n, "text": "x" * 100} for n in range(count)]))
        tracemalloc.start()
        await db.add(Dataset(name, select=db[name], valid_fraction=0.5), wait=True)
        read = 0
        async for _ in db.rows(name):
            read += 1
        assert read == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    await peak(100)  # what is imported and compiled at first
    small, large = await peak(10_000), await peak(40_000)
    assert large < 2 * small


async def test_what_a_dataset_must_be(db):
    t = await numbers(db, 3)
    for wrong in ({"sample": 0}, {"valid_fraction": 1.0}, {"valid_fraction": -0.1}, {"select": "numbers"}):
        with pytest.raises(InvalidComponentError):
            Dataset("d", **{"select": t, **wrong})
    with pytest.raises(InvalidComponentError, match="primary key"):
        await db.add(Dataset("d", select=t.select("x")))
    with pytest.raises(ComponentNotFoundError):
        await ids(db, "d")


# validation


def validation(db, name="v", **options):
    data = Dataset("data", select=db["numbers"], valid_fraction=0.5)
    metrics = [Metric("error", fits.mean_error), Metric("largest", fits.largest_error, kwargs={"scale": 10})]
    return Validation(name, **{"datasets": data, "metrics": metrics, "key": ("x", "y"), **options})


async def test_a_model_without_training_is_validated_on_add_and_by_request(db):
    await numbers(db, 20)
    await db.add(Model("same", lambda x: 2 * x + 1, validation=validation(db)), wait=True)
    expected = {"error": 1.0, "largest": 10.0}
    assert await db.validations("same") == {0: {"v": expected}}
    [event] = await db.events.read(0, ModelValidated)
    assert (event.identifier, event.validation, event.metrics) == ("same", "v", expected)
    assert await db.validate("same") == expected
    assert await db.validate("same", "v") == expected
    with pytest.raises(ComponentInUseError, match="same"):
        await db.remove("validation", "v")


async def test_versions_are_compared(db):
    await numbers(db, 20)
    v = validation(db)
    await db.add(Model("model", lambda x: 2 * x + 3, validation=v), wait=True)
    await db.add(Model("model", lambda x: 2 * x + 2, validation=v), wait=True)
    other = validation(db, "other", metrics=[Metric("error", fits.mean_error)])
    assert await db.validate("model", other) == {"error": 2.0}
    assert await db.validations("model") == {
        0: {"v": {"error": 3.0, "largest": 30.0}},
        1: {"v": {"error": 2.0, "largest": 20.0}, "other": {"error": 2.0}},
    }


async def test_several_datasets_and_keys(db):
    t = await numbers(db, 20)
    data = [Dataset(name, select=t.filter(t.x < most)) for name, most in (("few", 5), ("more", 10))]
    metric = Metric("error", fits.mean_error)
    await db.add(Model("sum", lambda x, y: x + y), wait=True)
    two = Validation("two", datasets=data, metrics=metric, key=(("x", "y"), "y"))
    assert await db.validate("sum", two) == {"few/error": 2.0, "more/error": 4.5}
    await db.add(Model("named", lambda *, left, right: left + right), wait=True)
    named = Validation("named", datasets=data[0], metrics=metric, key=({"left": "x", "right": "y"}, "y"))
    assert await db.validate("named", named) == {"error": 2.0}


async def test_a_validation_that_fails_says_why_and_its_model_is_ready(db):
    await numbers(db, 20)

    def unable(x):
        raise ValueError("unable")

    added = await db.add(Model("unable", unable, validation=validation(db)))
    with pytest.raises(JobFailedError, match="unable"):
        await added.wait()
    await db.add(Model("able", lambda x: x), wait=True)
    nonsense = Metric("nonsense", lambda targets, outputs: "good")
    with pytest.raises(JobFailedError, match="not a number"):
        await db.validate("able", validation(db, "nonsense", metrics=[nonsense]))
    with pytest.raises(JobFailedError, match="nothing"):
        await db.validate("able", validation(db, "nothing", key=("x", "nothing")))
    with pytest.raises(InvalidComponentError, match="declares no validation"):
        await db.validate("able")
    with pytest.raises(ComponentNotFoundError):
        await db.validate("nobody")
    assert await db.validations("able") == {0: {}}


async def test_a_dataset_that_cannot_be_read_fails_what_is_trained_on_it(db):
    t = await numbers(db, 5)

    async def broken(*args, **kwargs):
        raise RuntimeError("the disk is full")

    data = Dataset("data", select=t)
    put, db.artifact_store.put = db.artifact_store.put, broken
    model = Model("mean", fits.mean_error, trainer=Trainer(select=data, key=("x", "y"), fit=fits.of_means))
    added = await db.add(model)
    with pytest.raises(JobFailedError, match="the disk is full"):
        await added.wait()
    await db.wait_idle()
    assert {each.type_id: each.status for each in await db.metadata.components() if each.type_id != "table"} == {
        "dataset": "failed",
        "model": "failed",
    }
    with pytest.raises(ComponentNotReadyError):
        await ids(db, "data")
    [job] = await db.jobs.list(kind="train")
    assert (job.state, "dataset 'data'" in (job.error or "")) == ("upstream_failed", True)
    db.artifact_store.put = put
    [failed] = await db.jobs.list(kind="materialize")
    await db.jobs.retry(failed.id)
    await db.wait_idle()
    assert await db.predict("mean", [0.0]) == [4.0]
    assert await db.jobs.list(state=["failed", "upstream_failed"]) == []


async def test_validations_that_make_no_sense(db):
    t = await numbers(db, 3)
    for wrong in ({"datasets": []}, {"metrics": []}, {"datasets": [t]}, {"key": "x"}, {"key": ("x", 3)}):
        with pytest.raises(InvalidComponentError):
            validation(db, **wrong)
    with pytest.raises(InvalidComponentError, match="not callable"):
        Metric("m", 3)
    with pytest.raises(InvalidComponentError, match="two have one name"):
        validation(db, metrics=[Metric("m", len), Metric("m", abs)])
    with pytest.raises(UnknownColumnError):
        await db.add(Dataset("d", select=t.filter(t.nothing == 3)))
