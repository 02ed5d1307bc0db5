"""Where workers read and write rows: what opens a databackend in a worker's process, and whether that is worth trying."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import pickle
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

from asyncdl.compute.base import ComputeBackend, ModelCall, UnreachableError
from asyncdl.databackend.base import DataBackend
from asyncdl.datatypes import Datatypes
from asyncdl.metadata.base import MetadataStore

logger = logging.getLogger("asyncdl.jobs")

_AGAIN = 300.0
"""Seconds after which workers that could not reach the databackend are tried again."""


@dataclass(frozen=True, slots=True)
class DataSite:
    """A databackend that is to be opened by a worker.

    Parameters
    ----------
    key
        The hash of all that follows.
    packed
        What opens it, and that holds its password: pickled and compressed, so that it is not even by accident to be read.
    identity
        The metadata store's, where that is in the same database; None: it is not.
    """

    key: str
    packed: bytes = field(repr=False)
    identity: str | None

    @classmethod
    def of(cls, databackend: DataBackend, metadata: MetadataStore) -> DataSite | None:
        """Return the site of a databackend, None where only this process can open it, or no other may."""
        make = databackend.elsewhere()
        shared = metadata.joins(databackend)
        records = metadata.elsewhere() if shared else None
        datatypes = databackend.datatypes
        if make is None or (shared and records is None) or (datatypes.registered and not datatypes.allow_pickle):
            return None
        packed = zlib.compress(cloudpickle.dumps((make, records, datatypes)))
        return cls(hashlib.sha256(packed).hexdigest(), packed, metadata.identity if shared else None)

    async def open(self) -> OpenDataSite:
        """Connect.

        Raises
        ------
        UnreachableError
            Another database is there.
        """
        make, records, datatypes = await asyncio.to_thread(self._unpacked)
        databackend = make(datatypes)
        metadata = None if records is None else records(databackend)
        site = OpenDataSite(databackend, metadata)
        try:
            await databackend.open()
            if metadata is not None:
                await metadata.open()
                if metadata.identity != self.identity:
                    raise UnreachableError(f"{databackend.url} is another database there")
        except BaseException:
            await site.aclose()
            raise
        return site

    def _unpacked(self) -> tuple[Callable[[Datatypes], DataBackend], Callable[[Any], MetadataStore] | None, Datatypes]:
        made: Any = pickle.loads(zlib.decompress(self.packed))  # noqa: S301 - the client's, as the models are
        return made  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class OpenDataSite:
    """A databackend that a worker has open, and the metadata store in its database, if it is there."""

    databackend: DataBackend
    metadata: MetadataStore | None

    async def aclose(self) -> None:
        """Close both."""
        if self.metadata is not None:
            await self.metadata.aclose()
        await self.databackend.aclose()


class Errands:
    """Says whether a job's batches go to workers as errands, and remembers when workers could not do them."""

    def __init__(self, metadata: MetadataStore, databackend: DataBackend, compute: ComputeBackend) -> None:
        self._metadata = metadata
        self._databackend = databackend
        self._compute = compute
        self._again = 0.0

    def site(self, call: ModelCall) -> DataSite | None:
        """Return where workers read and write what this model is called with, None if that is the client's to do."""
        if not self.possible or not self._compute.runs_errands(call):
            return None
        try:
            return DataSite.of(self._databackend, self._metadata)
        except Exception as error:  # pickling runs anybody's code: a datatype's encoder
            self.give_up(f"the datatypes cannot be sent to them: {type(error).__name__}: {error}")
            return None

    @property
    def possible(self) -> bool:
        """Whether nothing is known that speaks against it."""
        return time.monotonic() >= self._again

    def give_up(self, reason: str) -> None:
        """Have everything go through the client, for some minutes; it is told once, not for each batch under way."""
        if self.possible:
            logger.warning(
                "workers cannot read and write %s themselves, so rows go through this process: %s",
                self._databackend.url,
                reason,
            )
        self._again = time.monotonic() + _AGAIN
