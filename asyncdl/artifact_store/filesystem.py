"""Artifacts as files of a directory.

An artifact of hash ``abcdef...`` is the file ``ab/cdef...``. It is written under a name of its own in ``tmp``, and
renamed when it is complete and on the disk.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import aiofiles

from asyncdl.artifact_store.base import CHUNK, ArtifactStore, ReadElsewhere
from asyncdl.errors import ArtifactCorruptError, ArtifactNotFoundError, ClosedError, StoreError, StoreUnavailableError
from asyncdl.together import both, finished

T = TypeVar("T")

_NAME = re.compile(r"[0-9a-f]{64}")
_FOLDER = re.compile(r"[0-9a-f]{2}")
_REST = re.compile(r"[0-9a-f]{62}")
_TEMPORARY = "tmp"
_ABANDONED = 3600.0
"""Seconds after which a temporary file that nobody wrote to is nobody's."""
_WRITE = 4 * CHUNK
"""Bytes that go to a thread at once."""
_THREADS = 8
_UNAVAILABLE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ENODEV,
    errno.ENXIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.ETIMEDOUT,
}


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise asyncdl's errors for those of the file system."""
    try:
        yield
    except OSError as error:
        kind = StoreUnavailableError if error.errno in _UNAVAILABLE else StoreError
        raise kind(f"{url}: {error}") from error


class FilesystemArtifactStore(ArtifactStore):
    """An artifact store in a directory, which any number of processes may use at once.

    Parameters
    ----------
    path
        The directory; made when it is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.url = f"filesystem://{os.fspath(path)}"
        self._path = Path(path)
        self._executor: ThreadPoolExecutor | None = None
        self._is_open = False
        self._steps = 0
        self._calm = asyncio.Event()
        self._files: dict[object, Any] = {}  # what is open: by its path while it is written, else by a token

    async def open(self) -> None:
        """Make the directory, and remove temporary files that nobody has written to for an hour."""
        if self._executor is not None:
            return
        # Not the loop's own executor: artifacts wait for nobody else's work, and nobody for theirs.
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="asyncdl-artifacts")
        self._is_open = True
        try:
            await self._step(self._in_thread(self._prepare))
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close all files, and remove those that are half written."""
        if self._executor is None:
            return
        self._is_open = False  # from here on nothing new begins
        while self._steps:
            self._calm.clear()
            await self._calm.wait()
        for key in list(self._files):
            await self._discard(key)
        self._executor.shutdown()  # its threads are idle: this is short
        self._executor = None

    async def put(self, data: bytes | AsyncIterable[bytes]) -> str:
        """Store bytes, streamed or whole, and return their hash."""
        temporary = self._path / _TEMPORARY / uuid.uuid4().hex
        digest = hashlib.sha256()
        try:
            await self._step(self._open(temporary, temporary, "xb"))
            if isinstance(data, (bytes, bytearray, memoryview)):
                await self._append(temporary, digest, data)
            else:
                parts, size = [], 0
                async for chunk in data:
                    parts.append(chunk)
                    size += len(chunk)
                    if size >= _WRITE:
                        await self._append(temporary, digest, b"".join(parts))
                        parts, size = [], 0
                await self._append(temporary, digest, b"".join(parts))
            return await self._step(self._publish(temporary, digest.hexdigest()))
        except BaseException:
            with suppress(ClosedError):  # then `aclose` has done it
                await self._step(self._discard(temporary))
            raise

    async def open_stream(self, sha256: str) -> AsyncIterator[bytes]:
        """Yield an artifact's bytes in chunks of at most `CHUNK`."""
        token, digest = object(), hashlib.sha256()
        try:
            file = await self._step(self._open(token, self._existing(sha256), "rb"))
            chunk = await self._step(file.read(CHUNK))
            while chunk:
                # Hashing one chunk and reading the next go on side by side.
                following, _ = await self._step(both(file.read(CHUNK), self._in_thread(digest.update, chunk)))
                yield chunk
                chunk = following
        finally:
            with suppress(ClosedError):
                await self._step(self._discard(token))
        self._verify(sha256, digest.hexdigest())

    async def get(self, sha256: str) -> bytes:
        """Return an artifact's verified bytes, whole."""
        token = object()
        try:
            file = await self._step(self._open(token, self._existing(sha256), "rb"))
            data: bytes = await self._step(file.read())
            digest = await self._step(self._in_thread(hashlib.sha256, data))
        finally:
            with suppress(ClosedError):
                await self._step(self._discard(token))
        self._verify(sha256, digest.hexdigest())
        return data

    async def exists(self, sha256: str) -> bool:
        """Return whether the artifact is there and complete."""
        return await self._step(self._in_thread(_is_file, self._file(sha256)))

    async def delete(self, sha256: str) -> bool:
        """Delete an artifact; return whether there was one."""
        return await self._step(self._in_thread(_remove, self._file(sha256)))

    async def list(self) -> AsyncIterator[str]:
        """Yield the hashes of all complete artifacts, a folder's at a time."""
        for folder in await self._step(self._in_thread(_names, self._path, _FOLDER)):
            for rest in await self._step(self._in_thread(_names, self._path / folder, _REST)):
                yield folder + rest

    def elsewhere(self) -> ReadElsewhere:
        """Return what reads this folder, where it is mounted at the same path."""
        return _Mounted(str(self._path.absolute()))

    # names

    def _file(self, sha256: str) -> Path | None:
        """Return where an artifact is; None for what is no hash, and must not become a path."""
        return self._path / sha256[:2] / sha256[2:] if _NAME.fullmatch(sha256) else None

    def _existing(self, sha256: str) -> Path:
        path = self._file(sha256)
        if path is None:
            raise ArtifactNotFoundError(f"{self.url}: {sha256!r} is no artifact's name (64 hexadecimal digits)")
        return path

    def _read(self, sha256: str) -> bytes:
        with translated(self.url):
            data = self._existing(sha256).read_bytes()
        self._verify(sha256, hashlib.sha256(data).hexdigest())
        return data

    def _verify(self, sha256: str, found: str) -> None:
        if found != sha256:
            raise ArtifactCorruptError(f"{self.url}: the bytes of artifact {sha256} have the hash {found}")

    # steps

    async def _step(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something with the file system, to its end: a thread cannot be cancelled.

        A cancellation takes effect afterwards, so that whoever cleans up finds nothing still under way.
        """
        if not self._is_open:
            work.close()
            raise ClosedError(f"{self.url} is not open")
        self._steps += 1
        try:
            with translated(self.url):
                return await finished(work)
        finally:
            self._steps -= 1
            if not self._steps:
                self._calm.set()

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    async def _open(self, key: object, path: Path, mode: Literal["rb", "xb"]) -> Any:
        try:
            self._files[key] = await aiofiles.open(path, mode, executor=self._executor)
        except FileNotFoundError:
            if mode == "rb":
                raise ArtifactNotFoundError(f"{self.url}: there is no artifact {path.parent.name}{path.name}") from None
            raise
        return self._files[key]

    async def _append(self, temporary: Path, digest: hashlib._Hash, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        for at in range(0, len(view), _WRITE):
            part = view[at : at + _WRITE]
            await self._step(self._write(temporary, digest, part))

    async def _write(self, temporary: Path, digest: hashlib._Hash, part: memoryview) -> None:
        await both(self._files[temporary].write(part), self._in_thread(digest.update, part))

    async def _publish(self, temporary: Path, sha256: str) -> str:
        file = self._files[temporary]
        await file.flush()
        await self._in_thread(os.fsync, file.fileno())
        await file.close()
        await self._in_thread(_rename, temporary, self._existing(sha256))
        del self._files[temporary]
        return sha256

    async def _discard(self, key: object) -> None:
        """Close a file, and remove it when it is half written."""
        file = self._files.pop(key, None)
        if file is None:
            return
        with suppress(OSError):  # on a full disk closing fails as writing did
            await file.close()
        if isinstance(key, Path):
            await self._in_thread(_remove, key)

    # in a thread

    def _prepare(self) -> None:
        folder = self._path / _TEMPORARY
        folder.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - _ABANDONED
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):  # another process clears them too
                if entry.stat().st_mtime < oldest:
                    os.unlink(entry)


@dataclass(frozen=True, slots=True)
class _Mounted:
    """Reads artifacts in a process that has not opened the store, and makes nothing where the folder is not there."""

    folder: str

    async def __call__(self, sha256: str) -> bytes:
        store = FilesystemArtifactStore(self.folder)
        return await asyncio.to_thread(store._read, sha256)


def _rename(temporary: Path, final: Path) -> None:
    """Give a complete file its name, durably. What had the name has the same bytes, or corrupt ones: it is replaced."""
    folder = final.parent
    is_new = not folder.is_dir()
    folder.mkdir(exist_ok=True)
    os.replace(temporary, final)
    _sync(folder)
    if is_new:
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_file(path: Path | None) -> bool:
    return path is not None and path.is_file()


def _remove(path: Path | None) -> bool:
    if path is None:
        return False
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if pattern.fullmatch(name)]
    except FileNotFoundError:
        return []
