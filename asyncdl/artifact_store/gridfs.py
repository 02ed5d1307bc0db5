"""Artifacts in GridFS: files and chunks in collections of a MongoDB database, as any GridFS tool reads them.

An artifact is a file whose ``filename`` is its hash. While it is written, its file has another name and the state
``uploading``, and says from time to time that it is still being written; one update then gives it its name and makes it
``complete``. Deleting takes the name away first, by one update again. So whatever is half written or half deleted has no hash
for a name, and is cleared away by those who open the store.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from typing import Any, TypeVar
from uuid import uuid4

from asyncdl.artifact_store.base import CHUNK, ArtifactStore, ReadElsewhere
from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    ClosedError,
    ConfigurationError,
    DuplicateKeyError,
    StoreError,
    StoreUnavailableError,
)
from asyncdl.together import finished

T = TypeVar("T")

_NAME = re.compile(r"[0-9a-f]{64}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_AT_ONCE = 4
"""Chunks that are written, or read, in one call."""
_ABANDONED = 3600
"""Seconds after which an upload that nobody has written to is nobody's."""
_SIGN_OF_LIFE = 60.0
_THREADS = 4


class GridFSArtifactStore(ArtifactStore):
    """An artifact store in a MongoDB database, which any number of processes may use at once.

    Parameters
    ----------
    database
        The database; it may be shared with a metadata store.
    namespace
        Part of the names of its collections, ``_asyncdl_artifacts_<namespace>.files`` and ``.chunks``.
    """

    def __init__(self, database: MongoDatabase, namespace: str = "default") -> None:
        if not _NAMESPACE.fullmatch(namespace):
            raise ConfigurationError(f"{namespace!r} is no namespace: up to 64 letters, digits, _ and -")
        self.database = database
        self.url = database.url
        self._namespace = namespace
        self.files = f"_asyncdl_artifacts_{namespace}.files"
        self.chunks = f"_asyncdl_artifacts_{namespace}.chunks"
        self._is_open = False
        self._uploads: dict[str, _Upload] = {}
        self._executor: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        """Connect, create the collections, and remove uploads that nobody has written to for an hour."""
        if self._is_open:
            return
        await self.database.open()
        try:
            await self.database.create(self.files, [("filename", 1)], unique=True)
            await self.database.create(self.chunks, [("files_id", 1), ("n", 1)], unique=True)
            await self._clear_away()
        except BaseException:
            await self.database.aclose()
            raise
        # Not the loop's own executor: artifacts wait for nobody else's work, and nobody for theirs.
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="asyncdl-gridfs")
        self._is_open = True

    async def _clear_away(self) -> None:
        old = {"$expr": {"$lt": ["$alive", {"$subtract": ["$$NOW", _ABANDONED * 1000]}]}}  # the server's clock counts
        abandoned = {"state": "uploading", **old}
        await self.database.update(self.files, abandoned, {"$set": {"state": "deleted"}}, many=True)
        for each in await self.database.find(self.files, {"state": "deleted"}, fields={"_id": 1}):
            await self._remove(each["_id"])
        # Chunks without a file: of an upload that went on after it had been cleared away.
        orphans: list[dict[str, Any]] = [
            {"$group": {"_id": "$files_id"}},
            {"$lookup": {"from": self.files, "localField": "_id", "foreignField": "_id", "as": "file"}},
            {"$match": {"file": []}},
            {"$project": {"_id": 1}},
        ]
        for each in await self.database.aggregate(self.chunks, orphans):
            await self.database.delete(self.chunks, {"files_id": each["_id"]})

    async def aclose(self) -> None:
        """Remove what is half written, and close the connections."""
        if not self._is_open:
            return
        self._is_open = False  # from here on nothing new begins
        try:
            for upload in list(self._uploads.values()):
                await upload.calm()
                await self._discard(upload)
        finally:
            if self._executor is not None:
                self._executor.shutdown()  # its threads hash some megabytes at most: this is short
                self._executor = None
            await self.database.aclose()

    def in_thread(self, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Call a function in a thread of the store's."""
        self.check()
        return asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    def check(self) -> None:
        """Raise unless the store is open."""
        if not self._is_open:
            raise ClosedError(f"the artifact store {self.url} is not open")

    def elsewhere(self) -> ReadElsewhere:
        """Return what opens this store in another process."""
        return _Elsewhere(self.database.uri, self._namespace)

    # writing

    async def put(self, data: bytes | AsyncIterable[bytes]) -> str:
        """Store bytes, streamed or whole, and return their hash.

        Raises
        ------
        StoreError
            The source gave nothing for an hour, and the upload was cleared away by another process.
        """
        self.check()
        upload = _Upload(self)
        self._uploads[upload.id] = upload
        try:
            if isinstance(data, (bytes, bytearray, memoryview)):
                await upload.write(data)
            else:
                async for part in data:
                    await upload.write(part)
            published = await upload.publish()
        except BaseException:
            await self._cleaned_up(upload)
            raise
        if published:
            self._uploads.pop(upload.id, None)
        else:
            await self._cleaned_up(upload)
        return upload.sha256

    async def _cleaned_up(self, upload: _Upload) -> None:
        if self._is_open:  # else `aclose` has done it
            with suppress(StoreUnavailableError, ClosedError):  # it is cleared away after an hour
                await finished(self._discard(upload))

    async def _discard(self, upload: _Upload) -> None:
        self._uploads.pop(upload.id, None)
        if not upload.begun:
            return
        # First so that it cannot be published any more: an update that was given up may still be on its way.
        mine = {"_id": upload.id, "state": "uploading"}
        await self.database.update(self.files, mine, {"$set": {"state": "deleted"}})
        if not await self.database.find(self.files, {"_id": upload.id, "state": "complete"}):
            await self._remove(upload.id)

    async def _remove(self, upload: str) -> None:
        """Remove the chunks, and then the file: as long as there are any, there is a trace of them."""
        await self.database.delete(self.chunks, {"files_id": upload})
        await self.database.delete(self.files, {"_id": upload})

    async def delete(self, sha256: str) -> bool:
        """Delete an artifact; return whether there was one."""
        self.check()
        if not _NAME.fullmatch(sha256):
            return False
        gone = {"$set": {"filename": f"deleted-{uuid4().hex}", "state": "deleted"}}
        was = await self.database.find_and_update(self.files, {"filename": sha256}, gone)
        if was is None:
            return False
        await finished(self._remove(was["_id"]))
        return True

    # reading

    async def open_stream(self, sha256: str) -> AsyncIterator[bytes]:
        """Yield an artifact's bytes in chunks of at most `CHUNK`."""
        async with aclosing(self._verified(sha256)) as batches:
            async for batch in batches:
                for data in batch:
                    for at in range(0, len(data), CHUNK):  # another tool's chunks may be larger
                        yield data[at : at + CHUNK]

    async def get(self, sha256: str) -> bytes:
        """Return an artifact's verified bytes, whole."""
        parts: list[bytes] = []
        async with aclosing(self._verified(sha256)) as batches:
            async for batch in batches:
                parts.extend(batch)
        return await self.in_thread(b"".join, parts)

    async def _verified(self, sha256: str) -> AsyncGenerator[list[bytes], None]:
        """Yield the chunks' bytes, hashed meanwhile; raises at the end if they are others than the name says."""
        digest = hashlib.sha256()
        async with aclosing(self._read(sha256)) as batches:
            async for batch in batches:
                hashing = self.in_thread(_update, digest, batch)
                try:
                    yield batch
                finally:
                    await finished(hashing)
        if digest.hexdigest() != sha256:
            raise ArtifactCorruptError(f"{self.url}: the bytes of artifact {sha256} have the hash {digest.hexdigest()}")

    async def _read(self, sha256: str) -> AsyncGenerator[list[bytes], None]:
        """Yield the chunks' bytes, some at a time, the next being read meanwhile."""
        self.check()
        where = {"filename": sha256, "state": "complete"}
        found = await self.database.find_one(self.files, where) if _NAME.fullmatch(sha256) else None
        if found is None:
            raise ArtifactNotFoundError(f"{self.url}: there is no artifact {sha256}")
        stream = self.database.stream(
            self.chunks, {"files_id": found["_id"]}, fields={"data": 1}, sort=[("n", 1)], size=_AT_ONCE
        )
        async with aclosing(stream) as chunks:
            following: asyncio.Task[Any] | None = asyncio.ensure_future(anext(chunks, None))
            try:
                while following is not None and (batch := await following) is not None:
                    following = asyncio.ensure_future(anext(chunks, None))
                    yield [each["data"] for each in batch]
            finally:
                if following is not None:
                    with suppress(Exception):  # it has been raised, or nobody reads on
                        await finished(following)

    async def exists(self, sha256: str) -> bool:
        """Return whether the artifact is there and complete."""
        self.check()
        where = {"filename": sha256, "state": "complete"}
        return bool(_NAME.fullmatch(sha256)) and await self.database.find_one(self.files, where) is not None

    async def list(self) -> AsyncIterator[str]:
        """Yield the hashes of all complete artifacts, some at a time."""
        self.check()
        files = self.database.stream(self.files, {"state": "complete"}, fields={"filename": 1})
        async with aclosing(files) as batches:
            async for batch in batches:
                for each in batch:
                    if _NAME.fullmatch(each["filename"]):
                        yield each["filename"]


class _Upload:
    """An artifact that is being written."""

    def __init__(self, store: GridFSArtifactStore) -> None:
        self.id = uuid4().hex
        self.begun = False
        self.sha256 = ""
        self._store = store
        self._digest = hashlib.sha256()
        self._tail = bytearray()  # less than a chunk
        self._ready: list[bytes] = []
        self._written = 0
        self._length = 0
        self._alive = 0.0
        self._busy = asyncio.Lock()

    async def calm(self) -> None:
        """Wait until nothing of it is under way in the database."""
        async with self._busy:
            pass

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take some bytes."""
        view, at = memoryview(data).cast("B"), 0
        if self._tail:
            at = min(CHUNK - len(self._tail), len(view))
            self._tail += view[:at]
            if len(self._tail) == CHUNK:
                self._ready.append(bytes(self._tail))
                self._tail.clear()
        while at + CHUNK <= len(view):
            self._ready.append(bytes(view[at : at + CHUNK]))
            at += CHUNK
            if len(self._ready) >= _AT_ONCE:
                await self._flush()
        self._tail += view[at:]
        if len(self._ready) >= _AT_ONCE:
            await self._flush()

    async def _flush(self) -> None:
        async with self._busy:
            self._store.check()
            await self._say_alive()
            ready, self._ready = self._ready, []
            numbered = enumerate(ready, self._written)
            chunks = [{"files_id": self.id, "n": n, "data": data} for n, data in numbered]
            self._written += len(ready)
            self._length += sum(map(len, ready))
            hashing = self._store.in_thread(_update, self._digest, ready)
            try:
                # Publishing waits for journal and replicas, and sees to it that these are there.
                await self._store.database.insert(self._store.chunks, chunks, local=True)
            finally:
                await finished(hashing)

    async def _say_alive(self) -> None:
        if self.begun and time.monotonic() - self._alive < _SIGN_OF_LIFE:
            return
        is_new, self.begun, self._alive = not self.begun, True, time.monotonic()
        new = {"filename": f"uploading-{self.id}", "state": "uploading", "chunkSize": CHUNK, "length": 0}
        change: dict[str, Any] = {"$currentDate": {"alive": True}}
        where = {"_id": self.id}
        if is_new:
            await self._store.database.update(
                self._store.files, where, change | {"$setOnInsert": new}, upsert=True, local=True
            )
        elif not await self._store.database.update(self._store.files, where | {"state": "uploading"}, change):
            self._gone()

    def _gone(self) -> None:
        raise StoreError(
            f"{self._store.url}: an upload was cleared away, for nothing had come for an hour, or the server was restarted"
        )

    async def publish(self) -> bool:
        """Give it its name; return False when there is an equal artifact already."""
        if self._tail:
            self._ready.append(bytes(self._tail))
        await self._flush_rest()
        self.sha256 = self._digest.hexdigest()
        change = {
            "$set": {"filename": self.sha256, "state": "complete", "length": self._length},
            "$currentDate": {"uploadDate": True},
            "$unset": {"alive": ""},
        }
        where = {"_id": self.id, "state": "uploading"}
        async with self._busy:
            self._store.check()
            await self._kept(where)
            try:
                if not await self._store.database.update(self._store.files, where, change):
                    self._gone()
            except DuplicateKeyError:
                return False
        return True

    async def _kept(self, where: Mapping[str, Any]) -> None:
        """Make sure that every chunk is there for good: a server that was killed forgets what it has not journaled."""
        # This write waits for the journal and the replicas, and so for all before it. What is there then has not been forgotten.
        alive = {"$currentDate": {"alive": True}}
        if not await self._store.database.update(self._store.files, where, alive):
            self._gone()
        count: list[dict[str, Any]] = [{"$match": {"files_id": self.id}}, {"$count": "n"}]
        found = await self._store.database.aggregate(self._store.chunks, count)
        if (found[0]["n"] if found else 0) != self._written:
            raise StoreUnavailableError(f"{self._store.url}: the server forgot a part of an upload: it was restarted")

    async def _flush_rest(self) -> None:
        if self._ready:
            await self._flush()
        else:
            async with self._busy:
                self._store.check()
                await self._say_alive()


def _update(digest: hashlib._Hash, parts: Iterable[bytes]) -> None:
    for each in parts:
        digest.update(each)


class _Elsewhere:
    """Reads artifacts in a process that has not opened the store; its repr shows no password."""

    def __init__(self, uri: str, namespace: str) -> None:
        self._uri = uri
        self._namespace = namespace

    async def __call__(self, sha256: str) -> bytes:
        store = GridFSArtifactStore(MongoDatabase(self._uri), self._namespace)
        await store.open()
        try:
            return await store.get(sha256)
        finally:
            await store.aclose()
