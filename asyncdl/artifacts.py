"""Which artifacts are in use, so that those that are not can be deleted.

An artifact is written before the commit that refers to it, and deleted after the commit that drops the last reference. Two
processes could meet in between: one finds an artifact there and does not write it, the other deletes it. So each announces
what it is about to do, and then looks for the other's announcement: whoever comes second sees the first.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from asyncdl.artifact_store.base import ArtifactStore
from asyncdl.errors import ConflictError
from asyncdl.intents import Intents
from asyncdl.metadata.base import MetadataStore
from asyncdl.metadata.changes import Change, DeleteIntent

_ADDING, _COLLECTING = "adding artifacts", "collecting artifacts"


class ArtifactLeases:
    """Keeps artifacts that are being added from being deleted, and deletes those that nothing refers to."""

    def __init__(self, metadata: MetadataStore, artifact_store: ArtifactStore, intents: Intents) -> None:
        self._metadata = metadata
        self._artifact_store = artifact_store
        self._intents = intents

    @asynccontextmanager
    async def held(self, hashes: Collection[str]) -> AsyncIterator[list[DeleteIntent]]:
        """Hold artifacts, there or still to be written, until the changes yielded are committed.

        If the block fails, or gives them up (`Intents.leave`), `recover` deletes what it wrote and nothing refers to.
        """
        if not hashes:
            yield []
            return
        intent = await self._intents.announce(_ADDING, hashes=sorted(hashes))
        with self._intents.settling(intent):
            await self._until_collected(set(hashes))
            yield [intent]

    async def _until_collected(self, hashes: set[str]) -> None:
        """Wait while somebody may be deleting these."""
        seen = 0
        while True:
            seen = await self._metadata.wait_for_commits(seen)
            collecting = await self._intents.read(_COLLECTING)
            if not any(alive and hashes & set(details["hashes"]) for _, details, alive in collecting):
                return

    @asynccontextmanager
    async def dropping(self, candidates: Collection[str]) -> AsyncIterator[list[Change]]:
        """Delete, after the block, those of these artifacts that nothing refers to.

        Yields changes for the commit, in the block, that drops references: `recover` follows whoever dies or fails after it.
        """
        if not candidates:
            yield []
            return
        put, done = self._intents.draft(_COLLECTING, hashes=sorted(candidates))
        with self._intents.settling(done):
            yield [put]
            await self._delete(candidates)
            await self._withdraw(done)

    async def _delete(self, candidates: Collection[str]) -> None:
        used = await self._metadata.artifacts()
        for _, details, alive in await self._intents.read(_ADDING):
            if alive:
                used |= set(details["hashes"])
        for sha256 in sorted(set(candidates) - used):
            await self._artifact_store.delete(sha256)

    async def recover(self) -> None:
        """Take up what processes that died left: half-finished deletions, and artifacts of additions that never were."""
        left: set[str] = set()
        withdrawn: list[DeleteIntent] = []
        for kind in (_COLLECTING, _ADDING):
            for record, details, alive in await self._intents.read(kind):
                if not alive:
                    left |= set(details["hashes"])
                    withdrawn.append(DeleteIntent(record.id))
        if withdrawn:
            with contextlib.suppress(ConflictError):  # another process takes them up
                async with self.dropping(left) as announced:
                    await self._metadata.commit(*announced, *withdrawn)

    async def _withdraw(self, intent: DeleteIntent) -> None:
        with contextlib.suppress(ConflictError):  # it was committed after all, or another process has recovered it
            await self._metadata.commit(intent)
