"""What a listener's job reads of other listeners: which versions' outputs, and whether they are still those to be read."""

from __future__ import annotations

from collections.abc import Mapping

from asyncdl.databackend.requests import ReadQuery
from asyncdl.databackend.tables import OutputTable
from asyncdl.errors import InvalidComponentError
from asyncdl.events.types import OutputsReplaced
from asyncdl.jobs.work import Stores
from asyncdl.metadata.records import ComponentRecord


class UpstreamReplacedError(Exception):
    """A newer version took over from one whose outputs were being read: all is to be read again."""


class Upstream:
    """The listeners whose outputs a select goes through, as of a position in the log.

    Note for implementers: an output is stamped with a position as of which its row was read. So rows that came through the
    outputs of a version that had been replaced by then must not be used: whoever reads looks, after reading, whether it was.
    """

    def __init__(self, stores: Stores, select: ReadQuery, outputs: Mapping[str, OutputTable], since: int) -> None:
        self._stores = stores
        self._select = select
        self._since = since
        self.outputs = outputs

    @classmethod
    async def read(cls, stores: Stores, select: ReadQuery) -> Upstream:
        """Look up where the outputs are."""
        since = await stores.metadata.last_event() if select.listeners() else 0
        return cls(stores, select, await stores.registry.outputs(select.listeners()), since)

    async def was_replaced(self) -> bool:
        """Return whether other outputs are to be read by now."""
        names = self._select.listeners()
        if not names:
            return False
        types = [OutputsReplaced.__name__]
        return bool(await self._stores.metadata.events(self._since, types=types, topics=sorted(names), limit=1))

    async def check(self, as_of: int) -> None:
        """Raise `UpstreamReplacedError` when other outputs are to be read by now than when rows were read.

        Parameters
        ----------
        as_of
            The position in the log before they were read: up to there one need not look again.
        """
        if await self.was_replaced():
            raise UpstreamReplacedError
        self._since = max(self._since, as_of)

    async def is_due(self, record: ComponentRecord, output: OutputTable, *, setting_up: bool) -> bool:
        """Return whether a listener that reads these has anything to do now.

        What sets it up waits until a newer version of what it reads is complete: another backfill is planned then. One whose
        rows have another key by now leaves its work to its own newer version.

        Raises
        ------
        InvalidComponentError
            There is no newer version.
        """
        if setting_up and await self.is_awaited():
            return False
        if await self.fits(output):
            return True
        newest = await self._stores.registry.newest("listener", record.identifier)
        if not await self.is_awaited() and (newest is None or newest.uuid == record.uuid):
            raise InvalidComponentError(
                f"the listener {record.identifier!r} reads rows that have another key by now than its outputs: add it again"
            )
        return False

    async def _records(self) -> list[list[ComponentRecord]]:
        find = self._stores.metadata.components
        return [await find(type_id="listener", identifier=each) for each in sorted(self._select.listeners())]

    async def is_ready(self) -> bool:
        """Return whether each has a version that is complete."""
        records = await self._records()
        return all(any(each.status == "ready" for each in versions) for versions in records)

    async def is_awaited(self) -> bool:
        """Return whether the newest version of one is still to be completed: what reads it is computed once it is."""
        records = await self._records()
        return any(bool(versions) and versions[-1].status == "pending" for versions in records)

    async def fits(self, output: OutputTable) -> bool:
        """Return whether rows have the key that a listener's outputs were made for.

        They have another one where a listener in between has become a flattened one since, or ceased to be.
        """
        flattened = {each.position for each in self.outputs.values() if each.flatten}
        if flattened == set(tuple(output.key)[len(output.root) :]):
            return True  # an element's position for each that is flattened: as it is where rows are joined with outputs
        schema = await self._stores.databackend.check(self._select, self.outputs, {})
        return schema.primary_key == tuple(output.key)
