"""The story of the README, on every combination of databackend, metadata store and artifact store."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncdl
from asyncdl import Datalayer, Listener, Model, OutputsWritten
from tests import models
from tests.places import METADATA, PLACES

pytestmark = pytest.mark.anyio


DATA = ["sqlite", "postgresql", "mysql", "duckdb", "frames", "replica set", "standalone"]


@pytest.fixture(params=[(data, metadata) for data in DATA for metadata in METADATA], ids=" + ".join)
def uris(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A databackend and a metadata store: one database where they are of one kind; artifacts go where they go by default."""
    data, metadata = request.param
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        made = {"databackend": enter(PLACES[data](request, tmp_path))}
        if metadata != data:
            made["metadata_store"] = enter(PLACES[metadata](request, tmp_path / "metadata"))
        if "mongodb:" not in "".join(made.values()):
            made["artifact_store"] = f"filesystem://{tmp_path / 'artifacts'}"
        yield made


class Told:
    """The story in ibis' words."""

    id = "id"

    def __init__(self, db: Datalayer) -> None:
        self.db = db
        self.docs: Any = db["docs"]

    def select(self) -> Any:
        return self.docs.select("id", "text")

    async def insert(self, *rows: dict[str, Any]) -> Any:
        return await self.db.execute(self.docs.insert(list(rows)))

    async def update(self, key: int, text: str) -> Any:
        return await self.db.execute(self.docs.update({"text": text}, where=self.docs.id == key))

    async def delete(self, key: int) -> Any:
        return await self.db.execute(self.docs.delete(where=self.docs.id == key))

    async def outputs(self, *listeners: str) -> list[tuple[Any, ...]]:
        found = await self.db.execute(self.docs.outputs(*listeners))
        return sorted(tuple(row[name] for name in (self.id, *listeners)) for row in await found.to_list())

    async def missing(self) -> int:
        return len(await (await self.db.execute(self.docs.missing_outputs("length"))).to_list())


class ToldInDocuments(Told):
    """The story in MongoDB's words."""

    id = "_id"

    def select(self) -> Any:
        return self.docs.find({}, {"text": 1})

    async def insert(self, *rows: dict[str, Any]) -> Any:
        return await self.db.execute(self.docs.insert_many(list(rows)))

    async def update(self, key: int, text: str) -> Any:
        return await self.db.execute(self.docs.update_one({"_id": key}, {"$set": {"text": text}}))

    async def delete(self, key: int) -> Any:
        return await self.db.execute(self.docs.delete_one({"_id": key}))


def told(db: Datalayer) -> Told:
    """Return the story in the words of a datalayer's databackend."""
    return {"ibis": Told, "mongodb": ToldInDocuments}[db.databackend.language](db)


async def artifacts(db: Datalayer) -> int:
    return len([each async for each in db.artifact_store.list()])


async def test_the_story(uris: dict[str, str]) -> None:
    offset = 0
    async with asyncdl.connect(**uris) as db:
        story = told(db)
        await story.insert({story.id: 1, "text": "hello"}, {story.id: 2, "text": "good morning"})
        model = Model("len", lambda text: len(text) + offset)  # by no import path: its code becomes an artifact
        listener = Listener("length", model=model, key="text", select=story.select())
        added = await db.add(listener)
        await added.wait(60)
        written = await story.insert({story.id: 3, "text": "a new row"})
        assert list(written.ids) == [3]
        await written.wait(60)
        assert await story.outputs("length") == [(1, 5), (2, 12), (3, 9)]
        assert await artifacts(db) == 1
        assert not (await db.add(listener)).created

    async with asyncdl.connect(**uris) as db:  # another process, later
        story = told(db)
        assert await db.show("listener") == ["length"]
        await (await story.update(1, "hi")).wait(60)
        await (await story.delete(2)).wait(60)
        assert await story.outputs("length") == [(1, 2), (3, 9)]
        assert await story.missing() == 0
        async with db.events.subscribe(OutputsWritten, name="billing", since=0) as events:
            assert isinstance(await anext(aiter(events)), OutputsWritten)

        upper = Listener("upper", model=Model("up", models.upper), key="text", select=story.select())
        await db.add(upper, wait=True)
        assert await story.outputs("length", "upper") == [(1, 2, "HI"), (3, 9, "A NEW ROW")]

        await db.replace(Model("len", lambda text: -len(text)), wait=True)
        assert await story.outputs("length") == [(1, -2), (3, -9)]
        await db.remove("listener", "length")
        await db.remove("listener", "upper")
        await db.remove("model", "len")
        await db.remove("model", "up")
        assert await artifacts(db) == 0
        assert await db.show() == []
        assert await db.tables() == ["docs"]


@pytest.fixture
async def two(uris: dict[str, str]) -> AsyncIterator[tuple[Datalayer, Datalayer]]:
    async with asyncdl.connect(**uris) as one, asyncdl.connect(**uris) as other:
        yield one, other


async def test_two_datalayers_follow_each_other(two: tuple[Datalayer, Datalayer]) -> None:
    one, other = map(told, two)
    await one.insert({one.id: 1, "text": "x"})
    await one.db.add(Listener("length", model=Model("len", len), key="text", select=one.select()), wait=True)
    for number in range(2, 12):
        story = (one, other)[number % 2]
        written = await story.insert({story.id: number, "text": "x" * number})
        await written.wait(60)
    assert await other.outputs("length") == [(number, number) for number in range(1, 12)]
