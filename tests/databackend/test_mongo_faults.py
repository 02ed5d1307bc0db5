"""What goes wrong with a MongoDB databackend, on a replica set and on a standalone server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pymongo
import pytest

from asyncdl.databackend.mongo import MongoDataBackend
from asyncdl.databackend.tables import Outputs, OutputTable, TableSchema
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.errors import ConstraintError, DatatypeError, DuplicateKeyError, StoreError, StoreUnavailableError
from asyncdl.query import MongoQuery
from tests.mongodb import Mongod, served

pytestmark = pytest.mark.anyio

KINDS = ["replica set", "standalone"]
DOCS: Any = MongoQuery("docs")
LENGTH = OutputTable("_outputs_length", "length", ("_id",), {"_id": "any"}, "int64")
PATIENCE = "?serverSelectionTimeoutMS=2000"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[MongoDataBackend]:
    backend = MongoDataBackend(MongoDatabase(url), Datatypes(allow_pickle=False))
    await backend.open()
    try:
        yield backend
    finally:
        await backend.aclose()


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    server, name = request.getfixturevalue(f"mongodb_{request.param.replace(' ', '_')}"), f"test_{uuid4().hex[:20]}"
    yield server + name
    with pymongo.MongoClient[Any](server) as client:
        client.drop_database(name)


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Mongod]:
    """A server of the test's own, which may be killed."""
    found = served(replica_set=request.param == "replica set")
    yield found
    found.stop()


@pytest.fixture(params=KINDS)
def locked(request: pytest.FixtureRequest) -> Iterator[Mongod]:
    """A server that asks who one is, with a user of each kind: all passwords are 'secret'."""
    found = served(replica_set=request.param == "replica set", auth=True)
    with pymongo.MongoClient[Any](found.url, directConnection=True) as client:
        client.admin.command("createUser", "root", pwd="secret", roles=["root"])
    with pymongo.MongoClient[Any](found.url, directConnection=True, username="root", password="secret") as client:
        client["x"].create_collection("docs")
        client["x"]["docs"].insert_one({"_id": 0})
        client["x"].command("createUser", "reader", pwd="secret", roles=["read"])
        database, marks = {"db": "x", "collection": ""}, {"db": "x", "collection": "_asyncdl_marks"}
        docs = {"db": "x", "collection": "docs"}
        writing = ["find", "insert", "update", "remove", "createIndex"]
        privileges = [
            {"resource": database, "actions": ["listCollections", "find"]},
            {"resource": docs, "actions": writing},
            {"resource": marks, "actions": writing},
        ]
        client["x"].command("createRole", "clerk", privileges=privileges, roles=[])
        client["x"].command("createUser", "clerk", pwd="secret", roles=["clerk"])
    yield found
    found.stop()


def as_user(server: Mongod, user: str, password: str = "secret", source: str = "x") -> str:
    return server.url.replace("://", f"://{user}:{password}@") + f"x?authSource={source}"


async def write(backend: MongoDataBackend, what: Any) -> Any:
    async with backend.transaction() as tx:
        return await backend.write(what.request(), {}, tx)


async def read(backend: MongoDataBackend, query: Any = DOCS) -> list[Any]:
    return [row async for _, rows in backend.read(query, {}) for row in rows]


# what cannot be written


async def test_a_document_that_is_too_large_leaves_nothing(url: str) -> None:
    small = [{"_id": at, "x": "y" * 1000} for at in range(2000)]
    async with opened(url) as backend:
        await write(backend, DOCS.insert_one({"_id": -1}))
        for at in (0, 1000, 2000):
            documents = [*small[:at], {"_id": "large", "x": "y" * (17 * 2**20)}, *small[at:]]
            with pytest.raises(ConstraintError, match=r"mongodb://127\.0\.0\.1"):
                await write(backend, DOCS.insert_many(documents))
            assert await read(backend) == [{"_id": -1}]
        with pytest.raises(ConstraintError, match=r"mongodb://127\.0\.0\.1"):
            await write(backend, DOCS.replace_one({"_id": -1}, {"x": "y" * (17 * 2**20)}))
        await write(backend, DOCS.update_one({"_id": -1}, {"$set": {"a": "y" * (9 * 2**20)}}))
        with pytest.raises(ConstraintError, match=r"mongodb://127\.0\.0\.1"):  # only the server knows how large it gets
            await write(backend, DOCS.update_one({"_id": -1}, {"$set": {"b": "y" * (9 * 2**20)}}))
        [found] = await read(backend)
        assert set(found) == {"_id", "a"}


async def test_a_value_that_cannot_be_stored_leaves_nothing(url: str) -> None:
    documents = [{"_id": at, "x": "y" * 1000} for at in range(60_000)]  # more than the driver sends at once
    async with opened(url) as backend:
        with pytest.raises(DatatypeError):
            await write(backend, DOCS.insert_many([*documents, {"_id": "bad", "x": 2**64}]))
        assert await read(backend) == []


async def test_a_unique_index_that_is_violated_half_way(url: str) -> None:
    async with opened(url) as backend:
        with pymongo.MongoClient[Any](url) as client:
            client.get_default_database()["docs"].create_index("u", unique=True)
        await write(backend, DOCS.insert_many([{"_id": at, "u": at} for at in range(10)]))
        for what in (
            DOCS.insert_many([{"_id": at, "u": at if at != 15 else 0} for at in range(10, 20)]),
            DOCS.update_many({"_id": {"$gte": 5}}, {"$set": {"u": -1}}),
            DOCS.bulk_write([DOCS.insert_one({"_id": "x", "u": "x"}), DOCS.update_one({"_id": 1}, {"$set": {"u": 2}})]),
        ):
            before = await read(backend)
            with pytest.raises(DuplicateKeyError, match=r"mongodb://127\.0\.0\.1.*u_1"):
                await write(backend, what)
            after = await read(backend)
            if backend.atomic:
                assert after == before
            else:
                assert {row["_id"] for row in before} <= {row["_id"] for row in after}
        [free] = (await write(backend, DOCS.insert_one({"u": "free"}))).ids
        assert {"_id": free, "u": "free"} in await read(backend)


# behind our back


async def test_collections_that_are_dropped_behind_our_back(url: str) -> None:
    async with opened(url) as backend:
        async with backend.transaction() as tx:
            await backend.create_table(TableSchema("docs", {"n": "int64"}, ("_id",)), tx)
            await backend.create_outputs(LENGTH, tx)
        await write(backend, DOCS.insert_many([{"_id": at, "n": at} for at in range(3000)]))
        async with backend.transaction() as tx:
            await backend.put_outputs(LENGTH, Outputs([range(3000)], [1] * 3000), as_of=1, replaced=None, tx=tx)
        pages = backend.read(DOCS, {}, size=1000)
        await anext(aiter(pages))
        with pymongo.MongoClient[Any](url) as client:
            for name in client.get_default_database().list_collection_names():
                client.get_default_database()[name].drop()
        with pytest.raises(StoreError, match=r"mongodb://127\.0\.0\.1"):  # the rest of what was being read is lost
            _ = [page async for page in pages]
        assert await read(backend) == []
        assert await backend.scan(DOCS, {}, ["n"], after=None, limit=10, missing=LENGTH) == []
        assert await backend.current(LENGTH, [1], 1) == set()
        assert await backend.failed(LENGTH) == []
        assert (await write(backend, DOCS.delete_many({}))).ids == []
        await write(backend, DOCS.insert_one({"_id": 1, "n": 1}))
        async with backend.transaction() as tx:
            await backend.put_outputs(LENGTH, Outputs([[1]], [7]), as_of=2, replaced=[1], tx=tx)
        assert await backend.current(LENGTH, [1], 2) == {1}
        assert await backend.tables() == ["docs"]


# who one is


async def test_a_wrong_password(locked: Mongod) -> None:
    for uri in (
        as_user(locked, "root", "wrong-one", "admin"),
        as_user(locked, "nobody", "wrong-one"),
        locked.url + "x",
    ):
        with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1") as caught:
            async with opened(uri):
                pass
        assert "wrong-one" not in str(caught.value)
    async with opened(as_user(locked, "root", source="admin")) as backend:
        assert await read(backend) == [{"_id": 0}]
        assert backend.url.startswith("mongodb://root:***@")


async def test_a_user_without_the_right_to_make_collections(locked: Mongod) -> None:
    async with opened(as_user(locked, "root", source="admin")):
        pass  # who may made what asyncdl needs
    async with opened(as_user(locked, "clerk")) as backend:
        assert (await write(backend, DOCS.insert_one({"_id": 1, "n": 1}))).ids == [1]
        assert (await write(backend, DOCS.update_many({}, {"$set": {"n": 2}}))).ids == [0, 1]
        for made in (
            backend.create_table(TableSchema("other", {}, ("_id",)), tx=None),
            backend.create_outputs(LENGTH, None),
        ):  # type: ignore[arg-type]
            with pytest.raises(StoreUnavailableError, match=r"clerk:\*\*\*@127\.0\.0\.1.*not authorized"):
                await made
        with pytest.raises(StoreUnavailableError, match="not authorized"):
            await write(backend, MongoQuery("other").insert_one({"_id": 1}))
        assert await backend.tables() == ["docs"]
        assert await read(backend) == [{"_id": 0, "n": 2}, {"_id": 1, "n": 2}]


async def test_a_user_who_may_only_read(locked: Mongod) -> None:
    if locked.replica_set:  # where each write leaves a mark, which its collection is prepared for
        with pytest.raises(StoreUnavailableError, match=r"reader:\*\*\*@.*not authorized"):
            async with opened(as_user(locked, "reader")):
                pass
        return
    async with opened(as_user(locked, "reader")) as backend:
        assert await read(backend) == [{"_id": 0}]
        for what in (DOCS.insert_one({}), DOCS.update_one({}, {"$set": {"x": 1}}), DOCS.delete_many({})):
            with pytest.raises(StoreUnavailableError, match=r"reader:\*\*\*@.*not authorized"):
                await write(backend, what)
        assert await read(backend) == [{"_id": 0}]


# a server that goes away


async def test_a_server_that_goes_away_while_it_is_read_from(server: Mongod) -> None:
    async with opened(server.url + "x" + PATIENCE) as backend:
        await write(backend, DOCS.insert_many([{"_id": at, "x": "y" * 1000} for at in range(40_000)]))
        pages = backend.read(DOCS, {}, size=100)
        await anext(aiter(pages))
        await asyncio.to_thread(server.kill)
        with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1"):
            _ = [page async for page in pages]
        for asked in (
            read(backend),
            backend.scan(DOCS, {}, ["x"], after=None, limit=5, missing=None),
            backend.tables(),
        ):
            with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1"):
                await asked
        await asyncio.to_thread(server.start)
        assert len(await read(backend)) == 40_000


@pytest.mark.timeout(240)
async def test_a_server_that_goes_away_while_it_is_written_to(server: Mongod) -> None:
    acknowledged: set[int] = set()
    refused: list[StoreError] = []
    async with opened(server.url + "x" + PATIENCE) as backend:

        async def insert(start: int) -> None:
            for at in range(start, start + 1_000_000):
                try:
                    await write(backend, DOCS.insert_many([{"_id": f"{at}-{n}", "batch": at} for n in range(20)]))
                except StoreError as error:
                    refused.append(error)
                else:
                    acknowledged.add(at)
                    written.set()

        written = asyncio.Event()
        writers = [asyncio.create_task(insert(at * 1_000_000)) for at in range(4)]
        for _ in range(3):
            enough = len(acknowledged) + 20
            while len(acknowledged) < enough:
                written.clear()
                await written.wait()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        for each in writers:
            each.cancel()
        await asyncio.wait(writers)
        assert {type(each) for each in refused} <= {StoreUnavailableError}, refused
        batches: dict[int, int] = {}
        for row in await read(backend):
            batches[row["batch"]] = batches.get(row["batch"], 0) + 1
        assert {at: batches.get(at) for at in acknowledged} == dict.fromkeys(acknowledged, 20)
        if backend.atomic:
            assert set(batches.values()) == {20}


async def test_a_server_that_goes_away_in_a_transaction_leaves_nothing_of_it() -> None:
    server = await asyncio.to_thread(served, replica_set=True)
    try:
        async with opened(server.url + "x" + PATIENCE) as backend:
            await write(backend, DOCS.insert_many([{"_id": at, "n": 0} for at in range(10)]))
            with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1"):  # noqa: PT012 - the block is the transaction
                async with backend.transaction() as tx:
                    await backend.write(DOCS.update_many({}, {"$set": {"n": 1}}).request(), {}, tx)
                    await backend.write(DOCS.insert_one({"_id": 99}).request(), {}, tx)
                    await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            assert await read(backend) == [{"_id": at, "n": 0} for at in range(10)]

            tries = 0

            async def attempt() -> None:
                nonlocal tries
                tries += 1
                async with backend.transaction() as tx:
                    await backend.write(DOCS.update_many({}, {"$inc": {"n": 1}}).request(), {}, tx)
                    if tries == 1:
                        await asyncio.to_thread(server.kill)
                        await asyncio.to_thread(server.start)

            await backend.retrying(attempt)
            assert tries == 2
            assert await read(backend) == [{"_id": at, "n": 1} for at in range(10)]
    finally:
        await asyncio.to_thread(server.stop)
