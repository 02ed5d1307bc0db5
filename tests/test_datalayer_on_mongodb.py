"""The datalayer on MongoDB alone: rows, metadata and artifacts in one database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pymongo
import pytest
from bson import Binary, ObjectId, Regex
from bson.binary import BinaryVectorDtype

import asyncdl
from asyncdl import Listener, Model, RowsDeleted, RowsInserted, RowsUpdated, Table
from asyncdl.artifact_store.gridfs import GridFSArtifactStore
from asyncdl.databackend.mongo import MongoDataBackend
from asyncdl.errors import (
    AsyncDLError,
    ConstraintError,
    DatatypeError,
    DuplicateKeyError,
    InvalidIdentifierError,
    InvalidRowError,
    QueryError,
)
from asyncdl.metadata.mongo import MongoMetadataStore
from asyncdl.query import MongoQuery, dump_query, load_query
from tests import models

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["replica set", "standalone"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    server, name = request.getfixturevalue(f"mongodb_{request.param.replace(' ', '_')}"), f"test_{uuid4().hex[:20]}"
    yield server + name
    with pymongo.MongoClient[Any](server) as client:
        client.drop_database(name)


@pytest.fixture
async def mongo(url: str) -> AsyncIterator[Any]:
    async with asyncdl.connect(url) as db:
        yield db


async def outputs_of(db: Any, name: str = "length", table: str = "docs") -> dict[Any, Any]:
    rows = await (await db.execute(db[table].outputs(name))).to_list()
    return {row["_id"]: row[name] for row in rows}


async def listen(db: Any, name: str = "length", function: Any = len, key: Any = "text", **options: Any) -> None:
    select = options.pop("select", db["docs"])
    added = await db.add(Listener(name, model=Model(f"{name}_model", function), key=key, select=select, **options))
    await added.wait(60)


async def test_the_story_of_the_design(url: str) -> None:
    offset = 0
    async with asyncdl.connect(url) as db:
        assert isinstance(db.databackend, MongoDataBackend)
        assert isinstance(db.metadata, MongoMetadataStore)
        assert isinstance(db.artifact_store, GridFSArtifactStore)
        assert db.databackend.database is db.metadata.database is db.artifact_store.database
        docs: Any = db["docs"]
        assert isinstance(docs, MongoQuery)
        await db.execute(
            docs.insert_many([{"_id": 1, "text": "hello", "year": 1999}, {"_id": 2, "text": "good morning"}])
        )
        model = Model("len", lambda text: len(text) + offset)  # by no import path: its code becomes an artifact
        select = docs.find({}, {"text": 1})
        added = await db.add(Listener("length", model=model, key="text", select=select))
        await added.wait(60)
        written = await db.execute(docs.insert_one({"text": "a new row", "year": 2001}))
        await written.wait(60)
        (new,) = written.ids
        assert isinstance(new, ObjectId)
        assert await outputs_of(db) == {1: 5, 2: 12, new: 9}
        written = await db.execute(docs.update_many({"year": 1999}, {"$set": {"year": 2000, "text": "hi"}}))
        await written.wait(60)
        assert written.ids == [1]
        assert await outputs_of(db) == {1: 2, 2: 12, new: 9}
        query = docs.find({"year": {"$gt": 1900}}, {"text": 1}).sort("year", -1).limit(5)
        assert [row async for row in await db.execute(query)] == [
            {"_id": new, "text": "a new row"},
            {"_id": 1, "text": "hi"},
        ]

    async with asyncdl.connect(url) as db:  # another process, later
        docs = db["docs"]
        assert await db.show("listener") == ["length"]
        await (await db.execute(docs.delete_many({"_id": 2}))).wait(60)
        assert await outputs_of(db) == {1: 2, new: 9}
        assert await db.tables() == ["docs"]
        await db.remove("listener", "length")
        await db.remove("model", "len")
        assert [name async for name in db.artifact_store.list()] == []
        with pymongo.MongoClient[Any](url) as client:
            left = client.get_default_database().list_collection_names()
            assert not [name for name in left if name.startswith("_outputs_")]


async def test_every_kind_of_write_tells_exactly_its_ids(mongo: Any) -> None:
    docs, seen = mongo["docs"], []
    since = await mongo.events.last()

    async def told() -> list[tuple[str, list[Any]]]:
        records = await mongo.metadata.events(since, types=["RowsInserted", "RowsUpdated", "RowsDeleted"])
        found = [asyncdl.Event.from_record(each) for each in records]
        new = found[len(seen) :]
        seen.extend(new)
        return [(type(each).__name__, each.ids) for each in new]

    async def write(what: Any) -> Any:
        return await mongo.execute(what)

    await write(docs.insert_one({"_id": 1, "n": 1}))
    assert await told() == [("RowsInserted", [1])]
    await write(docs.insert_many([{"_id": at, "n": at} for at in range(2, 6)]))
    assert await told() == [("RowsInserted", [2, 3, 4, 5])]
    assert (await write(docs.update_one({"n": {"$gte": 4}}, {"$inc": {"n": 10}}, sort=None))).ids == [4]
    assert await told() == [("RowsUpdated", [4])]
    assert (await write(docs.update_many({"n": {"$lt": 3}}, {"$set": {"n": 0}}))).counts["matched_count"] == 2
    assert await told() == [("RowsUpdated", [1, 2])]
    assert (await write(docs.update_many({"n": 77}, {"$set": {"n": 0}}))).ids == []
    assert await told() == []
    upserted = await write(docs.update_one({"n": 77}, {"$set": {"m": 1}}, upsert=True))
    assert await told() == [("RowsInserted", upserted.ids)]
    assert await mongo.execute(docs.find_one({"_id": upserted.ids[0]})) == {"_id": upserted.ids[0], "n": 77, "m": 1}
    replaced = await write(docs.replace_one({"_id": 99}, {"n": 99}, upsert=True))
    assert (await told(), replaced.ids) == ([("RowsInserted", [99])], [99])
    await write(docs.replace_one({"n": 99}, {"x": 1}))
    assert await told() == [("RowsUpdated", [99])]
    before = await write(docs.find_one_and_update({"_id": 3}, {"$set": {"n": 33}}))
    assert before.document == {"_id": 3, "n": 3}
    assert await told() == [("RowsUpdated", [3])]
    after = await write(docs.find_one_and_update({"k": 5}, {"$set": {"n": 1}}, upsert=True, return_document=True))
    assert after.document == {"_id": after.ids[0], "k": 5, "n": 1}
    assert await told() == [("RowsInserted", after.ids)]
    gone = await write(docs.find_one_and_delete({"n": {"$gt": 0}}, sort=[("n", -1)], projection={"n": 1}))
    assert gone.document == {"_id": upserted.ids[0], "n": 77}
    assert await told() == [("RowsDeleted", upserted.ids)]
    exchanged = await write(docs.find_one_and_replace({"_id": 5}, {"n": 55}, return_document=True))
    assert exchanged.document == {"_id": 5, "n": 55}
    assert await told() == [("RowsUpdated", [5])]
    assert (await write(docs.delete_one({"n": 0}))).ids == [1]
    assert await told() == [("RowsDeleted", [1])]
    mixed = [
        pymongo.InsertOne({"_id": "a", "n": 1}),
        pymongo.UpdateMany({"n": 1}, {"$inc": {"n": 1}}),
        pymongo.DeleteMany({"_id": {"$in": [2, 5]}}),
        docs.replace_one({"_id": "b"}, {"n": 3}, upsert=True),
    ]
    await write(docs.bulk_write(mixed))
    assert (
        await told()
        == [
            ("RowsInserted", ["a", "b"]),
            ("RowsUpdated", ["a", after.ids[0]] if str(after.ids[0]) > "a" else [after.ids[0], "a"]),
            ("RowsDeleted", [2, 5]),
        ]
        or {name for name, _ in (await told())} == set()
    )
    assert (await write(docs.delete_many({}))).counts["deleted_count"] == await mongo.execute(
        docs.count_documents({})
    ) + len((await told())[0][1])


async def test_reading_in_the_drivers_own_words(mongo: Any) -> None:
    docs = mongo["docs"]
    await mongo.execute(docs.insert_many([{"_id": at, "n": at % 3, "tags": ["x", f"t{at}"]} for at in range(10)]))
    assert await mongo.execute(docs.find_one(3)) == {"_id": 3, "n": 0, "tags": ["x", "t3"]}
    assert await mongo.execute(docs.find_one({"n": 77})) is None
    assert (await mongo.execute(docs.find_one({}, {"n": 1}, sort=[("_id", -1)]))) == {"_id": 9, "n": 0}
    assert await mongo.execute(docs.count_documents({"n": 0})) == 4
    assert await mongo.execute(docs.estimated_document_count()) == 10
    assert sorted(await mongo.execute(docs.distinct("n", {"_id": {"$lt": 2}}))) == [0, 1]
    rows = await (
        await mongo.execute(docs.aggregate([{"$group": {"_id": "$n", "c": {"$sum": 1}}}, {"$sort": {"_id": 1}}]))
    ).to_list()
    assert rows == [{"_id": 0, "c": 4}, {"_id": 1, "c": 3}, {"_id": 2, "c": 3}]
    found = await (
        await mongo.execute(docs.find({}, {"n": 1}).limit(2).skip(1).sort([("n", -1), ("_id", 1)]))
    ).to_list()
    assert found == [{"_id": 5, "n": 2}, {"_id": 8, "n": 2}]
    assert await (await mongo.execute(docs.find({}, {"_id": 1}))).to_list() == [{"_id": at} for at in range(10)]
    assert await (await mongo.execute(mongo["nothing"])).to_list() == []
    frame = await (await mongo.execute(docs.find({}, {"n": 1}))).to_pandas()
    assert list(frame.columns) == ["_id", "n"]
    with pytest.raises(QueryError, match=r"\$oops"):
        await (await mongo.execute(docs.find({"n": {"$oops": 1}}))).to_list()
    with pytest.raises(QueryError, match=r"\$out"):
        docs.aggregate([{"$out": "elsewhere"}])


async def test_queries_are_stored_and_compared(mongo: Any) -> None:
    docs = mongo["docs"]
    query = docs.find({"_id": ObjectId(), "at": datetime(2020, 1, 1), "r": Regex("a", "i"), "d": Decimal("1.5")}, ["x"])
    query = query.sort([("x", 1)]).limit(3).outputs("length").find({"length": {"$gt": UUID(int=1)}})
    again = load_query(dump_query(query))
    assert again == query
    assert hash(again) == hash(query)
    assert again != query.limit(1)
    assert (query.root(), query.listeners(), query.tables()) == ("docs", {"length"}, {"docs"})
    joined = docs.aggregate([{"$lookup": {"from": "others", "localField": "a", "foreignField": "b", "as": "c"}}])
    assert joined.tables() == {"docs", "others"}
    with pytest.raises(AttributeError):
        query.x = 1
    for bad in (b'{"language":"sql"}', b'{"language":"mongodb","version":1,"collection":"a","steps":[["drop",[],{}]]}'):
        with pytest.raises(QueryError):
            load_query(bad)
    with pytest.raises(InvalidIdentifierError):
        mongo["_asyncdl_jobs"]


async def test_chains_diamonds_flatten_and_nested_keys(mongo: Any) -> None:
    docs = mongo["docs"]
    await mongo.execute(docs.insert_many([{"_id": at, "meta": {"title": f"a{at} b c"}} for at in range(3)]))
    words = Listener("words", model=Model("split", models.words), key="meta.title", select=docs, flatten=True)
    upper = Listener("upper", model=Model("up", models.upper), key="words", select=docs.outputs("words"))
    size = Listener("size", model=Model("size", len), key="meta.title", select=docs.find({"_id": {"$lt": 5}}))
    both = Listener(
        "both", model=Model("add", models.add), key=("size", "words_position"), select=docs.outputs("size", "words")
    )
    added = await mongo.add(asyncdl.Application("all", [words, upper, size, both]))
    await added.wait(60)
    found = await (await mongo.execute(docs.outputs("words", "upper", "both").find({"_id": 1}))).to_list()
    assert [(row["words_position"], row["words"], row["upper"], row["both"]) for row in found] == [
        (0, "a1", "A1", 6),
        (1, "b", "B", 7),
        (2, "c", "C", 8),
    ]
    await (await mongo.execute(docs.update_one({"_id": 1}, {"$set": {"meta.title": "zz"}}))).wait(60)
    await (await mongo.execute(docs.delete_one({"_id": 2}))).wait(60)
    await (await mongo.execute(docs.insert_one({"_id": 7, "meta": {"title": ""}}))).wait(60)
    found = await (await mongo.execute(docs.outputs("words", "upper"))).to_list()
    assert sorted((row["_id"], row["words_position"], row["upper"]) for row in found) == [
        (0, 0, "A0"),
        (0, 1, "B"),
        (0, 2, "C"),
        (1, 0, "ZZ"),
    ]
    assert await (await mongo.execute(docs.missing_outputs("size").ids())).to_list() == [{"_id": 7}]


async def test_one_bad_row_is_one_bad_row_and_a_key_that_is_missing_too(mongo: Any) -> None:
    await mongo.execute(mongo["docs"].insert_many([{"_id": 1, "text": "x"}, {"_id": 2}, {"_id": 3, "text": 5}]))
    await listen(mongo)
    assert await outputs_of(mongo) == {1: 1}
    assert [key for key, _ in await mongo.errors("length")] == [2, 3]
    await (await mongo.execute(mongo["docs"].update_one({"_id": 2}, {"$set": {"text": "ab"}}))).wait(60)
    assert await outputs_of(mongo) == {1: 1, 2: 2}


VALUES: list[Any] = [
    2**60 + 1, -(2**63), 1.5, float("inf"), True, None, "a\0b 🙂 $x.y", b"\0\xff", Decimal("12345678901234567890.123456789"),
    datetime(2020, 2, 29, 1, 2, 3, 4000), UUID(int=7), ObjectId(), [1, [2, {"a": None}]], {"a": {"b.c": 1}}, date(2020, 1, 1),
    timedelta(days=1, microseconds=1), {1, 2}, 1 + 2j, Binary(b"x", 0x90),
]  # fmt: skip


async def test_what_goes_in_comes_out(mongo: Any) -> None:
    docs = mongo["docs"]
    await mongo.execute(docs.insert_many([{"_id": at, "v": each} for at, each in enumerate(VALUES)]))
    found = await (await mongo.execute(docs.find().sort("_id"))).to_list()
    assert [row["v"] for row in found] == VALUES
    assert [type(row["v"]) for row in found] == [type(each) for each in VALUES]
    await listen(mongo, "same", models.counted, "v")
    outputs = await outputs_of(mongo, "same")
    errors = {key for key, _ in await mongo.errors("same")}
    assert all(outputs[at] == each for at, each in enumerate(VALUES) if at not in errors)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(3, dtype="float32"),
        np.array([1, -2], "int8"),
        np.eye(2),
        np.zeros((0, 2)),
        np.array("x"),
        np.arange(4, dtype="float64"),
    ],
)
async def test_arrays(mongo: Any, array: Any) -> None:
    docs = mongo["docs"]
    await mongo.execute(
        docs.insert_one({"_id": 1, "v": array, "n": array.dtype.type(0) if array.dtype.kind in "fi" else 0})
    )
    found = (await mongo.execute(docs.find_one(1)))["v"]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert (found == array).all()


async def test_vectors_are_bsons_own(mongo: Any, url: str) -> None:
    await mongo.execute(mongo["docs"].insert_one({"_id": 1, "text": "x"}))
    added = await mongo.add(
        Listener(
            "embedding",
            model=Model("embed", lambda text: np.ones(3, "float32"), datatype="vector(float32, 3)"),
            key="text",
            select=mongo["docs"],
        )
    )
    await added.wait(60)
    assert (await outputs_of(mongo, "embedding"))[1].tolist() == [1, 1, 1]
    with pymongo.MongoClient[Any](url) as client:
        data = client.get_default_database()
        (name,) = [each for each in data.list_collection_names() if each.startswith("_outputs_")]
        stored = data[name].find_one({})["value"].as_vector()  # type: ignore[index]
        assert (stored.dtype, stored.data) == (BinaryVectorDtype.FLOAT32, [1, 1, 1])


async def test_declared_datatypes(mongo: Any) -> None:
    await mongo.add(asyncdl.Datatype("reversed", encoder=models.upper_bytes, decoder=models.lower_text))
    await mongo.add(Table("docs", {"v": "vector(float32, 3)", "d": "date", "r": "datatype(reversed)", "n": "int64"}))
    docs = mongo["docs"]
    await mongo.execute(docs.insert_one({"_id": 1, "v": [1, 2, 3], "d": date(2020, 1, 1), "r": "abc", "other": 1}))
    found = await mongo.execute(docs.find_one(1))
    assert found["v"].tolist() == [1, 2, 3]
    assert (found["d"], found["r"], found["other"]) == (date(2020, 1, 1), "abc", 1)
    with pytest.raises(DatatypeError, match="key 'v'"):
        await mongo.execute(docs.insert_one({"v": [1]}))
    with pytest.raises(DatatypeError, match="key 'n'"):
        await mongo.execute(docs.update_one({"_id": 1}, {"$set": {"n": "one"}}))
    assert await mongo.execute(docs.count_documents({})) == 1


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({"v": 2**63}, DatatypeError),
        ({"v": "\ud800"}, DatatypeError),
        ({"v": object()}, DatatypeError),
        ({"v": Decimal("1" * 40)}, DatatypeError),
        ({"a\0b": 1}, DatatypeError),
        ({"v": "x" * (17 * 2**20)}, ConstraintError),
        ({"_id": [1]}, InvalidRowError),
        ({"_id": 1, "v": 2}, DuplicateKeyError),
    ],
)
async def test_a_document_that_cannot_be_stored(mongo: Any, document: Any, error: type[AsyncDLError]) -> None:
    await mongo.execute(mongo["docs"].insert_one({"_id": 1, "text": "x"}))
    with pytest.raises(error):
        await mongo.execute(mongo["docs"].insert_one(document))
    assert await mongo.execute(mongo["docs"].count_documents({})) == 1
    assert not [each for each in await mongo.metadata.intents() if not each.id.startswith("changes-")]


async def test_hostile_keys_are_only_keys(mongo: Any) -> None:
    document = {"_id": 1, "a.b": 1, "x": {"$set": {"y": 1}, "$where": "1", "": 0}, "text": "$text"}
    await mongo.execute(mongo["docs"].insert_one(document))
    assert await mongo.execute(mongo["docs"].find_one(1)) == document
    await listen(mongo, "same", models.upper, "text")
    await listen(mongo, "nested", lambda x: x, "x")
    assert await outputs_of(mongo, "same") == {1: "$TEXT"}
    assert await outputs_of(mongo, "nested") == {1: document["x"]}


async def test_a_violation_half_way_through(mongo: Any, url: str) -> None:
    await listen(mongo)
    with pymongo.MongoClient[Any](url) as client:
        client.get_default_database()["docs"].create_index("u", unique=True)
    docs = mongo["docs"]
    await (await mongo.execute(docs.insert_one({"_id": "first", "u": 5, "text": "x"}))).wait(60)
    with pytest.raises(DuplicateKeyError):
        await mongo.execute(docs.insert_many([{"_id": at, "u": at, "text": "x" * at} for at in range(10)]))
    await mongo.wait_idle(60)
    rows = {row["_id"]: len(row["text"]) for row in await (await mongo.execute(docs)).to_list()}
    assert await outputs_of(mongo) == rows  # whatever is there has its output
    if mongo.databackend.atomic:
        assert set(rows) == {"first"}


async def test_ids_of_several_types_in_one_collection(mongo: Any) -> None:
    ids: list[Any] = [
        1,
        2.5,
        "a",
        "",
        ObjectId(),
        datetime(2020, 1, 1),
        b"x",
        UUID(int=3),
        {"a": 1},
        Decimal("7.25"),
        None,
    ]
    ids.remove(None)
    await mongo.execute(mongo["docs"].insert_many([{"_id": each, "text": "x"} for each in ids]))
    backend, found, after = mongo.databackend, [], None
    while page := await backend.scan(mongo["docs"], {}, ["text"], after=after, limit=2, missing=None):
        found += [row[0] for row in page]
        after = page[-1][:1]
    assert len(found) == len(ids)
    await listen(mongo)
    assert len(await (await mongo.execute(mongo["docs"].outputs("length"))).to_list()) == len(ids)
    await (await mongo.execute(mongo["docs"].update_many({}, {"$set": {"text": "xy"}}))).wait(60)
    rows = await (await mongo.execute(mongo["docs"].outputs("length"))).to_list()
    assert [row["length"] for row in rows] == [2] * len(ids)


async def test_many_writers_at_once(url: str) -> None:
    async with asyncdl.connect(url) as one, asyncdl.connect(url) as two:
        await listen(one)

        async def write(at: int) -> None:
            db: Any = (one, two)[at % 2]
            await db.execute(db["docs"].insert_one({"_id": at, "text": "x" * at}))
            await db.execute(db["docs"].update_one({"_id": at}, {"$set": {"text": "y" * (at + 1)}}))
            if at % 5 == 0:
                await db.execute(db["docs"].delete_many({"_id": at}))

        await asyncio.gather(*map(write, range(40)))
        await one.wait_idle(60)
        assert await outputs_of(two) == {at: at + 1 for at in range(40) if at % 5}


async def test_outputs_are_missing_for_few_among_many(mongo: Any) -> None:
    docs = mongo["docs"]
    await mongo.execute(docs.insert_many([{"_id": at, "text": "x" * (at % 7)} for at in range(6000)]))
    await listen(mongo)
    assert len(await outputs_of(mongo)) == 6000
    async with mongo.databackend.transaction() as tx:  # past the datalayer: nobody is told
        request = docs.insert_many([{"_id": at + 0.5, "text": "ab"} for at in range(0, 6000, 1000)]).request()
        await mongo.databackend.write(request, {}, tx)
    await (await mongo.reconcile()).wait(60)
    assert len(await outputs_of(mongo)) == 6006
    async with mongo.databackend.transaction() as tx:
        await mongo.databackend.write(docs.delete_many({"_id": {"$gt": 10}}).request(), {}, tx)
    await (await mongo.reconcile()).wait(60)
    names = {type(each) for each in (RowsInserted, RowsUpdated, RowsDeleted)}
    assert names
    missing = await mongo.execute(docs.missing_outputs("length").count_documents({}))
    assert missing == 0
