"""The artifact store in a directory."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncdl.artifact_store.base import CHUNK, ArtifactStore
from asyncdl.artifact_store.filesystem import FilesystemArtifactStore, translated
from asyncdl.errors import AsyncDLError, StoreError, StoreUnavailableError
from asyncdl.testing.artifact_store import DATA, ArtifactStoreTests, sha256, streamed

pytestmark = pytest.mark.anyio

WRITER = """
    import asyncio, sys
    from asyncdl.artifact_store.filesystem import FilesystemArtifactStore

    async def source():
        while True:
            yield b"x" * 8_000_000
            print("wrote", flush=True)
            await asyncio.sleep(0)

    async def main():
        store = FilesystemArtifactStore(sys.argv[1])
        await store.open()
        await store.put(source())

    asyncio.run(main())
"""


class TestFilesystemArtifactStore(ArtifactStoreTests):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "deep" / "artifacts"

    async def make(self) -> ArtifactStore:
        return FilesystemArtifactStore(self.path)

    async def stored(self) -> dict[str, bytes]:
        return {file.parent.name + file.name: file.read_bytes() for file in self.path.glob("??/*")}

    async def leftovers(self) -> list[str]:
        return [file.name for file in (self.path / "tmp").iterdir()]

    async def damage(self, name: str) -> None:
        file = self.path / name[:2] / name[2:]
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)

    async def test_killed_writer_leaves_no_artifact(self, store: ArtifactStore) -> None:
        await asyncio.to_thread(self.kill_in_mid_put)
        assert [name async for name in store.list()] == []
        assert await self.stored() == {}
        (left,) = (self.path / "tmp").iterdir()
        await self.reopen()
        assert left.exists(), "it may be another process's"
        two_hours_ago = time.time() - 7200
        os.utime(left, (two_hours_ago, two_hours_ago))
        await self.reopen()
        assert not left.exists()

    def kill_in_mid_put(self) -> None:
        command = [sys.executable, "-c", textwrap.dedent(WRITER), str(self.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "wrote\n"
            writer.kill()

    async def reopen(self) -> None:
        other = FilesystemArtifactStore(self.path)
        await other.open()
        await other.aclose()

    async def test_streams_in_bounded_memory(self, store: ArtifactStore) -> None:
        async def source() -> AsyncIterator[bytes]:
            for at in range(60):
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
        assert total == 60 * CHUNK
        assert peak < 20 * CHUNK

    async def test_damaged_artifact_is_replaced_by_a_new_write(self, store: ArtifactStore) -> None:
        name = await store.put(DATA)
        await self.damage(name)
        await store.put(DATA)
        assert await store.get(name) == DATA

    async def test_hostile_names_do_not_leave_the_directory(self, store: ArtifactStore) -> None:
        secret = self.path.parent / "secret"
        secret.write_bytes(DATA)
        assert not await store.delete("../secret")
        assert not await store.exists("../secret")
        assert secret.exists()

    async def test_other_files_are_not_listed(self, store: ArtifactStore) -> None:
        name = await store.put(DATA)
        (self.path / "README").write_text("x")
        (self.path / name[:2] / "README").write_text("x")
        (self.path / "ab.d").mkdir()
        assert [each async for each in store.list()] == [name]

    async def test_no_thread_is_left(self, store: ArtifactStore) -> None:
        await store.put(DATA)
        assert any(each.name.startswith("asyncdl-artifacts") for each in threading.enumerate())
        await store.aclose()
        assert not any(each.name.startswith("asyncdl-artifacts") for each in threading.enumerate())

    async def test_full_disk_leaves_nothing(self, store: ArtifactStore) -> None:
        resource = pytest.importorskip("resource")
        signal = pytest.importorskip("signal")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK, limits[1]))  # a write beyond it fails, as on a full disk
        try:
            with pytest.raises(StoreError, match="File too large"):
                await store.put(b"x" * (9 * CHUNK))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert await self.stored() == {}
        assert await self.leftovers() == []

    async def test_directory_that_went_is_unavailable(self, store: ArtifactStore) -> None:
        (self.path / "tmp").rmdir()
        with pytest.raises(StoreUnavailableError, match=str(self.path)):
            await store.put(streamed([DATA]))

    async def test_failed_open_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("not a directory")
        store = FilesystemArtifactStore(tmp_path / "file" / "artifacts")
        with pytest.raises(StoreUnavailableError):
            await store.open()
        assert not any(each.name.startswith("asyncdl-artifacts") for each in threading.enumerate())


def test_layout_and_url(tmp_path: Path) -> None:
    async def put() -> str:
        store = FilesystemArtifactStore(tmp_path)
        assert store.url == f"filesystem://{tmp_path}"
        await store.open()
        name = await store.put(DATA)
        await store.aclose()
        return name

    name = asyncio.run(put())
    assert name == sha256(DATA)
    assert (tmp_path / name[:2] / name[2:]).read_bytes() == DATA


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, StoreUnavailableError),
        (errno.EACCES, StoreUnavailableError),
        (errno.EROFS, StoreUnavailableError),
        (errno.EIO, StoreUnavailableError),
        (errno.ENOSPC, StoreError),
        (errno.EMFILE, StoreError),
        (None, StoreError),
    ],
)
def test_errors_of_the_file_system(number: int | None, kind: type[AsyncDLError]) -> None:
    original = OSError("broken") if number is None else OSError(number, os.strerror(number))
    with pytest.raises(kind) as caught, translated("filesystem://here"):
        raise original
    assert type(caught.value) is kind
    assert caught.value.__cause__ is original
    assert "filesystem://here" in str(caught.value)
