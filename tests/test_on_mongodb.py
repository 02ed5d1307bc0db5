"""The README's story with metadata and models on MongoDB, and rows in SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pymongo
import pytest

import asyncdl
from asyncdl import Listener, Model, OutputsWritten
from asyncdl.artifact_store.gridfs import GridFSArtifactStore
from asyncdl.errors import ConfigurationError, MissingDependencyError, StoreUnavailableError
from asyncdl.metadata.mongo import MongoMetadataStore
from tests.conftest import rows_of
from tests.mongodb import free_port

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["replica set", "standalone"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    server, name = request.getfixturevalue(f"mongodb_{request.param.replace(' ', '_')}"), f"test_{uuid4().hex[:20]}"
    yield server + name
    with pymongo.MongoClient[Any](server) as client:
        client.drop_database(name)


async def test_the_story_of_the_readme(url: str, tmp_path: Path) -> None:
    offset = 0
    uris = {"databackend": f"sqlite:///{tmp_path / 'app.db'}", "metadata_store": url, "artifact_store": url}
    async with asyncdl.connect(**uris) as db:
        assert isinstance(db.metadata, MongoMetadataStore)
        assert isinstance(db.artifact_store, GridFSArtifactStore)
        docs = db["docs"]
        await db.execute(docs.insert([{"id": 1, "text": "hello"}, {"id": 2, "text": "good morning"}]))
        model = Model("len", lambda text: len(text) + offset)  # by no import path: its code becomes an artifact
        added = await db.add(Listener("length", model=model, key="text", select=docs.select("id", "text")))
        await added.wait(60)
        written = await db.execute(docs.insert([{"id": 3, "text": "a new row"}]))
        await written.wait(60)
        assert await rows_of(db, docs.outputs("length").select("id", "length")) == [(1, 5), (2, 12), (3, 9)]
        assert [name async for name in db.artifact_store.list()]

    async with asyncdl.connect(**uris) as db:  # another process, later
        docs = db["docs"]
        assert await db.show("listener") == ["length"]
        await (await db.execute(docs.update({"text": "hi"}, where=docs.id == 1))).wait(60)
        await (await db.execute(docs.delete(where=docs.id == 2))).wait(60)
        assert await rows_of(db, docs.outputs("length").select("id", "length")) == [(1, 2), (3, 9)]
        async with db.events.subscribe(OutputsWritten, name="billing", since=0) as events:
            assert isinstance(await anext(aiter(events)), OutputsWritten)
        await db.remove("listener", "length")
        await db.remove("model", "len")
        assert [name async for name in db.artifact_store.list()] == []
        assert await db.show() == []


async def test_two_datalayers_on_one_metadata_store_wake_each_other(url: str, tmp_path: Path) -> None:
    uris = {"databackend": f"sqlite:///{tmp_path / 'app.db'}", "metadata_store": url}
    async with asyncdl.connect(**uris) as one, asyncdl.connect(**uris) as two:
        await one.execute(one["docs"].insert([{"id": 1, "text": "hello"}]))
        select = one["docs"].select("id", "text")
        added = await one.add(Listener("length", model=Model("len", len), key="text", select=select))
        await added.wait(60)
        for n in range(2, 12):
            db = (one, two)[n % 2]
            written = await db.execute(db["docs"].insert([{"id": n, "text": "x" * n}]))
            await written.wait(60)
        found = await rows_of(two, two["docs"].outputs("length").select("id", "length"))
        assert found == [(1, 5), *((n, n) for n in range(2, 12))]


async def test_artifacts_are_where_the_metadata_are_unless_told(url: str, tmp_path: Path) -> None:
    data = f"sqlite:///{tmp_path / 'app.db'}"
    async with asyncdl.connect(data, metadata_store=url) as db:
        assert isinstance(db.artifact_store, GridFSArtifactStore)
        assert db.artifact_store.database is db.metadata.database
    async with asyncdl.connect(data, metadata_store=url, artifact_store=f"filesystem://{tmp_path / 'a'}") as db:
        assert db.artifact_store.url.startswith("filesystem://")
    async with asyncdl.connect(data, artifact_store=url) as db:
        assert not isinstance(db.metadata, MongoMetadataStore)
        assert isinstance(db.artifact_store, GridFSArtifactStore)


async def test_a_metadata_store_that_is_down_is_told_of_at_connect(tmp_path: Path) -> None:
    uri = f"mongodb://user:secret@127.0.0.1:{free_port()}/x?serverSelectionTimeoutMS=300"
    for role in ("metadata_store", "artifact_store"):
        with pytest.raises(StoreUnavailableError, match=r"user:\*\*\*@") as caught:
            await asyncdl.connect(f"sqlite:///{tmp_path / 'app.db'}", **{role: uri})
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("role", ["metadata_store", "artifact_store"])
@pytest.mark.parametrize("uri", ["mongodb://", "mongodb://h/a b", "mongodb+srv://"])
def test_a_uri_that_names_nothing_is_refused_at_once(role: str, uri: str) -> None:
    with pytest.raises(ConfigurationError):
        asyncdl.connect("sqlite://app.db", **{role: uri})


async def test_without_motor_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("motor", "motor.motor_asyncio"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="pip install 'motor"):
        await asyncdl.connect(f"sqlite:///{tmp_path / 'app.db'}", metadata_store="mongodb://127.0.0.1:1/x")
