"""The artifact store: bytes under the name of their hash."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable

ReadElsewhere = Callable[[str], Awaitable[bytes]]
"""Returns the verified bytes of an artifact, by its hash; picklable, and opens and closes the store by itself."""

CHUNK = 1024 * 1024
"""Bytes in one chunk of a stream."""


class ArtifactStore(ABC):
    """A content-addressed store: an artifact's name is the SHA-256 of its bytes, in hexadecimal (64 characters).

    So writing is idempotent, equal artifacts are stored once, and reading verifies. An artifact is invisible until it is
    complete. What refers to an artifact is the metadata store's to know; the Datalayer deletes what nothing refers to.
    """

    url: str
    """Where it is, without a password: fit for messages."""

    @abstractmethod
    async def open(self) -> None:
        """Connect, create what is missing, and clear away what interrupted writes left (none younger than an hour)."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close what `open` opened; closing twice is allowed."""

    @abstractmethod
    async def put(self, data: bytes | AsyncIterable[bytes]) -> str:
        """Store bytes, streamed or whole, and return their hash.

        A failure or a cancellation leaves nothing behind. Any number of equal writes may run at once, in any number of
        processes.
        """

    @abstractmethod
    def open_stream(self, sha256: str) -> AsyncIterator[bytes]:
        """Yield an artifact's bytes in chunks of at most `CHUNK`.

        Raises
        ------
        ArtifactNotFoundError
            At the first chunk, when there is none of this name.
        ArtifactCorruptError
            After the last chunk, when the bytes have another hash; so use nothing before the end.
        """

    @abstractmethod
    async def exists(self, sha256: str) -> bool:
        """Return whether the artifact is there and complete."""

    @abstractmethod
    async def delete(self, sha256: str) -> bool:
        """Delete an artifact; return whether there was one."""

    @abstractmethod
    def list(self) -> AsyncIterator[str]:
        """Yield the hashes of all complete artifacts, in no order."""

    async def get(self, sha256: str) -> bytes:
        """Return an artifact's verified bytes, whole; raises as `open_stream` does."""
        return b"".join([chunk async for chunk in self.open_stream(sha256)])

    def elsewhere(self) -> ReadElsewhere | None:
        """Return what reads artifacts in another process, on a machine that may not reach the store; None: nothing does.

        It holds what is needed to connect, a password too.
        """
        return None
