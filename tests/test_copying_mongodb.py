"""Moving between MongoDB databases, and between MongoDB and databases that ibis queries."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pymongo
import pytest
from bson import Code, Int64, ObjectId, Regex, Timestamp
from bson.binary import Binary
from bson.raw_bson import RawBSONDocument

import asyncdl
from asyncdl import Application, Datalayer, Listener, Model, Table
from asyncdl.copying import copy
from asyncdl.errors import AsyncDLError, ConfigurationError, DatatypeError, InvalidIdentifierError
from tests import models
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio

CALLS: list[Any] = []


def words(text: str) -> list[str]:
    CALLS.append(text)
    return text.split()


class Places:
    """Databases of a test's own, on both servers."""

    def __init__(self, replica_set: str, standalone: str, folder: Path) -> None:
        self.servers = {"replica set": replica_set, "standalone": standalone}
        self.made: list[tuple[str, str]] = []
        self.folder = folder

    def uri(self, kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{self.folder / uuid4().hex}.db"
        name = f"test_copy_{uuid4().hex[:20]}"
        self.made.append((self.servers[kind], name))
        return self.servers[kind] + name

    def connect(self, uri: str) -> Any:
        return asyncdl.connect(uri, **self.artifacts(uri))

    def artifacts(self, uri: str) -> dict[str, str]:
        if uri.startswith("mongodb"):
            return {}
        return {"artifact_store": f"filesystem://{self.folder / Path(uri).stem}"}


@pytest.fixture
def places(mongodb_replica_set: str, mongodb_standalone: str, tmp_path: Path) -> Iterator[Places]:
    found = Places(mongodb_replica_set, mongodb_standalone, tmp_path)
    yield found
    for server, name in found.made:
        with pymongo.MongoClient[Any](server) as client:
            client.drop_database(name)


def raw(uri: str, table: str = "docs") -> list[bytes]:
    """Return a collection's documents, byte by byte."""
    with pymongo.MongoClient[Any](uri, document_class=RawBSONDocument) as client:
        return [each.raw for each in client.get_default_database()[table].find(sort=[("_id", 1)])]


async def fill(db: Datalayer, count: int = 1500) -> None:
    docs: Any = db["docs"]
    texts = ["one two three", "", "four bad five"] + [f"row number {number}" for number in range(count)]
    await db.execute(docs.insert_many([{"_id": at, "text": text} for at, text in enumerate(texts)]))
    factor = 2
    split = Listener("word", model=Model("split", words, datatype="string"), key="text", select=docs, flatten=True)

    def length(word: str) -> int:  # by value: an artifact
        if word == "bad":
            raise ValueError("a bad word")
        return len(word) * factor

    longer = Listener("length", model=Model("len", length, datatype="int64"), key="word", select=docs.outputs("word"))
    await db.add(Application("app", [split, longer]), wait=True)


async def outputs_of(db: Any) -> list[Any]:
    rows = await (await db.execute(db["docs"].outputs("word", "length"))).to_list()
    return sorted((row["_id"], row["word_position"], row["word"], row["length"]) for row in rows)


# between MongoDB databases


@pytest.mark.parametrize("kind", ["replica set", "standalone"])
async def test_several_copies_at_once_are_one(places: Places, kind: str) -> None:
    uri = places.uri(kind)
    async with places.connect(places.uri("standalone")) as source:
        await fill(source, 200)

        async def one() -> None:
            async with places.connect(uri) as target, aclosing(copy(source, target)) as copied:
                async for _ in copied:
                    pass

        await asyncio.gather(*(one() for _ in range(3)))
        async with places.connect(uri) as target:
            await target.wait_idle(timeout=60)
            assert await outputs_of(target) == await outputs_of(source)
            assert await target.show() == await source.show()


@pytest.mark.parametrize(("one", "two"), [("replica set", "standalone"), ("standalone", "replica set")])
async def test_all_of_a_database_is_copied(places: Places, one: str, two: str) -> None:
    async with places.connect(places.uri(one)) as source, places.connect(places.uri(two)) as target:
        await fill(source)
        CALLS.clear()
        copied = [each async for each in copy(source, target)]
        assert {(each.what, each.name): each.count for each in copied if each.what != "artifact"} == {
            ("table", "docs"): 1503,
            ("outputs", "word"): 1502,
            ("outputs", "length"): 3 * 1502 - 1,
            ("component", "model/split"): 1,
            ("component", "model/len"): 1,
            ("component", "listener/word"): 1,
            ("component", "listener/length"): 1,
            ("component", "application/app"): 1,
        }
        await target.wait_idle(timeout=60)
        assert CALLS == [""], "only what had no output is computed"
        assert await outputs_of(target) == await outputs_of(source)
        assert await target.show("listener", "length", -1) == await source.show("listener", "length", -1)
        docs = target["docs"]
        await (await target.execute(docs.insert_one({"_id": 9000, "text": "more"}))).wait(60)
        await (await target.execute(docs.update_one({"_id": 0}, {"$set": {"text": "changed"}}))).wait(60)
        rows = {each[0]: each[1:] for each in await outputs_of(target)}
        assert (rows[0], rows[9000]) == ((0, "changed", 14), (0, "more", 8))


async def test_a_copy_that_was_interrupted_is_ended_by_another(places: Places) -> None:
    async with places.connect(places.uri("replica set")) as source:
        await fill(source, 50)
        async with places.connect(places.uri("replica set")) as target:
            steps = len([each async for each in copy(source, target)])
        for stop in range(steps):
            async with places.connect(places.uri("replica set")) as target:
                interrupted: Any = copy(source, target)
                for _ in range(stop + 1):
                    await anext(interrupted)
                await interrupted.aclose()
                [each async for each in copy(source, target)]
                await target.wait_idle(timeout=60)
                assert await outputs_of(target) == await outputs_of(source)


async def test_documents_are_the_same_in_every_bit(places: Places) -> None:
    one, two = places.uri("replica set"), places.uri("standalone")
    ids: list[Any] = [1, Int64(2), 2.5, "a", "", ObjectId(), datetime(2020, 1, 1), b"x", {"b": 1, "a": Int64(1)}, True]
    values: list[Any] = [
        Int64(1), 1, 1.0, float("nan"), -0.0, Regex("a.*", "i"), Code("x", {"y": 1}), Timestamp(1, 2), Binary(b"x", 0x90),
        Binary(b"\x27\x00\x00\x00\x80?", 9), {"$set": {"a.b": 1}, "": [None, {"": []}]}, "x" * 3_000_000, datetime(1, 1, 1),
    ]  # fmt: skip
    with pymongo.MongoClient[Any](one) as client:
        documents = [{"_id": each, "v": values} for each in ids] + [
            {"_id": 100 + n, "v": each} for n, each in enumerate(values)
        ]
        for each in documents:
            client.get_default_database()["docs"].insert_one(each)
    async with places.connect(one) as source, places.connect(two) as target:
        for _ in range(2):
            assert [each.count async for each in copy(source, target)] == [len(documents)]
            assert raw(two) == raw(one)
        await target.execute(target["docs"].update_many({}, {"$set": {"v": 0}}))
        [each async for each in copy(source, target)]
        assert raw(two) == raw(one)


async def test_what_is_declared_goes_along(places: Places) -> None:
    async with places.connect(places.uri("replica set")) as source, places.connect(places.uri("standalone")) as target:
        await source.add(asyncdl.Datatype("reversed", encoder=models.upper_bytes, decoder=models.lower_text))
        await source.add(Table("docs", {"v": "vector(float32, 3)", "d": "date", "r": "datatype(reversed)"}))
        document = {"_id": 1, "v": np.ones(3, "float32"), "d": date(2020, 1, 1), "r": "abc"}
        await source.execute(source["docs"].insert_one(document))
        [each async for each in copy(source, target)]
        found = await target.execute(target["docs"].find_one(1))
        assert (found["v"].tolist(), found["d"], found["r"]) == ([1, 1, 1], date(2020, 1, 1), "abc")
        with pytest.raises(DatatypeError, match="key 'd'"):
            await target.execute(target["docs"].insert_one({"d": "soon"}))
        async with places.connect(places.uri("standalone")) as another:
            await another.add(Table("docs", {"d": "timestamp"}))
            with pytest.raises(ConfigurationError, match="'docs' declared already, and otherwise"):
                await anext(copy(source, another, rows_only=True))


# between languages


async def test_listeners_of_another_language_are_refused_by_name(places: Places) -> None:
    async with places.connect(places.uri("replica set")) as one, places.connect(places.uri("sqlite")) as two:
        await fill(one)
        with pytest.raises(ConfigurationError, match=r"listener 'length', listener 'word' select.*--rows-only"):
            await anext(copy(one, two))
        assert (await two.tables(), await two.show()) == ([], [])
        assert [(each.what, each.name, each.count) async for each in copy(one, two, rows_only=True)] == [
            ("table", "docs", 1503)
        ]
        assert await two.show() == []
        added = await two.add(Listener("size", model=Model("len", len), key="text", select=two["docs"]))
        await added.wait(60)
        assert len(await rows_of(two, two["docs"].outputs("size"))) == 1503
        async with places.connect(places.uri("standalone")) as three:
            with pytest.raises(ConfigurationError, match="listener 'size' select"):
                await anext(copy(two, three))
            assert (await three.tables(), await three.show()) == ([], [])


async def test_models_and_artifacts_go_to_another_language(places: Places) -> None:
    factor = 3
    async with places.connect(places.uri("sqlite")) as one, places.connect(places.uri("standalone")) as two:
        await one.add(Model("times", lambda x: x * factor), wait=True)
        [each async for each in copy(one, two)]
        assert await two.predict("times", 14) == 42


ROWS: dict[str, list[Any]] = {
    "i": [2**60 + 1, -(2**63), None],
    "f": [float("inf"), -0.0, 1.5],
    "b": [True, False, None],
    "s": ["", "a\0b 🙂", "'; DROP TABLE t; --"],
    "y": [b"", b"\0\xff", None],
    "d": [Decimal("0.10"), Decimal("12345678901234567890.123456789"), None],
    "t": [datetime(2020, 2, 29, 1, 2, 3, 4000), datetime(1, 1, 1), None],
    "z": [datetime(2020, 2, 29, 1, 2, 3, 4000, tzinfo=UTC), None, datetime(2, 1, 1, tzinfo=UTC)],
    "day": [date(2020, 1, 1), date.min, None],
    "clock": [time(1, 2, 3, 4), None, time.max],
    "span": [timedelta(microseconds=1), None, timedelta(days=-3)],
    "u": [UUID(int=0), None, UUID(int=2**128 - 1)],
    "j": [{"a": [1, {"b": None}], "": "x"}, [2**70, {"$": 1}], None],
    "v": [np.arange(3, dtype="float32"), None, np.ones(3, "float32")],
}


async def test_rows_go_there_and_come_back(places: Places) -> None:
    uris = [places.uri(each) for each in ("sqlite", "replica set", "sqlite")]
    async with places.connect(uris[0]) as one, places.connect(uris[1]) as two, places.connect(uris[2]) as three:
        rows = [{"id": at, **{name: values[at] for name, values in ROWS.items()}} for at in range(3)]
        await one.execute(one["docs"].insert(rows))
        await one.add(Table("pairs", {"a": "string", "b": "int64", "x": "float64"}, primary_key=("a", "b")))
        await one.execute(one["pairs"].insert([{"a": "x", "b": at, "x": at / 2} for at in range(2500)]))
        await one.execute(one["empty"].insert({"id": "x"}))
        await one.execute(one["empty"].delete(where=True))
        for _ in range(2):
            [each async for each in copy(one, two, rows_only=True)]
        assert await two.tables() == ["docs", "empty", "pairs"]
        with pymongo.MongoClient[Any](uris[1]) as client:
            database = client.get_default_database()
            assert database["docs"].find_one({"_id": 1}, {"s": 1, "b": 1}) == {"_id": 1, "s": "a\0b 🙂", "b": False}
            assert database["pairs"].find_one({"_id.b": 7}) == {"_id": {"a": "x", "b": 7}, "x": 3.5}
            assert database["pairs"].count_documents({}) == 2500
        with pytest.raises(ConfigurationError, match="'pairs' have documents as their ids: there must be a table"):
            await anext(copy(two, three, rows_only=True))
        assert await three.tables() == []
        await three.add(Table("pairs", {"a": "string", "b": "int64", "x": "float64"}, primary_key=("a", "b")))
        for _ in range(2):
            [each async for each in copy(two, three, rows_only=True)]
        for name in ("docs", "pairs", "empty"):
            assert repr(await rows_of_table(one, name)) == repr(await rows_of_table(three, name))
        assert await one.databackend.schema("docs") == await three.databackend.schema("docs")


async def rows_of_table(db: Datalayer, name: str) -> list[Any]:
    return [dict(row) async for page in db.databackend.rows(name) for row in page]


async def test_documents_become_rows(places: Places) -> None:
    key, other = ObjectId(), ObjectId()
    documents: list[Any] = [
        {"_id": key, "n": 1, "tags": ["a", {"of": other}], "ref": other, "v": np.ones(2, "float32")},
        {"_id": other, "n": 1.5, "id": 7, "late": "x", "v": np.ones(3, "float32"), "nothing": None},
    ]
    async with places.connect(places.uri("standalone")) as one, places.connect(places.uri("sqlite")) as two:
        await one.execute(one["docs"].insert_many(documents))
        await one.execute(one["many"].insert_many([{"_id": at, "text": str(at)} for at in range(2500)]))
        for _ in range(2):
            assert {each.name: each.count async for each in copy(one, two)} == {"docs": 2, "many": 2500}
        schema = await two.databackend.schema("docs")
        assert schema is not None
        assert schema.primary_key == ("_id",), "the documents have an id of their own"
        assert dict(schema.columns) == {
            "_id": "string", "n": "float64", "tags": "json", "ref": "string", "v": "ndarray", "id": "int64", "late": "string",
            "nothing": "string",
        }  # fmt: skip
        first, second = await rows_of_table(two, "docs")
        assert (first["_id"], first["n"], first["ref"], first["late"]) == (str(key), 1.0, str(other), None)
        assert first["tags"] == ["a", {"of": other}]
        assert (second["v"].shape, second["id"]) == ((3,), 7)
        assert (await rows_of_table(two, "many"))[-1] == {"id": 2499, "text": "2499"}


@pytest.mark.parametrize(
    ("document", "error", "says"),
    [
        ({"n": "one"}, DatatypeError, "'n', of type str, is string, and that of 0 int64"),
        ({"n": True}, DatatypeError, "'n', of type bool"),
        ({"x": Regex("a")}, DatatypeError, "'x' is of type .*Regex"),
        ({"x": Timestamp(1, 2)}, DatatypeError, "'x' is of type .*Timestamp"),
        ({"x": Code("x")}, DatatypeError, "'x' is of type .*Code"),
        ({"x": 1 + 2j}, DatatypeError, "'x' is of type complex"),
        ({"a.b": 1}, InvalidIdentifierError, "'a.b' cannot be the name of a column"),
        ({"": 1}, InvalidIdentifierError, "'' cannot be the name of a column"),
    ],
)
async def test_a_document_that_no_table_can_hold_is_named_before_anything_is_written(
    places: Places, document: Any, error: type[AsyncDLError], says: str
) -> None:
    async with places.connect(places.uri("standalone")) as one, places.connect(places.uri("sqlite")) as two:
        await one.execute(one["a"].insert_one({"_id": 1}))
        await one.execute(one["docs"].insert_many([{"_id": at, "n": at} for at in range(1500)]))
        await one.execute(one["docs"].insert_one({"_id": 7001, **document}))
        with pytest.raises(error, match=f"7001 of 'docs'.*{says}"):
            await anext(copy(one, two))
        assert await two.tables() == []


async def test_ids_of_several_types_are_no_key(places: Places) -> None:
    async with places.connect(places.uri("standalone")) as one, places.connect(places.uri("sqlite")) as two:
        await one.execute(one["docs"].insert_many([{"_id": 1}, {"_id": "1"}]))
        with pytest.raises(
            DatatypeError, match="'1' of 'docs': its '_id', of type str, is string, and that of 1 int64"
        ):
            await anext(copy(one, two))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (datetime(2020, 1, 1, 0, 0, 0, 1), "datetime"),
        (Decimal("1" * 40), "decimal.Decimal"),
    ],
)
async def test_a_row_that_no_document_can_hold_is_named_and_the_copy_goes_on_without_it(
    places: Places, value: Any, kind: str
) -> None:
    async with places.connect(places.uri("sqlite")) as one, places.connect(places.uri("replica set")) as two:
        plain = type(value)(2020, 1, 1) if isinstance(value, datetime) else Decimal(1)
        docs = one["docs"]
        await one.execute(docs.insert([{"id": at, "x": value if at == 1200 else plain} for at in range(2500)]))
        with pytest.raises(DatatypeError, match=rf"document 1200 of 'docs'.*'x'.*{re.escape(kind)}"):
            [each async for each in copy(one, two)]
        assert await two.execute(two["docs"].count_documents({})) == 1000
        await one.execute(docs.update({"x": plain}, where=docs.id == 1200))
        [each async for each in copy(one, two)]
        assert await two.execute(two["docs"].count_documents({"x": plain})) == 2500


async def test_columns_that_documents_cannot_have(places: Places) -> None:
    async with places.connect(places.uri("sqlite")) as one, places.connect(places.uri("standalone")) as two:
        await one.execute(one["docs"].insert({"id": 1, "_id": 5}))
        with pytest.raises(ConfigurationError, match="'docs' has a column '_id'"):
            await anext(copy(one, two))


async def test_tables_that_are_there(places: Places) -> None:
    async with places.connect(places.uri("standalone")) as one, places.connect(places.uri("sqlite")) as two:
        await one.execute(one["docs"].insert_many([{"_id": "a", "text": "x"}, {"_id": "b", "text": "y"}]))
        await two.add(Table("docs", {"name": "string", "text": "string", "more": "int64"}, primary_key="name"))
        [each async for each in copy(one, two)]
        assert await rows_of(two, two["docs"]) == [("a", "x", None), ("b", "y", None)]
        await one.execute(one["docs"].insert_one({"_id": "c", "other": 1}))
        with pytest.raises(ConfigurationError, match="a table 'docs' already, with no column 'other'"):
            await anext(copy(one, two))


def test_the_command_line_copies_rows_only(places: Places, tmp_path: Path) -> None:
    source, target = places.uri("standalone"), tmp_path / "two.db"
    with pymongo.MongoClient[Any](source) as client:
        client.get_default_database()["docs"].insert_many([{"_id": at, "text": "x"} for at in range(2500)])
    command = [sys.executable, "-m", "asyncdl.cli", "copy", source, f"sqlite:///{target}", "--rows-only"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "table docs: 2,500\n"
