"""The conformance suite of artifact stores.

Derive a class named ``Test...`` from `ArtifactStoreTests`, implement its hooks, and pytest runs the suite against your
store. It needs the pytest plugin of anyio, on asyncio.
"""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable

import pytest

from asyncdl.artifact_store.base import CHUNK, ArtifactStore
from asyncdl.errors import ArtifactCorruptError, ArtifactNotFoundError, ClosedError

DATA = b"an artifact"
MISSING = "0" * 64
NO_NAMES = [
    "",
    "../../etc/passwd",
    "../" * 21 + "x",
    "g" * 64,
    "A" * 64,
    "0" * 63,
    "0" * 65,
    "0" * 63 + "\n",
    "0" * 63 + "/",
]


def sha256(data: bytes) -> str:
    """Return the name that bytes are stored under."""
    return hashlib.sha256(data).hexdigest()


async def streamed(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Yield chunks, and give others a turn before each."""
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk


class SourceError(Exception):
    """What a failing source of bytes raises."""


class ArtifactStoreTests(ABC):
    """What holds for each artifact store."""

    @abstractmethod
    async def make(self) -> ArtifactStore:
        """Return a store, not opened, whose place is empty; each test makes one."""

    @abstractmethod
    async def stored(self) -> dict[str, bytes]:
        """Return all complete artifacts in the place of the store made last, read past the store."""

    @abstractmethod
    async def leftovers(self) -> list[str]:
        """Name what incomplete writes left there, found past the store."""

    @abstractmethod
    async def damage(self, name: str) -> None:
        """Change one byte of a stored artifact, past the store."""

    @pytest.fixture
    async def store(self) -> AsyncIterator[ArtifactStore]:
        """Yield an opened, empty store."""
        store = await self.make()
        await store.open()
        yield store
        await store.aclose()

    @pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 3])
    async def test_whole_bytes_come_back(self, store: ArtifactStore, size: int) -> None:
        """Bytes are stored under their hash, and read back whole and in chunks."""
        data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        name = await store.put(data)
        assert name == sha256(data)
        assert await self.stored() == {name: data}
        assert await store.get(name) == data
        chunks = [chunk async for chunk in store.open_stream(name)]
        assert b"".join(chunks) == data
        assert all(len(chunk) <= CHUNK for chunk in chunks)

    @pytest.mark.parametrize(
        "chunks",
        [[], [b""], [b"a", b"", b"bc"], [b"x" * 10] * 1000, [b"y" * (9 * CHUNK + 1), b"z"]],
        ids=["none", "empty", "small", "many", "large"],
    )
    async def test_streamed_bytes_come_back(self, store: ArtifactStore, chunks: list[bytes]) -> None:
        """Chunks of any size may be streamed in."""
        data = b"".join(chunks)
        assert await store.put(streamed(chunks)) == sha256(data)
        assert await self.stored() == {sha256(data): data}
        assert await store.get(sha256(data)) == data

    async def test_equal_artifacts_are_one(self, store: ArtifactStore) -> None:
        """Writing is idempotent, whole or streamed."""
        assert await store.put(DATA) == await store.put(DATA) == await store.put(streamed([DATA]))
        assert await self.stored() == {sha256(DATA): DATA}
        assert await self.leftovers() == []

    async def test_concurrent_equal_writes(self, store: ArtifactStore) -> None:
        """Any number of equal writes may run at once."""
        data = b"same" * CHUNK
        names = await asyncio.gather(
            *(store.put(data) for _ in range(25)), *(store.put(streamed([data[:7], data[7:]])) for _ in range(25))
        )
        assert set(names) == {sha256(data)}
        assert await self.stored() == {sha256(data): data}
        assert await self.leftovers() == []

    async def test_concurrent_different_writes(self, store: ArtifactStore) -> None:
        """Writes do not get into each other."""
        contents = [bytes([at]) * (CHUNK + at) for at in range(20)]
        names = await asyncio.gather(*(store.put(streamed([data[:5], data[5:]])) for data in contents))
        assert names == [sha256(data) for data in contents]
        assert await self.stored() == dict(zip(names, contents, strict=True))
        assert await asyncio.gather(*map(store.get, names)) == contents

    async def test_exists_list_delete(self, store: ArtifactStore) -> None:
        """What is stored exists and is listed, until it is deleted."""
        names = {await store.put(bytes([at])) for at in range(10)}
        assert {name async for name in store.list()} == names
        gone = names.pop()
        assert await store.exists(gone)
        assert await store.delete(gone)
        assert not await store.exists(gone)
        assert not await store.delete(gone)
        assert {name async for name in store.list()} == names == set(await self.stored())
        assert await store.put(b"\x00" * 3) == sha256(b"\x00" * 3)

    async def test_deleted_comes_back(self, store: ArtifactStore) -> None:
        """What was deleted can be stored again."""
        name = await store.put(DATA)
        await store.delete(name)
        await store.put(DATA)
        assert await store.get(name) == DATA

    async def test_missing(self, store: ArtifactStore) -> None:
        """What is not there is not found."""
        with pytest.raises(ArtifactNotFoundError, match=MISSING):
            await store.get(MISSING)
        with pytest.raises(ArtifactNotFoundError, match=MISSING):
            await anext(store.open_stream(MISSING))
        assert not await store.exists(MISSING)
        assert not await store.delete(MISSING)
        assert [name async for name in store.list()] == []

    @pytest.mark.parametrize("name", NO_NAMES)
    async def test_what_is_no_hash_names_nothing(self, store: ArtifactStore, name: str) -> None:
        """Only 64 lower-case hexadecimal digits are a name."""
        await store.put(DATA)
        with pytest.raises(ArtifactNotFoundError):
            await store.get(name)
        with pytest.raises(ArtifactNotFoundError):
            await anext(store.open_stream(name))
        assert not await store.exists(name)
        assert not await store.delete(name)

    @pytest.mark.parametrize("size", [1, 3 * CHUNK])
    async def test_damage_is_found(self, store: ArtifactStore, size: int) -> None:
        """Damaged bytes are not returned; a stream of them ends in an error."""
        name = await store.put(b"d" * size)
        await self.damage(name)
        with pytest.raises(ArtifactCorruptError, match=name):
            await store.get(name)
        read: list[int] = []

        async def read_all() -> None:
            async for chunk in store.open_stream(name):
                read.append(len(chunk))  # noqa: PERF401 - what came before the error counts

        with pytest.raises(ArtifactCorruptError, match=name):
            await read_all()
        assert sum(read) == size

    async def test_failing_source_leaves_nothing(self, store: ArtifactStore) -> None:
        """A source's exception comes through as it is."""

        async def failing() -> AsyncIterator[bytes]:
            yield b"x" * (6 * CHUNK)
            raise SourceError

        with pytest.raises(SourceError):
            await store.put(failing())
        assert await self.stored() == {}
        assert await self.leftovers() == []

    async def test_incomplete_is_invisible(self, store: ArtifactStore) -> None:
        """While it is written, an artifact is not there; cancelled, it never was."""
        waits = asyncio.Event()

        async def waiting() -> AsyncIterator[bytes]:
            yield b"x" * (6 * CHUNK)
            waits.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(store.put(waiting()))
        await waits.wait()
        assert [name async for name in store.list()] == []
        assert await self.stored() == {}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await self.stored() == {}
        assert await self.leftovers() == []

    async def test_cancelled_writes_leave_nothing(self, store: ArtifactStore) -> None:
        """Wherever a cancellation hits a write, nothing is left of it, or all is stored."""
        data = b"c" * (CHUNK + 1)
        for turns in range(200):
            content = data + turns.to_bytes(2)
            task = asyncio.create_task(store.put(content))
            for _ in range(turns % 40):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert await self.leftovers() == []
        assert all(name == sha256(content) for name, content in (await self.stored()).items())

    async def test_abandoned_reading(self, store: ArtifactStore) -> None:
        """A stream may be left in its middle."""
        name = await store.put(b"a" * (3 * CHUNK))
        stream = store.open_stream(name)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        assert await store.delete(name)

    async def test_closed(self) -> None:
        """Before opening and after closing nothing works; closing twice does."""
        store = await self.make()
        for _ in range(2):
            with pytest.raises(ClosedError):
                await store.put(DATA)
            with pytest.raises(ClosedError):
                await store.get(MISSING)
            with pytest.raises(ClosedError):
                await anext(store.open_stream(MISSING))
            with pytest.raises(ClosedError):
                await store.exists(MISSING)
            with pytest.raises(ClosedError):
                await store.delete(MISSING)
            with pytest.raises(ClosedError):
                await anext(store.list())
            await store.aclose()
            await store.open()
            await store.aclose()
            await store.aclose()

    async def test_closing_ends_writes(self) -> None:
        """A write that waits for its source when the store is closed fails, and leaves nothing."""
        store = await self.make()
        await store.open()
        waits, goes_on = asyncio.Event(), asyncio.Event()

        async def waiting() -> AsyncIterator[bytes]:
            yield b"x" * (6 * CHUNK)
            waits.set()
            await goes_on.wait()
            yield b"y"

        task = asyncio.create_task(store.put(waiting()))
        await waits.wait()
        await store.aclose()
        assert await self.leftovers() == []
        goes_on.set()
        with pytest.raises(ClosedError):
            await task
        assert await self.stored() == {}

    async def test_reopened(self) -> None:
        """What was stored is there after closing and opening again."""
        store = await self.make()
        await store.open()
        name = await store.put(DATA)
        await store.aclose()
        await store.open()
        assert await store.get(name) == DATA
        await store.aclose()
