"""What the conformance suites of metadata stores need to know of an implementation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncdl.metadata.base import MetadataStore
from asyncdl.testing.metadata_records import KINDS, RecordKind


class MetadataHooks(ABC):
    """What the suites need to know of a store.

    Note for implementers: the tests decide on times that they make up (``now`` and ``lease`` are small numbers), so a store
    must compare them with each other only, never with a clock of its own.
    """

    pytestmark = pytest.mark.anyio

    @abstractmethod
    def make_store(self, where: Path) -> MetadataStore:
        """Return a store, not open yet; two for one folder are on the same data, as if of two processes."""

    @abstractmethod
    async def raw(self, where: Path, kind: RecordKind) -> Sequence[Any]:
        """Return the records of a kind as the database itself shows them, past the code under test."""

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[MetadataStore]:
        """Yield an open store."""
        store = self.make_store(tmp_path)
        await store.open()
        yield store
        await store.aclose()

    @pytest.fixture
    async def other(self, store: MetadataStore, tmp_path: Path) -> AsyncIterator[MetadataStore]:
        """Yield a second store on the same data."""
        other = self.make_store(tmp_path)
        await other.open()
        yield other
        await other.aclose()

    async def everything(self, where: Path) -> dict[RecordKind, list[str]]:
        """Return the raw records of each kind, comparable."""
        return {kind: sorted(map(repr, await self.raw(where, kind))) for kind in KINDS}
