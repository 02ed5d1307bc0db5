"""The artifact store in GridFS, on a replica set and on a standalone server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import gridfs
import pymongo
import pytest
from pymongo.database import Database

from asyncdl.artifact_store.base import CHUNK, ArtifactStore
from asyncdl.artifact_store.gridfs import GridFSArtifactStore
from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.errors import ConfigurationError, StoreError, StoreUnavailableError
from asyncdl.testing.artifact_store import DATA, ArtifactStoreTests, sha256, streamed
from tests.mongodb import free_port, served

pytestmark = pytest.mark.anyio

WRITER = """
    import asyncio, sys
    from asyncdl.artifact_store.gridfs import GridFSArtifactStore
    from asyncdl.drivers.mongo import MongoDatabase

    async def source():
        while True:
            yield b"x" * 8_000_000
            print("wrote", flush=True)
            await asyncio.sleep(0)

    async def main():
        store = GridFSArtifactStore(MongoDatabase(sys.argv[1]))
        await store.open()
        await store.put(source())

    asyncio.run(main())
"""


class OnMongoDB(ArtifactStoreTests):
    url: str

    @pytest.fixture(autouse=True)
    def _place(self, server: str) -> Iterator[None]:
        name = f"test_{uuid4().hex[:20]}"
        self.url = server + name
        with pymongo.MongoClient[Any](server) as client:
            self.raw: Database[Any] = client[name]
            self.files = self.raw["_asyncdl_artifacts_default.files"]
            self.chunks = self.raw["_asyncdl_artifacts_default.chunks"]
            yield
            client.drop_database(name)

    async def make(self) -> ArtifactStore:
        return GridFSArtifactStore(MongoDatabase(self.url))

    async def stored(self) -> dict[str, bytes]:
        bucket = gridfs.GridFSBucket(self.raw, "_asyncdl_artifacts_default")  # as any other tool reads it
        return {
            each["filename"]: bucket.open_download_stream(each["_id"]).read()
            for each in self.files.find({"filename": {"$regex": "^[0-9a-f]{64}$"}})
        }

    async def leftovers(self) -> list[str]:
        complete = {each["_id"] for each in self.files.find({"filename": {"$regex": "^[0-9a-f]{64}$"}})}
        chunks = {each for each in self.chunks.distinct("files_id") if each not in complete}
        return [*chunks, *(each["filename"] for each in self.files.find({"_id": {"$nin": list(complete)}}))]

    async def damage(self, name: str) -> None:
        file = self.files.find_one({"filename": name})
        assert file is not None
        chunk = self.chunks.find_one({"files_id": file["_id"]})
        assert chunk is not None
        data = bytearray(chunk["data"])
        data[len(data) // 2] ^= 1
        self.chunks.update_one({"_id": chunk["_id"]}, {"$set": {"data": bytes(data)}})

    async def reopen(self) -> None:
        other = await self.make()
        await other.open()
        await other.aclose()

    async def test_killed_writer_leaves_no_artifact(self, store: ArtifactStore) -> None:
        await asyncio.to_thread(self.kill_in_mid_put)
        assert [name async for name in store.list()] == []
        assert await self.stored() == {}
        await self.reopen()
        assert await self.leftovers() != [], "it may be another process's"
        long_ago = datetime.now(UTC) - timedelta(hours=2)
        self.files.update_many({}, {"$set": {"alive": long_ago}})
        await self.reopen()
        assert await self.leftovers() == []

    def kill_in_mid_put(self) -> None:
        command = [sys.executable, "-c", textwrap.dedent(WRITER), self.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "wrote\n"
            writer.kill()

    async def test_half_deleted_is_cleared_away(self, store: ArtifactStore) -> None:
        kept, gone = await store.put(DATA), await store.put(b"gone")
        self.files.update_one({"filename": gone}, {"$set": {"filename": "deleted-1", "state": "deleted"}})
        self.chunks.insert_one({"files_id": "nobody's", "n": 0, "data": b"x"})
        await self.reopen()
        assert await self.leftovers() == []
        assert set(await self.stored()) == {kept}

    async def test_an_upload_that_was_cleared_away_meanwhile_fails(self, store: ArtifactStore) -> None:
        async def source() -> AsyncIterator[bytes]:
            yield b"x" * (6 * CHUNK)
            long_ago = datetime.now(UTC) - timedelta(hours=2)
            self.files.update_many({}, {"$set": {"alive": long_ago}})
            await self.reopen()
            yield b"y" * (6 * CHUNK)

        with pytest.raises(StoreError, match="cleared away"):
            await store.put(source())
        assert await self.leftovers() == []
        assert await self.stored() == {}

    async def test_streams_in_bounded_memory(self, store: ArtifactStore) -> None:
        async def source() -> AsyncIterator[bytes]:
            for at in range(80):
                yield bytes([at]) * CHUNK

        tracemalloc.start()
        try:
            name = await store.put(source())
            total = 0
            async for chunk in store.open_stream(name):
                total += len(chunk)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert total == 80 * CHUNK
        assert peak < 40 * CHUNK

    async def test_other_files_are_not_listed(self, store: ArtifactStore) -> None:
        name = await store.put(DATA)
        gridfs.GridFSBucket(self.raw, "_asyncdl_artifacts_default").upload_from_stream("README", b"x")
        assert [each async for each in store.list()] == [name]
        await self.reopen()
        assert self.files.count_documents({}) == 2

    async def test_no_thread_is_left(self, store: ArtifactStore) -> None:
        await store.put(DATA)
        await store.aclose()
        assert not any(each.name.startswith("asyncdl") for each in threading.enumerate())

    async def test_of_two_namespaces_neither_sees_the_other(self, store: ArtifactStore) -> None:
        name = await store.put(DATA)
        other = GridFSArtifactStore(MongoDatabase(self.url), "other")
        await other.open()
        assert not await other.exists(name)
        assert await other.put(streamed([DATA])) == name == sha256(DATA)
        assert await other.delete(name)
        assert await store.get(name) == DATA
        await other.aclose()


class TestGridFSArtifactStoreOnReplicaSet(OnMongoDB):
    @pytest.fixture
    def server(self, mongodb_replica_set: str) -> str:
        return mongodb_replica_set


class TestGridFSArtifactStoreOnStandalone(OnMongoDB):
    @pytest.fixture
    def server(self, mongodb_standalone: str) -> str:
        return mongodb_standalone


@pytest.mark.parametrize("replica_set", [True, False])
async def test_a_server_killed_ten_times_loses_no_part_of_what_was_put(replica_set: bool) -> None:
    server = served(replica_set=replica_set)
    store = GridFSArtifactStore(MongoDatabase(server.url + "x"))

    def restart() -> None:
        server.kill()
        server.start()

    async def source(seed: int, killed_at: int) -> AsyncIterator[bytes]:
        for at in range(14):
            if at == killed_at:
                await asyncio.to_thread(restart)
            yield bytes([seed, at]) * (CHUNK // 2)

    try:
        await store.open()
        kept: dict[str, bytes] = {}
        for seed, killed_at in enumerate([1, 5, 6, 9, 9, 9, 11, 12, 13, 13]):
            data = b"".join([bytes([seed, at]) * (CHUNK // 2) for at in range(14)])
            try:
                name = await store.put(source(seed, killed_at))
            except StoreError:  # the server was away, or forgot a part
                assert not await store.exists(sha256(data))
                name = await store.put(data)
            kept[name] = data
            assert await store.get(name) == data
        assert {name async for name in store.list()} == set(kept)
        for name, data in kept.items():
            assert await store.get(name) == data
        reading = store.open_stream(name)
        await anext(aiter(reading))
        await asyncio.to_thread(server.kill)

        async def read_on() -> int:
            return sum([len(chunk) async for chunk in reading])

        with pytest.raises(StoreUnavailableError):
            await read_on()
        await asyncio.to_thread(server.start)
        assert await store.get(name) == data
    finally:
        await store.aclose()
        server.stop()


async def test_what_was_forgotten_of_an_upload_is_missed(mongodb_standalone: str) -> None:
    """As by a server that is killed between two chunks, without a call that would notice."""
    url = f"{mongodb_standalone}test_{uuid4().hex[:20]}"
    store = GridFSArtifactStore(MongoDatabase(url))
    await store.open()
    with pymongo.MongoClient[Any](url) as client:
        chunks = client.get_default_database()["_asyncdl_artifacts_default.chunks"]

        async def source() -> AsyncIterator[bytes]:
            yield b"x" * (5 * CHUNK)
            assert chunks.delete_one({"n": 3}).deleted_count == 1
            yield b"y"

        with pytest.raises(StoreUnavailableError, match="forgot"):
            await store.put(source())
        assert [name async for name in store.list()] == []
        assert chunks.count_documents({}) == 0
    await store.database.drop()
    await store.aclose()


@pytest.mark.parametrize("namespace", ["", "a.b", "$x", "a" * 65, "a\n", "\x00"])
def test_a_namespace_is_a_name(namespace: str) -> None:
    with pytest.raises(ConfigurationError, match="namespace"):
        GridFSArtifactStore(MongoDatabase("mongodb://localhost/x"), namespace)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    url = f"mongodb://127.0.0.1:{free_port()}/x?serverSelectionTimeoutMS=300"
    with pytest.raises(StoreUnavailableError):
        await GridFSArtifactStore(MongoDatabase(url)).open()
