"""Outputs on MongoDB that are looked for as a range of ids, where ids are many."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pymongo
import pytest
from bson import ObjectId

from asyncdl.databackend.mongo import MongoDataBackend
from asyncdl.databackend.mongo_outputs import MongoOutputs, between, hashed
from asyncdl.databackend.mongo_values import MongoValues
from asyncdl.databackend.tables import ANY, Outputs, OutputTable
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.drivers.mongo_documents import MongoDocuments

pytestmark = pytest.mark.anyio

TABLE = OutputTable("_outputs_length", "length", ("_id",), {"_id": ANY}, "int64")
ODD = ["", "\0", "a", "a\0b", "A", "ä", "z", "\ud7ff", "\ue000", "\uffff", "\U00010000", "🙂", "\U0010ffff"]
KINDS: dict[str, list[Any]] = {
    "integers": [-(2**63), -1, 0, 1, 2**31, 2**53 + 1, 2**63 - 1, *range(5, 200)],
    "texts": [*ODD, *(one + other for one in ODD for other in ODD)],
    "object ids": [ObjectId(each.to_bytes(12, "big")) for each in (0, 2**96 - 1, *range(2**64, 2**64 + 100))],
    "other kinds": [*range(70), 0.5, Decimal("1.5"), "text", UUID(int=7), b"bytes", True, ObjectId()],
}


@pytest.fixture
async def backend(mongodb_replica_set: str) -> AsyncIterator[MongoDataBackend]:
    name = f"test_{uuid4().hex[:20]}"
    opened = MongoDataBackend(MongoDatabase(mongodb_replica_set + name), Datatypes(allow_pickle=False))
    await opened.open()
    yield opened
    await opened.aclose()
    with pymongo.MongoClient[Any](mongodb_replica_set) as client:
        client.drop_database(name)


async def put(backend: MongoDataBackend, ids: list[Any], value: int, as_of: int) -> None:
    async with backend.transaction() as tx:
        await backend.create_outputs(TABLE, tx)
        await backend.put_outputs(TABLE, Outputs([ids], [value] * len(ids)), as_of=as_of, replaced=None, tx=tx)


async def stored(backend: MongoDataBackend) -> dict[Any, tuple[int, int]]:
    rows = await MongoDocuments(backend.database).find(TABLE.name, {})
    return {hashed(each["_id"]): (each["value"], each["_as_of"]) for each in rows}


def outputs(backend: MongoDataBackend) -> MongoOutputs:
    return MongoOutputs(MongoDocuments(backend.database), MongoValues(Datatypes(allow_pickle=False)), TABLE)


@pytest.mark.parametrize("kind", KINDS)
async def test_those_that_are_there_are_found_in_any_order_of_ids(backend: MongoDataBackend, kind: str) -> None:
    ids = list(dict.fromkeys(KINDS[kind])) if kind != "other kinds" else KINDS[kind]
    assert (between(ids) is None) == (kind == "other kinds")
    random.Random(1).shuffle(ids)
    written = ids[::3]
    await put(backend, written, 1, as_of=5)
    found = await outputs(backend).present(ids)
    assert [each for each in ids if hashed(each) in found] == [each for each in ids if each in written]


@pytest.mark.parametrize("kind", ["integers", "texts", "object ids"])
async def test_ids_at_either_end_are_within(backend: MongoDataBackend, kind: str) -> None:
    ids = sorted(set(KINDS[kind]))
    for end in (ids[0], ids[-1]):
        await put(backend, [end], 1, as_of=9)
        await put(backend, ids, 2, as_of=8)  # older than that one
        assert (await stored(backend))[end] == (1, 9)
        assert set((await stored(backend)).values()) == {(1, 9), (2, 8)}
        await backend.database.delete(TABLE.name, {})


async def test_an_older_result_among_many_new_ones_overwrites_nothing(backend: MongoDataBackend) -> None:
    ids = list(range(1000))
    await put(backend, [500, 700], 1, as_of=7)
    await put(backend, [100], 1, as_of=5)
    await put(backend, ids, 2, as_of=6)
    found = await stored(backend)
    assert {each: found[each] for each in (100, 500, 501, 700)} == {
        100: (2, 6),
        500: (1, 7),
        501: (2, 6),
        700: (1, 7),
    }
    assert len(found) == 1000


async def test_outputs_of_no_row_among_them_are_looked_past(backend: MongoDataBackend) -> None:
    ids = list(range(0, 100_000, 1000))
    await put(backend, [each for each in range(0, 100_000, 100) if each % 3000], 1, as_of=5)
    found = await outputs(backend).present(ids)
    assert found == {each for each in ids if each % 3000}  # by their ids: there are too many others


async def test_many_calls_at_once_look_for_what_is_declared_once(backend: MongoDataBackend) -> None:
    looked = 0

    class Counting(MongoDocuments):
        async def find(self, name: str, *args: Any, **options: Any) -> list[dict[str, Any]]:
            nonlocal looked
            looked += name == "_asyncdl_tables"
            return await super().find(name, *args, **options)

    backend._documents = Counting(backend.database)
    await asyncio.gather(*(backend.schema("t") for _ in range(50)))
    assert looked == 1
