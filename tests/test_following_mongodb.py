"""Rows that other programs write to MongoDB, and servers that are killed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pymongo
import pytest

import asyncdl
from asyncdl import Event, Listener, Model, codec
from asyncdl.drivers import mongo_stream
from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.errors import StoreError
from asyncdl.metadata.changes import DeleteIntent, PutIntent
from asyncdl.metadata.mongo import MongoMetadataStore
from asyncdl.metadata.records import IntentRecord
from tests import mongodb

pytestmark = pytest.mark.anyio

ROWS = ["RowsInserted", "RowsUpdated", "RowsDeleted"]


@pytest.fixture
def url(mongodb_replica_set: str) -> Iterator[str]:
    name = f"test_{uuid4().hex[:20]}"
    yield mongodb_replica_set + name
    with pymongo.MongoClient[Any](mongodb_replica_set) as client:
        client.drop_database(name)


async def outputs_of(db: Any) -> dict[Any, Any]:
    rows = await (await db.execute(db["docs"].outputs("length"))).to_list()
    return {row["_id"]: row["length"] for row in rows}


async def listen(db: Any, function: Any = len) -> None:
    added = await db.add(Listener("length", model=Model("len", function), key="text", select=db["docs"]))
    await added.wait(60)


async def until(db: Any, expected: dict[Any, Any]) -> None:
    """Wait for outputs, looking again whenever something was committed."""
    seen = 0
    async with asyncio.timeout(60):
        while await outputs_of(db) != expected:
            seen = await db.metadata.wait_for_commits(seen)


async def told(db: Any) -> list[tuple[str, list[Any]]]:
    records = await db.metadata.events(0, types=ROWS)
    return [(each.type, Event.from_record(each).ids) for each in records]  # type: ignore[attr-defined]


async def following(db: Any) -> None:
    """Wait until the changes are followed: from now on none is missed."""
    seen = 0
    async with asyncio.timeout(60):
        while not await db.metadata.cursor("changes"):
            seen = await db.metadata.wait_for_commits(seen)


async def test_rows_of_another_program_get_outputs_and_our_own_are_told_of_once(url: str) -> None:
    with pymongo.MongoClient[Any](url) as client:
        theirs = client.get_default_database()["docs"]
        async with asyncdl.connect(url) as one, asyncdl.connect(url) as two:
            await listen(one)
            await following(one)
            await one.execute(one["docs"].insert_one({"_id": "ours", "text": "abc"}))  # type: ignore[attr-defined]
            await two.execute(two["docs"].insert_one({"_id": "too", "text": "abcd"}))  # type: ignore[attr-defined]
            theirs.insert_many([{"_id": at, "text": "x" * at} for at in range(3)])
            await until(one, {"ours": 3, "too": 4, 0: 0, 1: 1, 2: 2})
            theirs.update_one({"_id": 1}, {"$set": {"text": "changed"}})
            theirs.replace_one({"_id": 2}, {"text": "replaced"})
            theirs.delete_one({"_id": 0})
            client.get_default_database()["others"].insert_one({"_id": 1})  # which nothing listens to
            await until(two, {"ours": 3, "too": 4, 1: 7, 2: 8})
            await one.wait_idle(60)
            ids = [(kind, key) for kind, keys in await told(one) for key in keys]
            inserted = [("RowsInserted", key) for key in ("ours", "too", 0, 1, 2)]
            assert ids == [*inserted, ("RowsUpdated", 1), ("RowsUpdated", 2), ("RowsDeleted", 0)]


async def test_what_happened_while_nobody_followed_is_picked_up(url: str) -> None:
    with pymongo.MongoClient[Any](url) as client:
        theirs = client.get_default_database()["docs"]
        async with asyncdl.connect(url) as db:
            await (await db.execute(db["docs"].insert_one({"_id": 1, "text": "abc"}))).wait(60)  # type: ignore[attr-defined]
            await listen(db)
            await following(db)
        theirs.update_one({"_id": 1}, {"$set": {"text": "abcdef"}})  # which reconciling could not see
        async with asyncdl.connect(url) as db:
            await until(db, {1: 6})


async def test_closing_does_not_wait_for_changes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongo_stream, "_WAIT", 50_000)
    async with asyncio.timeout(40):  # it would end after 50 s, or never
        async with asyncdl.connect(url) as db:
            await following(db)


async def test_a_token_that_has_expired_leads_to_a_comparison(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with asyncdl.connect(url) as db:
        await (await db.execute(db["docs"].insert_one({"_id": 1, "text": "abc"}))).wait(60)  # type: ignore[attr-defined]
        await listen(db)
        await following(db)
    with pymongo.MongoClient[Any](url) as client:
        client.get_default_database()["docs"].update_one({"_id": 1}, {"$set": {"text": "abcdef"}})
    store = MongoMetadataStore(MongoDatabase(url))
    await store.open()
    number = await store.cursor("changes")
    (record,) = [each for each in await store.intents() if each.id == f"changes-{number}"]
    details = codec.loads(record.payload)
    token, _ = codec.loads(details["token"])
    old = "ff" + token["_data"][2:]  # as of another server
    details |= {"token": codec.dumps([{"_data": old}, None]).decode(), "left": True}
    record = IntentRecord(record.id, codec.dumps(details).decode(), "", 0.0)
    await store.commit(DeleteIntent(record.id), PutIntent(record))
    await store.aclose()
    async with asyncdl.connect(url) as db:
        await until(db, {1: 6})
    assert "were missed" in caplog.text


async def test_a_collection_that_is_dropped_behind_our_back(url: str) -> None:
    async with asyncdl.connect(url) as db:
        await db.execute(db["docs"].insert_many([{"_id": at, "text": "x"} for at in range(3)]))  # type: ignore[attr-defined]
        await listen(db)
        await following(db)
        with pymongo.MongoClient[Any](url) as client:
            client.get_default_database()["docs"].drop()
            await until(db, {})
            client.get_default_database()["docs"].insert_one({"_id": 9, "text": "new"})
            await until(db, {9: 3})
            (name,) = [
                each for each in client.get_default_database().list_collection_names() if each.startswith("_outputs_")
            ]
            client.get_default_database()[name].drop()
            await until(db, {9: 3})


async def test_a_standalone_server_says_so_once_and_reconciles(
    mongodb_standalone: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{mongodb_standalone}test_{uuid4().hex[:20]}"
    with pymongo.MongoClient[Any](url) as client:
        async with asyncdl.connect(url, reconcile_every=0.2) as db:
            await listen(db)
            client.get_default_database()["docs"].insert_one({"_id": 1, "text": "theirs"})
            await until(db, {1: 6})
        client.drop_database(client.get_default_database().name)
    assert [each.levelno for each in caplog.records if "standalone" in each.message] == [logging.WARNING]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("replica_set", [True, False], ids=["replica set", "standalone"])
async def test_a_server_that_is_killed_under_load_loses_no_output(replica_set: bool) -> None:
    server = mongodb.served(replica_set=replica_set)
    try:
        async with asyncdl.connect(
            server.url + "docs?serverSelectionTimeoutMS=20000", job_backoff=0.1, job_max_attempts=50, job_lease=5
        ) as db:
            docs: Any = db["docs"]
            await prepared(db)
            count = 0

            async def write() -> None:
                nonlocal count
                while True:
                    count += 1
                    try:
                        await db.execute(docs.insert_one({"_id": count, "text": "x" * (count % 9)}))
                        if count % 3 == 0:
                            await db.execute(docs.update_one({"_id": count}, {"$set": {"text": "changed"}}))
                        if count % 7 == 0:
                            await db.execute(docs.delete_one({"_id": count - 1}))
                    except StoreError:
                        await asyncio.sleep(0)

            writers = [asyncio.create_task(write()) for _ in range(4)]
            for _ in range(10):
                before, seen = count + 10, 0
                while count < before:
                    seen = await db.metadata.wait_for_commits(seen)
                server.kill()
                await asyncio.to_thread(server.start)
            for each in writers:
                each.cancel()
            await asyncio.wait(writers)
            if not replica_set:
                await (await db.reconcile()).wait_quietly()
            await db.wait_idle(200)
            rows = {row["_id"]: len(row["text"]) for row in await (await db.execute(docs)).to_list()}
            assert len(rows) > 20
            assert await outputs_of(db) == rows
    finally:
        await asyncio.to_thread(server.stop)


async def prepared(db: Any) -> None:
    await db.execute(db["docs"].insert_one({"_id": 0, "text": "first"}))
    added = await db.add(Listener("length", model=Model("len", len), key="text", select=db["docs"]))
    await added.wait(60)
